"""Which cases of a product of parameters run always; the others run with the slow tests."""

from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest


def turns(first: Iterable[str], *axes: Iterable[str]) -> list[Any]:
    """The product, of which so many cases run always that every value is in one: each axis begins anew where another is longer."""
    values = [list(first), *map(list, axes)]
    always = {tuple(axis[i % len(axis)] for axis in values) for i in range(max(map(len, values)))}
    return [pytest.param(*case, marks=() if case in always else pytest.mark.slow) for case in product(*values)]


def rotated(first: Iterable[str], second: Iterable[str], partners: int = 1) -> list[tuple[str, str]]:
    """Pairs in the place of the product: each of `second` with so many of `first`, which take turns."""
    names = list(first)
    return [(names[(i + j) % len(names)], name) for i, name in enumerate(second) for j in range(partners)]
