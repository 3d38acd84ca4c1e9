"""Calls whose order tells a wrong story: tried again, from several threads, of other windows, rows that change places."""

import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from sampler_loops import LISTED, STEPS, Loop, tiny
from torch import Tensor
from torch._subclasses import FakeTensor

import rfc
import rfc_fx
from rfc_fx.runtime.succession import Succession

pytestmark = pytest.mark.usefixtures("captured_once")

NET = tiny()


@pytest.mark.parametrize("dispatch", ["host", "cond"])
def test_a_call_that_is_tried_again_takes_no_other_windows_place(dispatch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins anew, as its state may be half written; the other window goes on."""
    model, again = (rfc_fx.transform(NET, LISTED, config=rfc_fx.Config(dispatch=dispatch)) for _ in range(2))
    windows, failed = [Loop(3, 0), Loop(3, 1)], Loop(3, 0)
    failed.run(again, 3)
    again.reset()
    with model.generation():
        for step in range(STEPS):
            if step == 3:
                with monkeypatch.context() as patched:
                    _fail(model, patched)
                    with pytest.raises(MemoryError):
                        windows[0].step(model)
            for window in windows:
                window.step(model)
    assert torch.equal(windows[0].x, failed.run(again))
    assert torch.equal(windows[1].x, Loop(3, 1).run(again))


def _fail(model: Any, patched: pytest.MonkeyPatch) -> None:
    """Let the next run of a program end in an error."""

    def raise_it(*_: Any) -> Any:
        raise MemoryError("none left")

    built = next(iter(model.driver.generations)).compiled
    if built.counts_itself:
        patched.setitem(vars(built), "step", raise_it)
    for program in built.programs.values():
        patched.setattr(program.module, "forward", raise_it)


def test_one_loop_whose_calls_come_from_several_threads_is_computed_in_full_and_said() -> None:
    """`asyncio.to_thread` around each call: no thread has seen all of it."""
    model, loop, warned = rfc_fx.transform(NET, LISTED), Loop(3, 0), False
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(STEPS):
            output = (first, second)[step % 2].submit(loop.call, model).result()
            warned = warned or bool(caught)
            assert warned or torch.allclose(output, loop.call(NET), atol=1e-5)
            loop.take(output)
    assert {each.category for each in caught} == {rfc_fx.UncertainCallWarning}


@pytest.mark.parametrize("leaves", [True, False], ids=["leaves", "comes"])
def test_windows_whose_number_changes_are_said_and_computed_in_full(leaves: bool) -> None:
    model, windows = rfc_fx.transform(NET, rfc.TaylorSeer(interval=9, order=1)), [Loop(3, seed) for seed in range(3)]
    with model.generation(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(6):
            for window in windows if (step < 3) == leaves else windows[1:]:
                output = window.call(model)
                assert step != 4 or (caught and torch.equal(output, window.call(NET)))
                window.take(output)
    assert [each.category for each in caught] == [rfc_fx.UncertainCallWarning]


@pytest.mark.parametrize("dispatch", ["host", "cond"])
def test_what_was_abandoned_leaves_nothing_to_another_at_a_lower_noise(dispatch: Any) -> None:
    model = rfc_fx.transform(NET, LISTED, config=rfc_fx.Config(dispatch=dispatch))
    Loop(3, 0).run(model, 4)
    other, expected = Loop(3, 1, start=4), Loop(3, 1, start=4).run(rfc_fx.transform(NET, LISTED))
    with pytest.warns(rfc_fx.UncertainCallWarning):
        other.step(model)
    assert torch.allclose(other.run(model), expected, atol=1e-5)


@pytest.mark.parametrize("count", [2, 4, 5])
def test_rows_of_a_batch_that_change_places_are_computed_in_full_and_said(count: int) -> None:
    model, loops = rfc_fx.transform(NET, LISTED), [Loop(3, seed) for seed in range(count)]

    @torch.no_grad()
    def step(rows: list[Loop]) -> tuple[Tensor, Tensor]:
        timestep = rows[0].scheduler.timesteps[rows[0].step_index].expand(count)
        x, labels = torch.cat([row.x for row in rows]), torch.cat([row.label for row in rows])
        found, full = (net(x, timestep=timestep, class_labels=labels, return_dict=False)[0][:, :4] for net in (model, NET))
        for row, output in zip(rows, found.split(1), strict=True):
            row.take(output)
        return found, full

    for _ in range(4):
        step(loops)
    with pytest.warns(rfc_fx.UncertainCallWarning):
        found, full = step(loops[::-1])
    assert torch.equal(found, full)


@pytest.mark.parametrize("count", [2, 4, 5])
def test_a_sample_does_not_follow_from_another_samples_output(count: int) -> None:
    """An output that predicts noise is nearly the latent of its own sample."""
    draw = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(count, 4, 8, 8, generator=draw) for _ in range(2))
    output = x + 0.05 * noise
    following = 0.9 * x + 0.1 * output
    for y, follows in ((following, True), (following.roll(1, 0), False)):
        succession = Succession()
        run = succession.find(x, 900.0, None)
        succession.note(output)
        assert (succession.find(y, 800.0, run) is run) == follows


def test_unnamed_rows_that_change_places_in_an_opened_generation_with_known_timesteps_begin_anew() -> None:
    model, loops = rfc_fx.transform(NET, LISTED, config=rfc_fx.Config(decision="per_sample")), [Loop(3, 0), Loop(3, 1)]

    @torch.no_grad()
    def step(rows: list[Loop]) -> None:
        timestep = rows[0].scheduler.timesteps[rows[0].step_index].expand(2)
        x, labels = torch.cat([row.x for row in rows]), torch.cat([row.label for row in rows])
        found, full = (net(x, timestep=timestep, class_labels=labels, return_dict=False)[0][:, :4] for net in (model, NET))
        assert rows[0] is loops[0] or torch.allclose(found, full, atol=1e-5)
        for row, output in zip(rows, found.split(1), strict=True):
            row.take(output)

    with model.generation(timesteps=loops[0].scheduler.timesteps):
        for _ in range(4):
            step(loops)
        with pytest.warns(rfc_fx.UncertainCallWarning):
            step(loops[::-1])


def test_a_direction_ends_with_reset() -> None:
    """Inversion, `reset()`, then denoising."""
    model, inverted, loop = rfc_fx.transform(NET, LISTED), Loop(3, 0), Loop(3, 1)
    inverted.scheduler.timesteps = inverted.scheduler.timesteps.flip(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(STEPS):
            inverted.x = inverted.x + 0.05 * inverted.call(model)
            inverted.step_index += 1
    model.reset()
    assert model.driver.generations.current().sign == 1
    assert torch.equal(loop.run(model), Loop(3, 1).run(rfc_fx.transform(NET, LISTED)))


@pytest.fixture
def drawing() -> Iterator[list[Any]]:
    """A thread draws one generation after another with a model, while the test does something else; what it found."""
    net = tiny()
    model, found, stops = rfc_fx.transform(net, LISTED), list[Any](), threading.Event()
    expected = Loop(3, 0).run(model)

    def draw() -> None:
        while not stops.is_set():
            try:
                with model.generation():
                    drawn = Loop(3, 0).run(model)
            except Exception as error:
                found.append(repr(error))
            else:
                found.append("fake" if isinstance(drawn, FakeTensor) else torch.equal(drawn, expected))

    thread = threading.Thread(target=draw)
    thread.start()
    yield [model, found]
    stops.set()
    thread.join()


def test_a_capture_puts_no_fake_weight_into_a_model_that_runs(drawing: list[Any]) -> None:
    model, found = drawing
    for count in (2, 3, 4, 5):
        with model.generation(), torch.no_grad():
            model(torch.zeros(count, 4, 8, 8), timestep=torch.full((count,), 500), class_labels=torch.zeros(count, dtype=torch.long))
    while len(found) < 5:
        time.sleep(0.01)
    assert {*found} == {True}
