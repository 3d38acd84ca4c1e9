"""What is timed: warm-ups in which every path of programs runs, bytes, gaps between kernels, recordings of CUDA graphs."""

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gpu_bench import CPU, ONE_BLOCK, bench

import rfc
import rfc_fx
from benchmarks.gpu.entries import entries, prepare
from benchmarks.gpu.graphs import recordings
from benchmarks.gpu.idle import covered, estimate_alone, longest_gap
from benchmarks.gpu.plan import Row
from benchmarks.gpu.workloads import TINY_DIT, built
from benchmarks.latency.compiling import first_runs
from benchmarks.latency.methods import equal_gaps
from benchmarks.latency.timing import TimedVariant
from benchmarks.latency.workloads import calls_of


def test_the_warm_up_runs_every_sequence_of_programs_that_is_counted() -> None:
    """CUDA graphs are recorded for each sequence within a step; a discarded estimate before FULL is one."""
    model = built(ONE_BLOCK, CPU, torch.float32)
    calls = calls_of(ONE_BLOCK, model, 1, 10, CPU, torch.float32)
    plan = equal_gaps(10, 4)
    method = rfc.Method(estimator=rfc.RFE(order=1), schedule=plan)
    cached = rfc_fx.transform(model, method, example_inputs=calls[0], config=rfc_fx.Config(speculate=True))
    steps: list[list[str]] = []
    for phase, program in cached.programs.items():
        program.run.register_forward_pre_hook(lambda *_, phase=phase: steps[-1].append(phase))

    def step(**arguments: Any) -> Any:
        steps.append([])
        return cached(**arguments)

    variant = TimedVariant("", step, cached)
    first_runs(variant, calls, plan.warmup, CPU)
    warmed = [tuple(programs) for programs in steps]
    steps.clear()
    variant.run(calls, CPU, count=True)
    counted = {tuple(programs) for programs in steps}
    assert ("PREFIX", "ESTIMATE", "FULL") in counted
    assert {programs: warmed.count(programs) >= 2 for programs in counted} == dict.fromkeys(counted, True)


def test_what_libraries_make_when_they_are_imported_is_not_made_on_the_device() -> None:
    seen: list[bool] = []

    def model() -> Any:
        seen.append("diffusers.models.transformers.transformer_wan" in sys.modules)
        return torch.nn.Linear(1, 1)

    assert built(replace(TINY_DIT, model=model), torch.device("meta"), torch.bfloat16).weight.is_meta
    assert seen == [True]


def test_kernels_that_overlap_count_once_and_gaps_are_between_them() -> None:
    spans = [(0, 10), (2, 5), (8, 12), (20, 21)]
    assert (covered(spans), longest_gap(spans), longest_gap([])) == (13, 8, 0)


def test_recordings_are_the_nodes_of_all_trees() -> None:
    leaf = SimpleNamespace(children={})
    assert recordings([SimpleNamespace(children={1: [leaf, leaf], 2: [SimpleNamespace(children={3: [leaf]})]}), leaf]) == 6


@pytest.mark.compile
@pytest.mark.slow
def test_inductor_counts_the_bytes_of_an_estimated_step() -> None:
    where = bench("inductor")
    model = built(ONE_BLOCK, CPU, torch.float32)
    calls = calls_of(ONE_BLOCK, model, 1, 10, CPU, torch.float32)
    plan = equal_gaps(10, 4)
    (entry,) = entries(where, [Row(method="RFE m=1", way="compiled", expected_s=1)], model, calls, plan)
    prepare(where, entry, calls, plan.warmup)
    taken = estimate_alone(where, entry)
    assert entry.variant is not None
    state = entry.variant.cache.plan().state_bytes
    assert state / 2 <= taken["inductor_bytes"] <= 4 * state  # part of the state is PREFIX's; so small a model reads as much beside it
    assert taken["compiled_anew"] == 0
