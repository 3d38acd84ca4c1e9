"""What a device asks of the host, tried without one: clocks in pinned memory, types that a card lacks."""

import pytest
import torch
from families import moved, shared_model
from torch import Tensor

import rfc
import rfc_fx
from rfc.state import SlotSpec
from rfc_fx.errors import RFCError
from rfc_fx.passes.build import check_types
from rfc_fx.runtime.context import Context, _pinned

pytestmark = pytest.mark.usefixtures("captured_once")


def test_a_clock_goes_to_a_device_from_rows_that_are_never_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[Tensor] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    _pinned.cache_clear()
    model, kwargs = shared_model("dit")
    context = Context(rfc_fx.transform(model, rfc.FORA(), example_inputs=moved(kwargs, 0)).compiled)
    context._clock_memory = None  # as if it lay on a device
    for values in [(1.0, 3.0, 1.0), (2.0, 3.0, 1.0), (1.0, 3.0, 1.0)]:
        context.set_clock(values)
        assert tuple(context.clock.tolist()) == values
    assert [tuple(row.tolist()) for row in pinned] == [(1.0, 3.0, 1.0), (2.0, 3.0, 1.0)]
    _pinned.cache_clear()


@pytest.mark.parametrize(("capability", "dtype", "refused"), [((8, 0), torch.float8_e4m3fn, True), ((8, 9), torch.float8_e4m3fn, False)])
def test_eight_bit_floats_are_refused_on_cards_that_have_none(
    capability: tuple[int, int], dtype: torch.dtype, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    slots = {"a.dO1": SlotSpec((2, 16), dtype)}
    if refused:
        with pytest.raises(RFCError, match=r"float8_e4m3fn.*sm_80.*int8"):
            check_types("DiT", slots, torch.device("cuda"))
    else:
        check_types("DiT", slots, torch.device("cuda"))
    check_types("DiT", slots, torch.device("cpu"))
