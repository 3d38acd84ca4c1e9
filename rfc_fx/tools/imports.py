"""Imports: the folders of a package as a drawing of what imports what, with the number of floors; `python -m rfc_fx.tools.imports --write`.

A floor is a step of the longest chain of imports: a file on the ground floor imports no other file of the package.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def imports_of(tree: ast.AST) -> Iterator[str]:
    """The modules that a file imports when it runs, and the names that may be modules; imports for type checkers alone are left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        yield from imports_of(node)


def graph_of(package: Path) -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports, by their paths inside the package; the package's own file is left out."""
    files = {".".join(path.relative_to(package).with_suffix("").parts).removesuffix(".__init__"): path for path in package.rglob("*.py")}
    del files["__init__"]
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        own = f"{package.name}."
        targets = [target.removeprefix(own) for target in imports_of(ast.parse(path.read_text())) if target.startswith(own)]
        graph[name] = {found for target in targets for found in (target, target.rpartition(".")[0]) if found in files and found != name}
    return graph


def folders_of(graph: Mapping[str, AbstractSet[str]]) -> dict[str, set[str]]:
    """The same between folders."""
    folders: dict[str, set[str]] = {}
    for name, targets in graph.items():
        own = name.partition(".")[0]
        folders.setdefault(own, set()).update(target.partition(".")[0] for target in targets)
        folders[own].discard(own)
    return folders


def floors(graph: Mapping[str, AbstractSet[str]]) -> int:
    """Length of the longest chain of imports, in files; RecursionError where imports go in a circle."""

    @cache
    def floor(name: str) -> int:
        return 1 + max((floor(target) for target in graph[name]), default=0)

    return max(map(floor, graph))


def reduced(graph: Mapping[str, AbstractSet[str]]) -> dict[str, set[str]]:
    """Without the arrows that follow from others."""

    @cache
    def reach(name: str) -> frozenset[str]:
        return frozenset(graph[name]).union(*map(reach, graph[name]))

    return {name: {target for target in targets if not any(target in reach(other) for other in targets)} for name, targets in graph.items()}


def drawing(package: Path = PACKAGE) -> str:
    """The drawing as GitHub shows it, and the counts in a sentence."""
    graph = graph_of(package)
    folders = folders_of(graph)
    lines = ["```mermaid", "graph TD"]
    for name, targets in sorted(reduced(folders).items()):
        lines += [f"    {name} --> {target}" for target in sorted(targets)] or [f"    {name}"]
    arrows = sum(map(len, graph.values()))
    lines += ["```", "", "An arrow that follows from two others is not drawn."]
    lines += [f"{len(graph)} files with {arrows} imports on {floors(graph)} floors; {len(folders)} folders on {floors(folders)} floors."]
    return "\n".join(lines)


BEGIN, END = "<!-- imports: begin -->\n", "<!-- imports: end -->"


def write(readme: Path = PACKAGE / "README.md") -> None:
    """Put the drawing between its marks in the package's README."""
    before, _, rest = readme.read_text().partition(BEGIN)
    readme.write_text(f"{before}{BEGIN}{drawing()}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    write() if "--write" in sys.argv else print(drawing())
