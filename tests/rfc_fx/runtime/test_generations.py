"""Laws O1 to O8: a generation owns its state, and what it gives is what it gives alone, whatever else runs."""

import asyncio
import gc
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, HeunDiscreteScheduler
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from sampler_loops import LISTED, Loop, tiny
from torch import Tensor, nn

import rfc
import rfc_fx
from rfc.arguments import timestep_value
from rfc_fx.runtime import calls, driver, generation, timetable
from rfc_fx.runtime.calls import timestep_ends
from rfc_fx.runtime.pool import MAX_FREE
from rfc_fx.runtime.program_cache import MAX_SIGNATURES

pytestmark = pytest.mark.usefixtures("captured_once")

SIZE = 8
STEPS = 7
RFC = rfc.RFC(tau=0.3)


class Small(nn.Module):
    """A residual model with the least to it: two blocks, conditioned on timestep and label."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, SIZE)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(SIZE, 2 * SIZE), nn.GELU(), nn.Linear(2 * SIZE, SIZE)) for _ in range(2))

    def forward(self, hidden_states: Tensor, timestep: Tensor, label: Tensor) -> Tensor:
        shift = self.embed(label) + timestep[:, None] / 1000
        for block in self.blocks:
            hidden_states = hidden_states + block(nn.functional.layer_norm(hidden_states, (SIZE,)) + shift[:, None])
        return hidden_states


def small() -> Small:
    torch.manual_seed(0)
    return Small().eval()


NET = small()


class Request:
    """One generation of one sample, a step at a time."""

    def __init__(self, label: int, seed: int, start: int = 0) -> None:
        self.x = torch.randn(1, 4, SIZE, generator=torch.Generator().manual_seed(seed))
        self.label, self.index = torch.tensor([label]), start

    @torch.no_grad()
    def step(self, model: Callable[..., Tensor]) -> Tensor:
        timestep = torch.tensor([1000.0 * (STEPS - self.index) / STEPS])
        self.x = 0.7 * self.x + 0.3 * model(hidden_states=self.x, timestep=timestep, label=self.label)
        self.index += 1
        return self.x

    @property
    def is_done(self) -> bool:
        return self.index == STEPS


@lru_cache
def cached(method: rfc.Method) -> rfc_fx.CachedModel:
    return rfc_fx.transform(NET, method)


@lru_cache
def alone(method: rfc.Method, label: int, seed: int, start: int) -> tuple[Tensor, ...]:
    """What every step of a request gives on a model that nobody else uses."""
    model, request = rfc_fx.transform(NET, method), Request(label, seed, start)
    return tuple(request.step(model) for _ in range(STEPS - start))


class Slot:
    """A place where one request after the other runs: in an opened generation, or unnamed or named in a thread of its own."""

    def __init__(self, model: rfc_fx.CachedModel, method: rfc.Method, kind: str, number: int) -> None:
        self.model, self.method, self.kind, self.number = model, method, kind, number
        self.thread = None if kind == "opened" else ThreadPoolExecutor(1)
        self.opened: ExitStack | None = None
        self.count = 0
        self.begin()

    def begin(self) -> None:
        """The labels and seeds of the slots are alike on purpose."""
        self.count += 1
        self.label, self.seed, self.start = self.count % 2, (self.number + self.count) % 3, (0, 0, 3)[self.count % 3]
        self.request = Request(self.label, self.seed, self.start)
        if self.kind == "opened":
            self.opened = ExitStack()
            self.call: Callable[..., Tensor] = self.opened.enter_context(self.model.generation())
        else:
            self.call = self.model

    def _here(self) -> Tensor:
        if self.kind == "named":
            with self.model.cache_context("cond"):
                return self.request.step(self.call)
        return self.request.step(self.call)

    def step(self) -> None:
        at = self.request.index - self.start
        got = self._here() if self.thread is None else self.thread.submit(self._here).result()
        assert torch.equal(got, alone(self.method, self.label, self.seed, self.start)[at])
        if self.request.is_done:
            self.end()

    def end(self) -> None:
        """Finished or cancelled: the next request of this slot begins."""
        self._close()
        self.begin()

    def _close(self) -> None:
        if self.opened is not None:
            self.opened.close()
        elif self.thread is not None:
            self.thread.submit(self.model.reset).result()

    def close(self) -> None:
        self._close()
        if self.thread is not None:
            self.thread.shutdown()


KINDS = ("opened", "opened", "opened", "unnamed", "named", "named")


@contextmanager
def slots(method: rfc.Method) -> Iterator[list[Slot]]:
    made = [Slot(cached(method), method, kind, number) for number, kind in enumerate(KINDS)]
    try:
        yield made
    finally:
        for slot in made:
            slot.close()


def interleaved(method: rfc.Method, order: list[tuple[int, int]]) -> None:
    """Steps of up to six generations in any order; one in twelve is cancelled instead."""
    with slots(method) as made:
        for number, action in order:
            made[number].end() if action == 0 else made[number].step()


ORDERS = given(
    method=st.sampled_from([LISTED, RFC]),
    order=st.lists(st.tuples(st.integers(0, len(KINDS) - 1), st.integers(0, 11)), min_size=4, max_size=16),
)


@settings(max_examples=100, deadline=None, phases=[Phase.generate])
@ORDERS
def test_o1_in_any_interleaving_each_gives_what_it_gives_alone(method: rfc.Method, order: list[tuple[int, int]]) -> None:
    interleaved(method, order)


@pytest.mark.slow  # more of the same
@settings(max_examples=2000, deadline=None, phases=[Phase.generate])
@ORDERS
def test_o1_in_thousands_of_interleavings(method: rfc.Method, order: list[tuple[int, int]]) -> None:
    interleaved(method, order)


def test_what_is_compared_with_is_no_full_computation() -> None:
    request = Request(0, 0)
    full = [request.step(NET) for _ in range(STEPS)]
    for method in (LISTED, RFC):
        assert not torch.equal(alone(method, 0, 0, 0)[-1], full[-1])


def test_o2_no_state_has_two_owners_and_memory_is_that_of_one_generation() -> None:
    model = rfc_fx.transform(NET, LISTED)
    for _ in range(3):
        with model.generation() as first, model.generation() as second:
            for generation in (first, second):
                Request(0, 0).step(generation)
            pointers = [[tensor.data_ptr() for context in each for tensor in context.tensors()] for each in (first, second)]
            assert not set(pointers[0]) & set(pointers[1])
    assert len(model.driver.generations) == 2  # those that ran at once
    with ExitStack() as opened:
        for each in [opened.enter_context(model.generation()) for _ in range(MAX_FREE + 3)]:
            Request(0, 0).step(each)
    assert len(model.driver.generations) == MAX_FREE


def test_o2_a_context_that_was_used_under_a_name_is_used_under_it_again() -> None:
    model, seen = rfc_fx.transform(NET, LISTED), []
    for names in (("cond", "uncond"), ("uncond", "cond")):
        with model.generation() as generation:
            for name in names:
                with model.cache_context(name):
                    Request(0, 0).step(model)
            seen.append({name: id(context) for (name, _), context in generation._lanes.items()})
    assert seen[0] == seen[1]


def test_state_of_threads_and_tasks_that_are_gone_is_used_again() -> None:
    model = rfc_fx.transform(
        NET, LISTED, example_inputs={"hidden_states": Request(0, 0).x, "timestep": torch.ones(1), "label": torch.ones(1).long()}
    )
    for _ in range(2):
        thread = threading.Thread(target=Request(0, 0).step, args=(model,))
        thread.start()
        thread.join()
        del thread
        gc.collect()
    assert len(model.driver.generations) == 1


def test_o3_ending_one_generation_ends_no_other() -> None:
    model = cached(LISTED)
    with model.generation() as outer:
        request = Request(1, 1)
        request.step(model)
        with model.generation() as inner:
            Request(1, 2).step(model)
            model.reset()
            assert not len(inner)
        assert len(outer) == 1
        while not request.is_done:
            request.step(outer)
    assert torch.equal(request.x, alone(LISTED, 1, 1, 0)[-1])


def test_a_call_after_the_end_is_an_error_with_the_way_out() -> None:
    with cached(LISTED).generation() as generation:
        pass
    with pytest.raises(rfc_fx.RFCError, match=r"^Small: this generation has ended; open another with model.generation\(\)"):
        Request(0, 0).step(generation)


def test_records_are_those_of_the_generation() -> None:
    model = cached(LISTED)
    with model.generation() as first:
        request = Request(0, 0)
        for _ in range(4):
            request.step(model)
        with model.generation() as second:
            Request(0, 0).step(model)
            assert model.stats.step == 1
        assert model.stats.step == 4
    assert (first.stats.step, second.stats.step) == (4, 1)
    assert model.contexts["default"].step == 4
    assert "4" in str(model.summary())


# ---- windows, prompts, samplers --------------------------------------------------------------------------------------


def test_windows_of_one_prompt_are_lanes_of_their_own_in_a_generation_and_computed_in_full_where_nobody_opened_one() -> None:
    model = rfc_fx.transform(NET, LISTED)
    windows = [Request(0, seed) for seed in range(3)]
    with model.generation() as generation:
        for _ in range(STEPS):
            for window in windows:
                window.step(model)
    assert list(generation.contexts) == ["default", "default #2", "default #3"]
    assert all(torch.equal(window.x, alone(LISTED, 0, seed, 0)[-1]) for seed, window in enumerate(windows))

    model, windows = rfc_fx.transform(NET, LISTED), [Request(0, seed) for seed in range(3)]
    plain = [Request(0, seed) for seed in range(3)]

    def run() -> bool:
        return all(torch.equal(one.step(model), full.step(NET)) for _ in range(STEPS) for one, full in zip(windows, plain, strict=True))

    with pytest.warns(rfc_fx.UncertainCallWarning, match=r"^Small: the latent of a call is not .*windows or tiles.*model.generation\(\)"):
        assert run()


@pytest.mark.parametrize("prompts", [5, 9])
def test_more_prompts_than_can_be_told_apart_elsewhere_are_right_in_a_generation(prompts: int) -> None:
    """Conditionings that come back within a generation are groups of it, and what makes room is computed in full."""
    net = tiny()
    model = rfc_fx.transform(net, LISTED)
    loops = [Loop(label, label) for label in range(prompts)]
    with model.generation(), warnings.catch_warnings():
        warnings.simplefilter("error")
        while not loops[0].is_done:
            for loop in loops:
                loop.step(model)
    for label in (0, prompts - 1):
        assert torch.equal(loops[label].x, Loop(label, label).run(rfc_fx.transform(net, LISTED)))


@pytest.mark.parametrize("start", [0, 2, 4])
@pytest.mark.parametrize("method", [LISTED, RFC], ids=str)
def test_a_cancelled_generation_leaves_nothing_behind(method: rfc.Method, start: int) -> None:
    """The next one begins at the same, a higher or a lower noise."""
    model, request = cached(method), Request(1, 0)

    def interrupted() -> None:
        with model.generation():
            for _ in range(3):
                request.step(model)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with model.generation():
        request = Request(1, 1, start)
        got = [request.step(model) for _ in range(STEPS - start)]
    assert torch.equal(got[-1], alone(method, 1, 1, start)[-1])


def test_generations_of_one_step_at_any_noise_are_full() -> None:
    model = cached(LISTED)
    for index in (5, 3, 1, 1, 2, 4):
        with model.generation():
            assert torch.equal(Request(1, index, index).step(model), Request(1, index, index).step(NET))


def heun() -> Any:
    scheduler = HeunDiscreteScheduler()
    scheduler.set_timesteps(6)
    return scheduler


@torch.no_grad()
def sampled(model: Callable[..., Tensor], scheduler: Any, seed: int = 0) -> Tensor:
    x = torch.randn(1, 4, SIZE, generator=torch.Generator().manual_seed(seed)) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        noise = model(hidden_states=scheduler.scale_model_input(x, t), timestep=t.float().expand(1), label=torch.tensor([1]))
        x = scheduler.step(noise, t, x).prev_sample
    return x


def test_a_sampler_of_second_order_is_one_lane_where_the_scheduler_is_known() -> None:
    model, scheduler = rfc_fx.transform(NET, LISTED), heun()
    with model.generation(source=scheduler) as generation:
        x = sampled(model, scheduler)
    assert list(generation.contexts) == ["default"]
    assert "ESTIMATE" in generation.stats.phases
    model.follow(scheduler)
    scheduler.set_timesteps(6)
    assert torch.equal(sampled(model, scheduler), x)  # by itself, with the source known


# ---- what is known of the sampler ------------------------------------------------------------------------------------


def test_o4_nothing_is_read_from_the_device_where_timesteps_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A timestep counts as on a device; every look at one is counted."""
    reads: list[int] = []
    monkeypatch.setattr(calls, "on_host", lambda value: False)

    def counted(read: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
        return lambda value: (reads.append(1), read(value))[1]

    for module, read in ((timetable, timestep_value), (generation, timestep_value), (driver, timestep_ends)):
        monkeypatch.setattr(module, read.__name__, counted(read))
    model = rfc_fx.transform(NET, LISTED)
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(STEPS)
    x = Request(0, 0).x
    with torch.no_grad(), model.generation(source=scheduler) as opened:
        for t in scheduler.timesteps:
            model(hidden_states=x, timestep=t.expand(1), label=torch.tensor([1]))
    assert len(reads) == 1  # what the pipeline makes of the scheduler's timesteps, in the first call
    assert opened.stats.phases == ["FULL" if step in (0, 1, 4) else "ESTIMATE" for step in range(STEPS)]


@pytest.mark.parametrize(("steps", "shift"), [(10, 1.0), (10, 5.0), (14, 3.0)])
def test_o5_full_steps_are_placed_for_the_generations_own_levels(steps: int, shift: float) -> None:
    model = cached(rfc.LogSNR(nfc=4))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    with model.generation(source=scheduler) as generation:
        scheduler.set_timesteps(steps)
        sampled(model, _Flow(scheduler))
    placed = rfc.LogSNR(FlowMatchEulerDiscreteScheduler(shift=shift), steps, 4).schedule.full_steps
    assert [step for step, phase in enumerate(generation.stats.phases) if phase == "FULL"] == list(placed)


class _Flow:
    """The scheduler's loop without what flow matching has no need of."""

    init_noise_sigma = 1.0

    def __init__(self, scheduler: Any) -> None:
        self.timesteps, self.step = scheduler.timesteps, scheduler.step

    def scale_model_input(self, x: Tensor, t: Tensor) -> Tensor:
        return x


def test_where_the_levels_are_not_known_every_step_is_full_and_that_is_said() -> None:
    model, request, plain = rfc_fx.transform(NET, rfc.LogSNR()), Request(0, 0), Request(0, 0)
    with pytest.warns(rfc_fx.UnknownLevelsWarning, match=r"^Small: .*every step is computed in full; use rfc_fx.accelerate\(pipe\)"):
        assert torch.equal(request.step(model), plain.step(NET))
    assert torch.equal(request.step(model), plain.step(NET))


def test_calls_that_were_left_out_are_followed_by_a_full_step() -> None:
    """Guidance that is off for some steps: what the state holds is too old."""
    model = cached(rfc.TaylorSeer(interval=4, order=1))
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(10)
    with torch.no_grad(), model.generation(source=scheduler) as generation:
        for index, t in enumerate(scheduler.timesteps):
            for name in ("cond",) if 4 <= index < 7 else ("cond", "uncond"):
                with model.cache_context(name):
                    model(hidden_states=Request(0, index).x, timestep=t.float().expand(1), label=torch.tensor([1]))
    assert "".join(phase[0] for phase in generation.contexts["uncond"].phases) == "FFEEFFE"


@pytest.mark.parametrize(("timesteps", "source"), [([], None), ([[1.0]], None), (["late"], None), ([1.0], DDIMScheduler())])
def test_wrong_arguments_of_a_generation(timesteps: Any, source: Any) -> None:
    with pytest.raises(ValueError, match=r"^generation: "):
        cached(LISTED).generation(timesteps, source=source)


# ---- samples with decisions of their own ------------------------------------------------------------------------------


class Batch:
    """A batch of requests, one row each, some at other noise levels than others."""

    def __init__(self, *requests: Request) -> None:
        self.requests = requests

    @torch.no_grad()
    def step(self, model: Callable[..., Tensor]) -> None:
        timesteps = torch.tensor([1000.0 * (STEPS - request.index) / STEPS for request in self.requests])
        x, labels = (torch.cat(parts) for parts in zip(*((request.x, request.label) for request in self.requests), strict=True))
        for request, row in zip(self.requests, model(hidden_states=x, timestep=timesteps, label=labels).split(1), strict=True):
            request.x, request.index = 0.7 * request.x + 0.3 * row, request.index + 1


def per_sample() -> Any:
    return rfc_fx.transform(NET, RFC, config=rfc_fx.Config(decision="per_sample"))


def test_named_samples_keep_their_state_wherever_they_stand() -> None:
    """The first leaves after four steps, the second moves up, a third comes in."""
    model, requests = per_sample(), [Request(0, seed) for seed in range(3)]
    with model.generation():
        for present in ((0, 1),) * 4 + ((1, 2),) * 3 + ((2,),) * 4:
            with model.samples([f"request {row}" for row in present]):
                Batch(*(requests[row] for row in present)).step(model)
    assert requests[0].index == 4
    assert torch.equal(requests[0].x, alone(RFC, 0, 0, 0)[3])
    assert all(torch.equal(requests[row].x, alone(RFC, 0, row, 0)[-1]) for row in (1, 2))


def test_a_name_ends_with_its_block_where_each_sample_decides_too() -> None:
    """In the block the samples take turns; behind it neither the name nor the last sample stands here."""
    model, cond, plain = per_sample(), Request(0, 0), Request(0, 1)
    for _ in range(3):
        with model.cache_context("cond"):
            Batch(cond).step(model)
        Batch(plain).step(model)
    assert list(model.contexts) == ["cond[0]", "default[0]"]
    assert torch.equal(plain.x, alone(RFC, 0, 1, 0)[2])


def test_blocks_that_are_left_in_another_order_hold_nothing() -> None:
    """As in a server that opens the next request's generation before it closes the last one's."""
    model = cached(LISTED)
    generations, last = model.driver.generations, model.generation()
    last.__enter__()
    for _ in range(20):
        following = model.generation()
        following.__enter__()
        last.__exit__(None, None, None)
        last = following
    here, depth = generations._here.get(), 0
    while here.outer is not None:
        here, depth = here.outer, depth + 1
    assert depth <= 3
    last.__exit__(None, None, None)
    assert not generations.current().is_opened


def test_unnamed_samples_whose_number_changes_begin_anew_and_that_is_said() -> None:
    model, requests, plain = per_sample(), [Request(0, seed) for seed in range(2)], Request(0, 1)
    with model.generation():
        for _ in range(4):
            Batch(*requests).step(model)
        plain.x, plain.index = requests[1].x, requests[1].index
        with pytest.warns(rfc_fx.UncertainCallWarning, match="the batch had 2 samples and has 1 within one generation"):
            Batch(requests[1]).step(model)
        Batch(plain).step(NET)
    assert torch.equal(requests[1].x, plain.x)


def row(x: Tensor, index: int, label: int = 0) -> Request:
    """A request under way."""
    request = Request(label, 0)
    request.x, request.index = x, index
    return request


@pytest.mark.parametrize("opens", [True, False], ids=["opened", "by itself"])
@pytest.mark.parametrize("change", ["places", "places and labels", "newcomer", "moved up"])
def test_unnamed_rows_that_are_others_than_before_are_computed_and_that_is_said(opens: bool, change: str) -> None:
    """As many samples as before, at the same noise."""
    model = rfc_fx.transform(NET, LISTED, config=rfc_fx.Config(decision="per_sample"))
    first, second, third = Request(0, 0), Request(int(change == "places and labels"), 1), Request(0, 2)
    with model.generation() if opens else ExitStack():
        for _ in range(3):
            Batch(first, second).step(model)
        third.index = 3
        now = {"newcomer": (third, second), "moved up": (second, third)}.get(change, (second, first))
        expected = [row(each.x, each.index, int(each.label)) for each in now]
        with pytest.warns(
            rfc_fx.UncertainCallWarning, match=r"^Small: a row of a batch does not follow .*model.samples\(names\)|of a call"
        ):
            Batch(*now).step(model)
        kept = [change == "newcomer" and each is second for each in now]
        for each, plain, is_kept in zip(now, expected, kept, strict=True):
            full = plain.step(NET)
            assert torch.equal(each.x, full) is not is_kept


def test_rows_that_begin_with_the_same_noise_are_told_apart() -> None:
    model, requests = per_sample(), [Request(label, 0) for label in range(4)]
    with model.generation():
        while not requests[0].is_done:
            Batch(*requests).step(model)  # warnings are errors
    assert all(torch.equal(request.x, alone(RFC, label, 0, 0)[-1]) for label, request in enumerate(requests))


@pytest.mark.parametrize("opens", [True, False], ids=["opened", "by itself"])
def test_calls_of_many_other_shapes_take_no_state_of_a_generation_or_that_is_said(opens: bool) -> None:
    model, request, plain = rfc_fx.transform(NET, LISTED), Request(0, 0), Request(0, 0)

    def others() -> None:
        for count in range(2, MAX_SIGNATURES + 3):
            with model.generation() as other:
                Batch(*[Request(1, 1)] * count).step(other)

    with model.generation() if opens else ExitStack():
        for _ in range(3):
            request.step(model)
        others()
        if opens:
            while not request.is_done:
                request.step(model)
            assert torch.equal(request.x, alone(LISTED, 0, 0, 0)[-1])
        else:
            plain.x, plain.index = request.x, request.index
            with pytest.warns(rfc_fx.UncertainCallWarning, match=r"^Small: calls of so many other shapes came between"):
                assert torch.equal(request.step(model), plain.step(NET))
    others()
    assert len(model.cache) == MAX_SIGNATURES


@pytest.mark.parametrize("names", [["a", "a"], ["a", 1], ["", "b"]])
def test_names_of_samples_are_texts_and_differ(names: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"^samples: expected a name for each sample of the batch, all different"):
        per_sample().samples(names)


def test_a_name_for_each_sample() -> None:
    model = per_sample()
    with (
        pytest.raises(rfc_fx.SignatureError, match=r"^Small: samples: 2 names for a batch of 1: a, b; give one for each"),
        model.samples(["a", "b"]),
    ):
        Batch(Request(0, 0)).step(model)


def test_a_rising_timestep_that_nobody_explained_is_said() -> None:
    """The latents follow from one another; those of requests of one step each do not, and all of these are computed in full."""
    model, request = rfc_fx.transform(NET, LISTED), Request(1, 0)

    def rise() -> None:
        for request.index in (5, 3, 1):
            request.step(model)

    with pytest.warns(rfc_fx.RisingTimestepWarning, match=r"requests of one step each, open model.generation\(\)"):
        rise()
    model = rfc_fx.transform(NET, LISTED)
    for index in (5, 4, 3, 2, 1):
        assert torch.equal(Request(1, index, index).step(model), Request(1, index, index).step(NET))
    request = Request(1, 0)
    assert torch.equal([request.step(model) for _ in range(STEPS)][-1], alone(LISTED, 1, 0, 0)[-1])


# ---- threads and tasks -----------------------------------------------------------------------------------------------


def test_threads_under_the_same_name_and_tasks_without_any_do_not_mix() -> None:
    model = cached(RFC)

    def run(seed: int) -> Tensor:
        request = Request(0, seed)
        with model.cache_context("cond"):
            while not request.is_done:
                request.step(model)
        return request.x

    with ThreadPoolExecutor(3) as threads:
        together = list(threads.map(run, range(3)))

    async def task(seed: int) -> Tensor:
        request = Request(0, seed)
        while not request.is_done:
            await asyncio.sleep(0)
            request.step(model)
        return request.x

    async def tasks() -> list[Tensor]:
        return list(await asyncio.gather(*map(task, range(3))))

    for results in (together, asyncio.run(tasks())):
        assert all(torch.equal(x, alone(RFC, 0, seed, 0)[-1]) for seed, x in enumerate(results))


def test_a_generation_goes_with_the_tasks_and_threads_that_are_started_inside() -> None:
    model = cached(RFC)

    async def request(seed: int) -> Tensor:
        one = Request(0, seed)
        with model.generation():
            while not one.is_done:
                await asyncio.to_thread(one.step, model)
        return one.x

    async def together() -> list[Tensor]:
        return list(await asyncio.gather(*map(request, range(3))))

    assert all(torch.equal(x, alone(RFC, 0, seed, 0)[-1]) for seed, x in enumerate(asyncio.run(together())))
