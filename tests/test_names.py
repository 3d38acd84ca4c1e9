"""Every name of the packages that a docstring, comment, message or README mentions exists."""

import importlib
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
NAME = re.compile(r"(?<![\w./-])(?:rfc|rfc_fx|rfc_export|benchmarks)(?:\.[A-Za-z_]\w*)+")
FILES = ("json", "md", "py", "toml", "egg")
"""Endings of files, such as rfc.json, which are no names."""
TEXT = {tokenize.STRING, tokenize.COMMENT} | {getattr(tokenize, kind) for kind in ("FSTRING_MIDDLE",) if hasattr(tokenize, kind)}


def sources() -> list[Path]:
    return [path for folder in ("rfc", "rfc_fx", "export/rfc_export", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]


def documents() -> list[Path]:
    return [*sorted(ROOT.glob("*.md")), *(ROOT / folder / "README.md" for folder in ("rfc", "rfc_fx", "export", "benchmarks"))]


def mentioned() -> Iterator[tuple[str, Path]]:
    for path in sources():
        with path.open("rb") as file:
            for token in tokenize.tokenize(file.readline):
                if token.type in TEXT:
                    yield from ((name, path) for name in NAME.findall(token.string))
    for path in filter(Path.exists, documents()):
        yield from ((name, path) for name in NAME.findall(path.read_text()))


def exists(name: str) -> bool:
    """Whether the name is an attribute of a package, or a module in it."""
    root, *parts = name.split(".")
    value: Any = importlib.import_module(root)
    path = root
    for part in parts:
        path = f"{path}.{part}"
        if part in getattr(value, "__dataclass_fields__", {}):
            return True
        if not hasattr(value, part):
            if not hasattr(value, "__path__"):
                return False
            try:
                importlib.import_module(path)
            except ModuleNotFoundError as error:
                return error.name != path  # True behind a library that is not installed here
        value = getattr(value, part)
    return True


def test_every_name_in_text_exists() -> None:
    names: dict[str, set[str]] = {}
    for name, path in mentioned():
        if name.rpartition(".")[2] not in FILES:
            names.setdefault(name, set()).add(str(path.relative_to(ROOT)))
    assert len(names) > 50
    missing = {name: sorted(paths) for name, paths in names.items() if not exists(name)}
    assert not missing


@pytest.mark.parametrize(
    ("name", "there"), [("rfc.RFC", True), ("rfc_fx.passes.build.build", True), ("rfc.magnitude", False), ("rfc.no.x", False)]
)
def test_a_name_that_is_not_there_is_seen(name: str, there: bool) -> None:
    assert exists(name) == there
