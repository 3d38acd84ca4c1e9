"""Programs of a sequence that lies on several ranks: the laws of their structure, each rank played in turn by this process."""

from collections.abc import Iterator
from functools import cache
from math import prod
from typing import Any

import pytest
import torch
from rank_programs import family
from ranks import fake_ranks, split

import rfc
import rfc_fx
from benchmarks.capturing import captured_once
from rfc_fx.ir.ops import value
from rfc_fx.passes.spread import collectives, name_of

pytestmark = pytest.mark.filterwarnings("ignore")  # torch warns of the fake group's work that nobody waits for

NEWTON = rfc.NewtonRCS(tau=0.1)
METHODS = {
    "RFC": rfc.RFC(tau=0.1),
    "RFC, order 2": rfc.RFC(tau=0.1, order=2),
    "per token": rfc.Method(estimator=rfc.RFE(norm="token"), schedule=rfc.RCS(tau=0.1)),
    "Projective": rfc.Method(estimator=rfc.Projective(), schedule=rfc.RCS(tau=0.1)),
    "NewtonRCS": NEWTON,
    "TaylorSeer": rfc.TaylorSeer(interval=3),
    "TeaCache": rfc.TeaCache(threshold=0.1),
    "EasyCache": rfc.EasyCache(threshold=0.1),
    "FirstBlockCache": rfc.FirstBlockCache(threshold=0.1),
    "DiCache": rfc.DiCache(threshold=0.1),
    "SpeCa": rfc.SpeCa(),
    "DeltaDiT": rfc.DeltaDiT(interval=2, first=0, last=1),
}
SEVERAL_BLOCKS = ("FirstBlockCache", "DiCache", "DeltaDiT")
"""Methods that leave blocks out, or probe some."""
SLOW = (*SEVERAL_BLOCKS, "RFC, order 2", "Projective")
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in METHODS]
NEEDS_NO_NORM = ("per token", "NewtonRCS", "TaylorSeer", "TeaCache", "EasyCache", "FirstBlockCache", "SpeCa", "DeltaDiT")
"""Methods whose estimates reduce nothing over tokens."""


def kinds(program: Any) -> list[str]:
    return [name_of(node) for node in collectives(program.graph.nodes)]


@pytest.fixture(scope="module", autouse=True)
def _once() -> Iterator[None]:
    with captured_once():
        yield


@pytest.fixture(scope="module")
def flux_of_two() -> Iterator[Any]:
    """FLUX with so many layers on the second of two ranks, with its arguments."""

    @cache
    def made(layers: int) -> Any:
        model, kwargs = family("flux", layers=layers)
        return split(model, 2), kwargs

    with fake_ranks(2, 1):
        yield made


@pytest.fixture(scope="module")
def transformed(flux_of_two: Any) -> Any:
    """The cached model of each method, made once."""

    @cache
    def made(name: str) -> Any:
        model, kwargs = flux_of_two(2 if name in SEVERAL_BLOCKS else 1)
        return rfc_fx.transform(model, METHODS[name], example_inputs=kwargs)

    return made


@pytest.mark.parametrize("name", NAMES)
def test_an_estimated_step_sends_its_output_and_norms_alone(transformed: Any, name: str) -> None:
    programs = transformed(name).programs
    estimate = kinds(programs["ESTIMATE"])
    assert estimate[-1] == "all_gather_into_tensor"  # the output's
    if name in NEEDS_NO_NORM:
        always = ["all_to_all_single"] * (4 * 3) if name == "DeltaDiT" else []  # the blocks outside the range are computed
        assert estimate[:-1] == always
    else:
        assert set(estimate[:-1]) == {"all_reduce"}
        assert len(estimate) - 1 <= len(transformed(name).guarded.sites)


@pytest.mark.parametrize("name", NAMES)
def test_a_decision_is_one_all_reduce_of_a_few_sums(transformed: Any, name: str) -> None:
    programs = transformed(name).programs
    for phase, program in programs.items():
        if "decision" not in program.results:
            continue
        reductions = [node for node in collectives(program.graph.nodes) if name_of(node) == "all_reduce"]
        assert len(reductions) == 1, phase
        assert prod(value(reductions[0]).shape) <= 8
        if phase == "PREFIX" and METHODS[name].probe is None:
            assert kinds(program) == ["all_reduce"]
    assert ("PREFIX" in programs) == bool(METHODS[name].schedule.watches)


@pytest.mark.parametrize("config", [rfc_fx.Config(hoist=True, regional=True), rfc_fx.Config(granularity="block", state_dtype=torch.int8)])
def test_configurations_keep_every_collective(flux_of_two: Any, transformed: Any, config: rfc_fx.Config) -> None:
    model, kwargs = flux_of_two(1)
    plain = transformed("NewtonRCS").plan().traffic
    assert rfc_fx.transform(model, NEWTON, example_inputs=kwargs, config=config).plan().traffic == plain


def test_traffic_is_what_the_collectives_send(transformed: Any) -> None:
    traffic = transformed("NewtonRCS").plan().traffic
    tokens, channels, ranks = 16 + 8, 32, 2
    exchanged = 4 * 2 * (2 * tokens // ranks * channels) * 4 * (ranks - 1) / ranks  # q, k, v and the output of two attentions, float32
    gathered = (2 * 16 // ranks * 4) * 4 * (ranks - 1)
    assert traffic["FULL"].sent_bytes == exchanged + gathered
    assert traffic["ESTIMATE"].sent_bytes == gathered
    assert traffic["PREFIX"].sent_bytes == 2 * 2 * 4  # two sums of two samples; a ring sends 2 (n - 1) / n of them


def test_another_method_has_another_digest(transformed: Any) -> None:
    one, other = (transformed(name).compiled.digest for name in ("TaylorSeer", "NewtonRCS"))
    assert one["ESTIMATE"] != other["ESTIMATE"]


def test_masks_travel_as_bytes(flux_of_two: Any) -> None:
    model, kwargs = family("qwen")
    cached = rfc_fx.transform(split(model, 2), rfc.FORA(interval=2), example_inputs=kwargs)
    gathered = [value(node) for node in collectives(cached.programs["FULL"].graph.nodes) if name_of(node) == "all_gather_into_tensor"]
    assert [each.dtype for each in gathered] == [torch.uint8, torch.float32]  # Inductor makes int64 of truth values
