"""Full steps of their own for guidance's calls without a condition: placed by the context's name, as the twin has them."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from families import FAMILIES
from torch import Tensor

import rfc
import rfc_fx
from rfc.conditioning import is_uncond
from rfc.eager import cached
from rfc.encoding import decode_method, encode_method
from rfc.placement.noise_levels import noise_levels

pytestmark = pytest.mark.usefixtures("captured_once")
STEPS = 12


def scheduler() -> Any:
    made = FlowMatchEulerDiscreteScheduler(shift=3.0)
    made.set_timesteps(STEPS)
    return made


def method(uncond: int | float | None = 3) -> rfc.Method:
    levels = noise_levels(scheduler())
    return rfc.LogSNR(lambdas=levels.lambdas, end=levels.end, is_flow=True, nfc=6, uncond_nfc=uncond)


@torch.no_grad()
def draw(model: Any, call: dict[str, Any], names: tuple[str, str] = ("cond", "uncond"), guided: range = range(STEPS)) -> Tensor:
    x, sampler = call["hidden_states"][:1], scheduler()
    given = {name: value[:1] for name, value in call.items() if name not in ("hidden_states", "timestep", "return_dict")}
    for i, t in enumerate(sampler.timesteps):
        outputs = []
        for name, scale in zip(names, (1.0, 0.5), strict=True):
            if name == "uncond" and i not in guided:
                continue
            texts = {key: scale * value for key, value in given.items() if key in ("encoder_hidden_states", "pooled_projections")}
            with model.cache_context(name):
                outputs.append(model(hidden_states=x, timestep=t.expand(1), return_dict=False, **(given | texts))[0])
        x = sampler.step(outputs[-1] + 2.0 * (outputs[0] - outputs[-1]), t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("dispatch", ["host", "cond"])
def test_each_pass_has_its_own_full_steps_as_in_the_twin(dispatch: Any) -> None:
    model, call = FAMILIES["sd3"](layers=2)
    source = scheduler()
    twin, transformed = cached(model, method()), rfc_fx.transform(model, method(), config=rfc_fx.Config(dispatch=dispatch))
    expected = draw(twin, call)
    with transformed.generation(source=source) as generation:
        drawn = draw(transformed, call)
    assert {name: record.nfc for name, record in generation.contexts.items()} == {"cond": 6, "uncond": 3}
    assert {name: record.phases for name, record in generation.contexts.items()} == {n: r.phases for n, r in twin.contexts.items()}
    torch.testing.assert_close(drawn, expected, rtol=1e-5, atol=1e-5)


def test_both_are_placed_for_each_generations_own_levels() -> None:
    model, call = FAMILIES["sd3"](layers=2)
    source = scheduler()
    transformed = rfc_fx.transform(model, rfc.LogSNR(nfc=0.5, uncond_nfc=0.25), source=source)
    assert transformed.method == rfc.LogSNR(nfc=0.5, uncond_nfc=0.25, is_flow=True)
    with transformed.generation(source=source) as generation:
        draw(transformed, call)
    assert {name: record.nfc for name, record in generation.contexts.items()} == {"cond": 6, "uncond": 3}
    transformed.method = rfc.LogSNR(nfc=0.5)  # the same programs
    with transformed.generation(source=source) as generation:
        draw(transformed, call)
    assert {record.nfc for record in generation.contexts.values()} == {6}


def test_guidance_within_an_interval_skips_the_calls_outside() -> None:
    model, call = FAMILIES["sd3"](layers=2)
    source, transformed = scheduler(), rfc_fx.transform(model, method(uncond=None))
    with transformed.generation(source=source) as generation:
        draw(transformed, call, guided=range(4, 9))
    cond, uncond = (generation.contexts[name] for name in ("cond", "uncond"))
    assert (len(cond.phases), cond.nfc, len(uncond.phases)) == (STEPS, 6, 5)
    assert uncond.phases[0] == "FULL"
    assert uncond.phases[1:] == cond.phases[5:9]


def test_a_generation_without_such_calls_says_so_once() -> None:
    model, call = FAMILIES["sd3"](layers=2)
    source, transformed = scheduler(), rfc_fx.transform(model, method())
    said = "uncond_nfc was not used: no call of a generation was named 'uncond', only a, b"
    with pytest.warns(rfc_fx.UnknownPassWarning, match=said), transformed.generation(source=source):
        draw(transformed, call, ("a", "b"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with transformed.generation(source=source):
            draw(transformed, call, ("a", "b"))


def test_names_of_contexts_without_a_condition() -> None:
    assert all(map(is_uncond, ("uncond", "uncond/2", "uncond #2", "uncond[3]")))
    assert not any(map(is_uncond, ("", "cond", "unconditional", "default", "cond[uncond]")))


@pytest.mark.parametrize("wrong", [0, 1.5, True, "3"])
def test_a_wrong_number_is_named(wrong: Any) -> None:
    with pytest.raises(ValueError, match="LogSNR: uncond_nfc must be"):
        rfc.LogSNR(uncond_nfc=wrong)


def test_more_than_there_are_steps_is_refused_where_it_is_said() -> None:
    with pytest.raises(ValueError, match=rf"LogSNR: uncond_nfc must be at most num_steps \({STEPS}\), got {STEPS + 1}"):
        method(uncond=STEPS + 1)


def test_two_threads_at_once_draw_what_each_draws_alone() -> None:
    model, call = FAMILIES["sd3"](layers=2)
    transformed, source = rfc_fx.transform(model, method()), scheduler()
    calls = [call, call | {"hidden_states": call["hidden_states"].flip(-1)}]

    def drawn(call: dict[str, Any]) -> Tensor:
        with transformed.generation(source=source):
            return draw(transformed, call)

    alone = [drawn(call) for call in calls]
    with ThreadPoolExecutor(2) as pool:
        for together in (list(pool.map(drawn, calls)) for _ in range(3)):
            assert all(map(torch.equal, together, alone))


def test_a_generation_that_is_cancelled_leaves_the_next_one_as_it_is() -> None:
    model, call = FAMILIES["sd3"](layers=2)
    transformed, source = rfc_fx.transform(model, method()), scheduler()

    def drawn() -> Tensor:
        with transformed.generation(source=source):
            return draw(transformed, call)

    def cancelled() -> None:
        with transformed.generation(source=source), transformed.cache_context("uncond"):
            transformed(**call | {"timestep": source.timesteps[:1].expand(len(call["hidden_states"]))})
            raise KeyboardInterrupt

    alone = drawn()
    with pytest.raises(KeyboardInterrupt):
        cancelled()
    assert torch.equal(drawn(), alone)


def test_it_is_written_to_a_method_file_and_older_ones_are_read() -> None:
    written = rfc.LogSNR(nfc=8, uncond_nfc=4)
    encoded = encode_method(written)
    assert decode_method(encoded) == written
    del encoded["schedule"]["uncond"]
    assert decode_method(encoded) == rfc.LogSNR(nfc=8)
