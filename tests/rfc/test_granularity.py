"""Where a method applies: granularities as text, and what each method says of itself."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rfc import (
    FORA,
    RCS,
    RFC,
    DeltaDiT,
    DiCache,
    EasyCache,
    FirstBlockCache,
    FullCompute,
    HiCache,
    MagCache,
    Method,
    Reuse,
    SeaCache,
    SpeCa,
    Spectrum,
    TaylorSeer,
    TaylorSeerLite,
    TeaCache,
)
from rfc.granularity import Granularity, parse_granularity

bounds = st.none() | st.integers(-30, 30)


@pytest.mark.parametrize("name", ["module", "block", "stack", "output", "prediction"])
def test_a_name_is_a_grain_of_that_kind_over_all_blocks(name: Any) -> None:
    assert parse_granularity(name) == Granularity(name, slice(None))


@given(bounds, bounds)
def test_a_range_of_blocks_is_written_as_a_python_slice(first: int | None, last: int | None) -> None:
    text = f"blocks[{'' if first is None else first}:{'' if last is None else last}]"
    assert parse_granularity(text) == Granularity("blocks", slice(first, last))


@pytest.mark.parametrize(
    "text", ["", "blocks", "blocks[1]", "blocks[1:2:3]", "blocks[a:]", "blocks[ 1:]", "Module", "auto", "blocks[1:]x", None, 3]
)
def test_anything_else_is_refused_with_what_there_is(text: Any) -> None:
    wanted = f"granularity must be one of module, block, stack, output, prediction, blocks[a:b] (such as blocks[1:]), got {text!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(wanted)}$"):
        parse_granularity(text)


@pytest.mark.parametrize(
    ("method", "where"),
    [
        *((method, (None, 0)) for method in (FullCompute(), FORA(), TaylorSeer(), RFC(), HiCache(), SpeCa())),
        (TaylorSeerLite(), ("output", 0)),
        (TeaCache(), ("stack", 0)),
        (EasyCache(), ("stack", 0)),
        (SeaCache(), ("stack", 0)),
        (Spectrum(), ("output", 0)),
        (MagCache(ratios=[1.0]), ("stack", 0)),
        (DiCache(), ("stack", 1)),
        (DiCache(depth=3), ("stack", 3)),
        (DeltaDiT(), ("blocks[1:]", 0)),
        (DeltaDiT(first=0, last=19), ("blocks[0:19]", 0)),
        (FirstBlockCache(), ("blocks[1:]", 1)),
        (FirstBlockCache(blocks=8), ("blocks[8:]", 8)),  # DBCache F8B0
        (FirstBlockCache(blocks=8, tail=4), ("blocks[8:-4]", 8)),  # DBCache F8B4
        (Method(estimator=Reuse(), schedule=RCS(tau=1), granularity="stack", probe=2), ("stack", 2)),
    ],
    ids=repr,
)
def test_a_method_says_what_one_estimate_stands_for_and_how_many_blocks_always_run(method: Method, where: tuple[Any, int]) -> None:
    assert (method.granularity, method.probe) == where
    assert where[0] is None or parse_granularity(where[0])
