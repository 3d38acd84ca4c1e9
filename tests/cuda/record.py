"""What tests found that passed: counts, kernels, and the values of each choice that occurred; kept in a folder, a run can be resumed."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Found:
    """What one test found."""

    counts: Counter[str] = field(default_factory=Counter)
    """By what is counted."""
    kernels: dict[str, str] = field(default_factory=dict)
    """Sources of the kernels that it generated, by their text without names."""
    values: dict[str, str] = field(default_factory=dict)
    """Its value of each choice."""


class Passed:
    """What all tests found that passed, and what others have left in the folder, which several processes may share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._found: dict[str, Found] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob("*.json")):
            said = json.loads(path.read_text())
            self._found[said.pop("name")] = Found(Counter(said["counts"]), said["kernels"], said["values"])

    def has(self, name: str) -> bool:
        """Whether that test has passed."""
        return name in self._found

    def keep(self, name: str, found: Found) -> None:
        """A test has passed."""
        self._found[name] = found
        path = self._folder / f"{_digest(name)}.json"
        path.with_suffix(".part").write_text(json.dumps({"name": name, **vars(found)}))
        path.with_suffix(".part").rename(path)

    def kernels_of(self, name: str) -> dict[str, str]:
        """Sources of the kernels that a test found."""
        return self._found[name].kernels if name in self._found else {}

    def compiled(self, kernel: str, capability: int) -> Path:
        """The file that exists once this kernel has compiled to this architecture."""
        return self._folder / f"sm_{capability}" / _digest(kernel)

    def totals(self) -> dict[str, Any]:
        """What passed: values of each choice, pairs of families and others, counts, and kernels by architecture."""
        counts = Counter[str]()
        values: dict[str, set[str]] = {}
        pairs: dict[str, set[tuple[str, str]]] = {}
        for found in self._found.values():
            counts.update(found.counts)  # which keeps zeros, as a sum would not
            for choice, value in found.values.items():
                values.setdefault(choice, set()).add(value)
                pairs.setdefault(choice, set()).add((found.values["family"], value))
        folders = sorted(self._folder.glob("sm_*"), key=lambda path: int(path.name[3:]))
        return {
            "values": {choice: len(of) for choice, of in values.items()},
            "pairs with a family": {choice: len(of) for choice, of in pairs.items() if choice != "family"},
            "counts": dict(sorted(counts.items())),
            "kernels": {path.name: len([*path.iterdir()]) for path in folders},
        }

    def lines(self) -> Iterator[str]:
        """The same to read."""
        totals = self.totals()
        yield "combinations of " + ", ".join(f"{count} {choice}" for choice, count in totals["values"].items())
        yield "pairs of a family and a " + ", ".join(f"{choice}: {count}" for choice, count in totals["pairs with a family"].items())
        for name, count in totals["counts"].items():
            yield f"{count:6d} {name}"
        for architecture, count in totals["kernels"].items():
            yield f"{count:6d} kernels compiled to {architecture}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
