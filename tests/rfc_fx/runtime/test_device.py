"""What a device asks of the host, tried without one: clocks in pinned memory, reads, results of CUDA graphs, types that a card lacks."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from families import moved, shared_model
from torch import Tensor

import rfc
import rfc_fx
from benchmarks.latency.timing import Reads
from rfc.state import SlotSpec
from rfc_fx.errors import RFCError
from rfc_fx.passes.build import check_types
from rfc_fx.runtime import calls
from rfc_fx.runtime.context import Context, _pinned
from rfc_fx.runtime.readback import Readback

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


@pytest.mark.parametrize("told", ["scheduler", "timesteps"])
@pytest.mark.parametrize(("caching", "each"), [(rfc.TaylorSeer(interval=3, order=1), 0), (rfc.RFC(tau=0.1), 1)])
def test_known_timesteps_are_read_once_and_then_only_what_decides(
    caching: rfc.Method, each: int, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Timesteps and latents count as on a device, and every call that waits for a value of theirs is counted."""
    monkeypatch.setattr(calls, "on_host", lambda value: not isinstance(value, Tensor))
    model, kwargs = shared_model("dit")
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(9)
    timesteps = scheduler.timesteps
    known = {"source": scheduler} if told == "scheduler" else {"timesteps": timesteps}
    cached = rfc_fx.transform(model, caching, example_inputs=moved(kwargs, 0))
    with torch.no_grad(), cached.generation(**known), Reads() as reads:
        for step, timestep in enumerate(timesteps):
            call = moved(kwargs, step) | {"timestep": timestep.expand(2)}
            reads.give({name: call[name] for name in ("hidden_states", "timestep")})
            cached(**call)
    first = 1  # what the timestep looks like to the model
    assert reads.counts.total() == first + each * len(timesteps)
    assert {"FULL", "ESTIMATE"} == {*cached.stats.phases}


def test_timesteps_that_were_written_since_they_were_told_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "on_host", lambda value: not isinstance(value, Tensor))
    model, kwargs = shared_model("dit")
    cached = rfc_fx.transform(model, rfc.TaylorSeer(interval=3, order=1), example_inputs=moved(kwargs, 0))
    timesteps = torch.tensor([900, 600, 300])
    with torch.no_grad(), cached.generation(timesteps=timesteps) as generation:
        cached(**moved(kwargs, 0) | {"timestep": timesteps[0].expand(2)})
        timesteps[1] = 300  # leaves a step out
        cached(**moved(kwargs, 2) | {"timestep": timesteps[1].expand(2)})
        assert generation.index == 2


def counting_scheduler() -> DPMSolverMultistepScheduler:
    """One of nine steps that says which step it is at."""
    scheduler = DPMSolverMultistepScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(9)
    return scheduler


def converted(*rows: Tensor) -> list[Tensor]:
    """Timesteps as a pipeline hands them on that converts them, each in memory of its own; one row for each sample of a batch."""
    return [timestep.clone() for timestep in torch.stack(rows, 1).unbind()]


def outputs_at(timesteps: Sequence[Tensor], cached: Any, reads: Reads | None = None) -> list[Tensor]:
    """Outputs of a generation whose scheduler is known, called at these timesteps whatever the scheduler says."""
    scheduler = counting_scheduler()
    _, kwargs = shared_model("dit")
    with torch.no_grad(), cached.generation(source=scheduler), reads or nullcontext():
        outputs = []
        for step, timestep in enumerate(timesteps):
            scheduler._step_index = step
            if reads is not None:
                reads.give({"timestep": timestep})
            outputs.append(cached(**moved(kwargs, step) | {"timestep": timestep})[0])
    return outputs


@pytest.fixture
def cached_dit() -> Any:
    model, kwargs = shared_model("dit")
    return rfc_fx.transform(model, rfc.TaylorSeer(interval=3, order=1), example_inputs=moved(kwargs, 0), config=rfc_fx.Config(hoist=True))


def test_samples_at_timesteps_of_their_own_from_the_first_call_on_are_computed_as_on_the_host(
    cached_dit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    timesteps = counting_scheduler().timesteps
    own = converted(timesteps, timesteps - 50)
    expected = outputs_at(own, cached_dit)
    monkeypatch.setattr(calls, "on_host", lambda value: not isinstance(value, Tensor))
    assert all(map(torch.equal, outputs_at(own, cached_dit), expected))
    assert not torch.equal(outputs_at(converted(timesteps, timesteps), cached_dit)[0], expected[0])


def test_samples_that_part_later_are_an_error_at_the_last_step_and_a_warning_where_it_is_left_before(
    cached_dit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "on_host", lambda value: not isinstance(value, Tensor))
    timesteps = counting_scheduler().timesteps
    other = timesteps - 50 * (torch.arange(9) >= 4)
    parting = converted(timesteps, other)
    with pytest.raises(RFCError, match=rf"call 5 .* {other[4]} to {timesteps[4]} and was computed for {timesteps[4]}.*as CPU tensors"):
        outputs_at(parting, cached_dit)
    with pytest.warns(rfc_fx.OtherTimestepsWarning, match=r"call 5"):
        outputs_at(parting[:6], cached_dit)
    outputs_at(parting[:4], cached_dit)  # up to there nothing is wrong
    outputs_at(converted(timesteps, timesteps), cached_dit)


def test_timesteps_that_a_pipeline_converts_are_read_in_the_first_call_and_after_the_last(
    cached_dit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "on_host", lambda value: not isinstance(value, Tensor))
    timesteps = counting_scheduler().timesteps
    reads = Reads()
    outputs_at(converted(timesteps, timesteps), cached_dit, reads)
    assert reads.counts.total() == 3  # what the pipeline makes of the list, whether the samples agree; then all others at once


class Far(Tensor):
    """A tensor that says it lies on a CUDA device."""

    is_cuda = True


def test_a_readback_does_not_overtake_one_that_nobody_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Stream:
        name = "first"

        def wait_event(self, event: "Event") -> None:
            order.append(f"{self.name} waits")

    class Event:
        def record(self, stream: Stream) -> None:
            order.append(f"{stream.name} copies")

        def synchronize(self) -> None:
            order.append("the host waits")

    stream, empty = Stream(), torch.empty
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory, **options: empty(*size, **options))
    readback = Readback()
    for name, value, is_taken in (("first", 1.0, False), ("second", 2.0, True), ("third", 3.0, True)):
        stream.name = name
        readback.start(torch.tensor([value]).as_subclass(Far))
        if is_taken:
            assert readback.wait() == [value]
        else:
            readback.discard()
    copied = ["second waits", "second copies", "the host waits", "third copies", "the host waits"]
    assert order == ["first copies", *copied]


def test_one_graph_that_was_compiled_in_place_hands_out_results_of_its_own_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """As CUDA graphs do, the compiled call writes every result to one place."""
    model, kwargs = shared_model("dit")
    cached = rfc_fx.transform(model, rfc.RFC(tau=0.3), example_inputs=moved(kwargs, 0), config=rfc_fx.Config(dispatch="cond"))
    place, began = torch.zeros(2), list[str]()
    monkeypatch.setattr(torch, "compile", lambda call, **_: lambda *args, **kwargs: (place.add_(1).as_subclass(Far),))
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: began.append("step"))
    cached(**moved(kwargs, 0))
    cached._prepared.is_cuda = True  # as if its state lay on a device
    cached.compile(mode="reduce-overhead")
    first, second = (cached(**moved(kwargs, step))[0] for step in range(2))
    assert [first.tolist(), second.tolist(), place.tolist()] == [[1, 1], [2, 2], [2, 2]]
    assert began == ["step"] * 2
