"""Which cases of a product of parameters run always; the others run with the slow tests."""

from collections.abc import Iterable
from itertools import combinations, product
from typing import Any

import pytest


def pairwise(*axes: Iterable[Any]) -> list[Any]:
    """The product of the axes, of which every pair of values of two axes is in a case that runs always."""
    values = [list(axis) for axis in axes]
    places = list(combinations(range(len(values)), 2))
    left = {(i, j, a, b) for i, j in places for a in values[i] for b in values[j]}
    cases = list(product(*values))
    always: set[tuple[Any, ...]] = set()
    while left:
        best = max(cases, key=lambda case: sum((i, j, case[i], case[j]) in left for i, j in places))
        always.add(best)
        left -= {(i, j, best[i], best[j]) for i, j in places}
    return [pytest.param(*case, marks=() if case in always else pytest.mark.slow) for case in cases]


def rotating(first: Iterable[str], second: Iterable[str], each: int) -> list[Any]:
    """The product, of which the first value of `first` meets all of `second` always, every other one each `each`-th, in turn."""
    rows, columns = list(first), list(second)
    return [
        pytest.param(row, column, marks=() if i == 0 or (i + j) % each == 0 else pytest.mark.slow)
        for i, row in enumerate(rows)
        for j, column in enumerate(columns)
    ]


def rotated(first: Iterable[str], second: Iterable[str], partners: int = 1) -> list[tuple[str, str]]:
    """Pairs in the place of the product: each of `second` with so many of `first`, which take turns."""
    names = list(first)
    return [(names[(i + j) % len(names)], name) for i, name in enumerate(second) for j in range(partners)]
