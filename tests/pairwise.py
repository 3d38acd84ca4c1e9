"""Pairs of two lists in the place of their product: every entry is there, with as many partners as a test needs."""

from collections.abc import Iterable


def rotated(first: Iterable[str], second: Iterable[str], partners: int = 1) -> list[tuple[str, str]]:
    """Each of `second` with so many of `first`, which take turns."""
    names = list(first)
    return [(names[(i + j) % len(names)], name) for i, name in enumerate(second) for j in range(partners)]
