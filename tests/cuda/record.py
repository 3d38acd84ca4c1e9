"""What tests found that passed: counts, kernels, and the values of each choice that occurred; kept in a folder, a run can be resumed."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path


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
    """What all tests found that passed, and what earlier runs have left in a folder."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._found: dict[str, Found] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for path in sorted(folder.glob("*.json")):
                said = json.loads(path.read_text())
                self._found[said.pop("name")] = Found(Counter(said["counts"]), said["kernels"], said["values"])

    def has(self, name: str) -> bool:
        """Whether that test has passed."""
        return name in self._found

    def note(self, name: str, found: Found) -> None:
        """A test has passed, and runs again where this run is resumed."""
        self._found[name] = found

    def keep(self, name: str, found: Found) -> None:
        """A test has passed."""
        self.note(name, found)
        if self._folder is not None:
            path = self._folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"
            path.with_suffix(".part").write_text(json.dumps({"name": name, **asdict(found)}))
            path.with_suffix(".part").rename(path)

    def kernels(self) -> dict[str, str]:
        """Sources of all kernels."""
        return {text: body for found in self._found.values() for text, body in found.kernels.items()}

    def lines(self) -> Iterator[str]:
        """What passed, in numbers."""
        counts = sum((found.counts for found in self._found.values()), Counter[str]())
        values: dict[str, set[str]] = {}
        for found in self._found.values():
            for choice, value in found.values.items():
                values.setdefault(choice, set()).add(value)
        if values:
            yield "combinations of " + ", ".join(f"{len(of)} {choice}" for choice, of in values.items())
        for name, count in counts.items():
            yield f"{count:6d} {name}"
