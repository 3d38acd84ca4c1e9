"""Tags: many dictionaries looked at in one read. CPython keeps in each a number that every write changes.

`dict_version` of torch returns that number for one dictionary by a call; a model of 57 blocks has a thousand. Here they are gathered at
once, which is possible where the numbers stand at a fixed place of the object. Whether they do is tried when this module is loaded.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

WORD = 8
VERSION = object.__basicsize__ + WORD
"""Bytes from the beginning of a dictionary to the number of its writes."""


class Tags:
    """The version of each dictionary. Holds no reference to them."""

    def __init__(self, dicts: Sequence[dict[Any, Any]]) -> None:
        addresses = [id(each) + VERSION for each in dicts]
        first = min(addresses, default=0)
        words = (max(addresses, default=0) - first) // WORD + 1 if addresses else 0
        self._memory = np.ctypeslib.as_array((ctypes.c_uint64 * words).from_address(first)) if words else np.zeros(0, np.uint64)
        self._places = np.array([(address - first) // WORD for address in addresses], dtype=np.intp)

    def read(self) -> bytes:
        """The numbers as they are."""
        return self._memory[self._places].tobytes()


def _are_readable() -> bool:
    """Whether this interpreter keeps the numbers where `Tags` reads them."""
    if sys.implementation.name != "cpython" or sys.version_info >= (3, 13):  # later ones keep no version
        return False
    probe, other = {"key": 1}, {"key": 1, "another": 2}
    tags = Tags([probe, other])
    first, second = tags.read(), tags.read()
    probe["key"] = 2
    third = tags.read()
    other["third"] = 3
    return first == second and len({second, third, tags.read()}) == 3


ARE_READABLE = _are_readable()
