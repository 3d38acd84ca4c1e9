"""Functions are traced once for what they depend on, and anew for whatever may differ."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from rfc.state import SlotSpec
from rfc_fx.passes.traced import traced

SPEC = SlotSpec((2, 3), torch.float32)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Scale:
    by: Any


@dataclass
class Changing:
    by: float


class Counted:
    """Multiplies by a number, and counts its calls: one for each trace."""

    def __init__(self, by: float = 2.0) -> None:
        self.by, self.calls = by, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.by


def test_equal_owners_and_shapes_are_traced_once() -> None:
    function = Counted()
    first = traced(function, ("scale", Scale(2.0), (SPEC,)), [SPEC], CPU)
    assert traced(function, ("scale", Scale(2.0), (SPEC,)), [SPEC], CPU) is first
    assert function.calls == 1
    assert torch.equal(first(torch.ones(2, 3)), torch.full((2, 3), 2.0))


@pytest.mark.parametrize(
    ("owner", "spec"),
    [
        (Scale(3.0), SPEC),
        (Scale(2), SPEC),  # equal to 2.0, and another constant of a graph
        (Scale(2.0), SlotSpec((3, 2), torch.float32)),
        (Scale(2.0), SlotSpec((2, 3), torch.bfloat16)),
    ],
)
def test_another_owner_shape_or_dtype_is_traced_anew(owner: Scale, spec: SlotSpec) -> None:
    function = Counted()
    traced(function, (function.__class__.__name__, Scale(2.0)), [SPEC], CPU)
    before = function.calls
    traced(function, (function.__class__.__name__, owner), [spec], CPU)
    assert function.calls == before + 1
    traced.__globals__["_kept"].cache_clear()


def test_the_default_dtype_and_autocast_belong_to_what_is_traced() -> None:
    function = Counted()
    plain = traced(function, ("set around", Scale(2.0)), [SPEC], CPU)
    with torch.autocast("cpu", torch.bfloat16):
        assert traced(function, ("set around", Scale(2.0)), [SPEC], CPU) is not plain
    assert traced(function, ("set around", Scale(2.0)), [SPEC], CPU) is plain
    assert function.calls == 2


@pytest.mark.parametrize(
    "owner",
    [Changing(2.0), Scale(Changing(2.0)), Scale(object()), [2.0], object()],
    ids=["dataclass", "inside", "object inside", "list", "object"],
)
def test_what_may_change_under_the_same_name_is_traced_each_time(owner: Any) -> None:
    function = Counted()
    for _ in range(2):
        traced(function, ("may change", owner), [SPEC], CPU)
    assert function.calls == 2
