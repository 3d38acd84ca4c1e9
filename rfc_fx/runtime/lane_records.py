"""Lane records: what the lanes of a generation did, readable until others take their place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from rfc.bookkeeping import Book
from rfc.record import Record
from rfc_fx.runtime.calls import Key
from rfc_fx.runtime.context import Context

Lane = tuple[str, Key]
"""(name, program set)."""


class LaneRecords:
    """The lanes of a generation, each with its context, and their records."""

    def __init__(self) -> None:
        self._lanes: dict[Lane, Context] = {}
        self._latest: Lane | None = None
        self._ended: dict[str, Book] = {}
        """Of the lanes that were given back."""
        self._latest_book: Book | None = None
        self._labels: dict[str, tuple[str, str]] = {}
        """What a guider calls a conditioning that nobody names, and the sample, by the name of the lane."""

    def __len__(self) -> int:
        return len(self._lanes)

    def __iter__(self) -> Iterator[Context]:
        return iter(list(self._lanes.values()))

    def program_sets(self) -> set[Key]:
        """The program sets of the lanes."""
        return {key for _, key in list(self._lanes)}

    @property
    def latest(self) -> Context | None:
        """The context that was used last; None where it was given back."""
        return None if self._latest is None else self._lanes.get(self._latest)

    def _label(self, name: str, sample: str, label: str) -> None:
        """Note what a guider calls the conditioning of a lane."""
        taken = sum((each.partition("/")[0], of) == (label, sample) for each, of in self._labels.values())
        self._labels[name] = label if not taken else f"{label}/{taken + 1}", sample

    def _labelled(self, name: str) -> str:
        """What a lane is called in records."""
        conditioning, *number = name.partition(" #")
        return "".join((*self._labels.get(conditioning, (conditioning,)), *number))

    def books(self) -> dict[str, Book]:
        """What each lane did, by its name; "cond (2)" is the second set of programs that ran as "cond"."""
        if not self._lanes:
            return dict(self._ended)
        books: dict[str, Book] = {}
        times = Counter[str]()
        for context in self:
            times[name := context.name] += 1
            books[name if times[name] == 1 else f"{name} ({times[name]})"] = context.record()
        return books

    @property
    def latest_book(self) -> Book | None:
        """What the lane that was used last did; None before the first call."""
        latest = self.latest
        return self._latest_book if latest is None else latest.record()

    @property
    def stats(self) -> Record:
        """Record of the lane that ran last: `nfc`, `phases`, `eps`."""
        return Record(self.latest_book or Book())

    @property
    def contexts(self) -> dict[str, Record]:
        """Records by lane."""
        return {name: Record(book) for name, book in self.books().items()}
