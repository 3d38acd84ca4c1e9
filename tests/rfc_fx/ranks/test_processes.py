"""Two processes that share one sequence: the output and the decisions of one process, and an error on every rank where one goes wrong."""

from collections.abc import Iterator

import pytest
import rank_programs
import torch
from rank_programs import Case
from ranks import Workers

import rfc
import rfc_fx

CLOSE = 1e-5
"""Largest difference of outputs in float32: sums over heads and tokens in another order."""
EIGHT_BITS = 1e-4
"""The same where a difference is stored in eight bits, one of which it may cross."""

Config = rfc_fx.Config
NEWTON = Case(rfc.NewtonRCS(tau=0.1))
METHODS = [
    Case(rfc.RFC(tau=0.1)),
    Case(rfc.RFC(tau=0.2, order=2)),
    Case(rfc.Method(estimator=rfc.Projective(), schedule=rfc.RCS(tau=0.1))),
    Case(rfc.Method(estimator=rfc.RFE(norm="token"), schedule=rfc.RCS(tau=0.1, over="max"))),
    Case(rfc.TaylorSeer(interval=3, order=1)),
    Case(rfc.TeaCache(threshold=0.1)),
    Case(rfc.FirstBlockCache(threshold=0.3)),
    Case(rfc.DiCache(threshold=0.1)),
    Case(rfc.SpeCa(base=0.1)),
]
CONFIGURATIONS = [
    Case(rfc.RFC(tau=0.1), config)
    for config in (
        Config(hoist=True, regional=True),
        Config(granularity="block"),
        Config(granularity="stack"),
        Config(state_dtype=torch.int8),
        Config(decision="per_sample"),
        Config(dispatch="cond"),
        Config(speculate=True),
    )
]


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Workers(2) as started:
        yield started


def check(workers: Workers, family: str, cases: list[Case], layers: int = 1, kind: str = "ulysses", compiled: bool = False) -> None:
    by_rank = workers.run(rank_programs.compare, family, cases, 2, layers, kind, compiled, timeout=1_200 if compiled else 120)
    for failed in by_rank:
        if isinstance(failed, Exception):
            raise failed
    for case, outcomes in zip(cases, zip(*by_rank, strict=True), strict=True):
        for outcome in outcomes:
            assert outcome.difference < (CLOSE if case.config.state_dtype is None else EIGHT_BITS), case
            assert outcome.phases == outcome.alone, case
            assert outcome.state_share == pytest.approx(0.5, abs=0.01) or case.config.dispatch == "cond"  # which keeps a log, too
    assert any("ESTIMATE" in outcome.phases for outcome in by_rank[0])


def test_two_ranks_draw_and_decide_as_one_process(workers: Workers) -> None:
    check(workers, "wan", [Case(rfc.RFC(tau=0.1), Config(hoist=True))])


@pytest.mark.slow
@pytest.mark.parametrize("cases", [METHODS, CONFIGURATIONS], ids=["methods", "configurations"])
@pytest.mark.parametrize("family", ["flux", "wan", "qwen"])
def test_every_method_and_configuration_draws_and_decides_as_one_process(workers: Workers, family: str, cases: list[Case]) -> None:
    check(workers, family, cases, layers=2)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["flux", "wan"])
def test_ring_attention_draws_and_decides_as_one_process(workers: Workers, family: str) -> None:
    check(workers, family, [NEWTON, Case(rfc.RFC(tau=0.1), Config(hoist=True))], layers=2, kind="ring")


@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.parametrize("family", ["flux", "wan", "qwen"])
def test_compiled_programs_draw_and_decide_as_one_process(workers: Workers, family: str) -> None:
    check(workers, family, [Case(rfc.RFC(tau=0.1))], compiled=True)


@pytest.mark.slow
def test_the_trained_model_draws_and_decides_as_one_process(workers: Workers) -> None:
    for outcome in workers.run(rank_programs.digits, [Case(rfc.RFC(tau=0.15)), Case(rfc.NewtonRCS(tau=0.15))]):
        for difference, alone, phases in outcome:
            assert difference < CLOSE
            assert phases == alone


@pytest.mark.parametrize(
    ("fault", "named"),
    [("other method", "method"), ("other inputs", "inputs"), pytest.param("other weights", "weights", marks=pytest.mark.slow)],
)
def test_ranks_that_differ_are_told_so_before_a_collective(workers: Workers, fault: str, named: str) -> None:
    for kind, text, *_ in workers.run(rank_programs.draw, fault, NEWTON.method):
        assert kind == "RanksError"
        assert f"WanTransformer3DModel: ranks differ before the capture in their {named} (rank 0:" in text


def test_a_rank_that_dies_is_an_error_that_names_the_step(workers: Workers) -> None:
    (kind, text, *_, seconds), dead = workers.run(rank_programs.draw, "dies", rfc.FORA(interval=2), timeout=60)
    assert dead is None
    assert kind == "RanksError"
    assert "rank 0 of 2 lost the others in step 4 (FULL): a rank has died, stalls, or takes other steps" in text
    assert int(seconds) < 50  # not the group's timeout: the connection is closed


@pytest.mark.slow
def test_a_rank_that_stalls_is_an_error_within_the_timeout_of_the_group(workers: Workers) -> None:
    waiting, _ = workers.run(rank_programs.draw, "stalls", rfc.FORA(interval=2))
    assert waiting[0] == "RanksError"
    assert "lost the others in step 4 (FULL)" in waiting[1]
    assert "imed out" in waiting[1]


@pytest.mark.slow
def test_a_rank_that_raises_tells_the_others_why(workers: Workers) -> None:
    waiting, raising = workers.run(rank_programs.draw, "raises", rfc.FORA(interval=2))
    assert raising[0] == "MemoryError"
    assert any("rank 1 of 2 failed in step 4" in note for note in raising)
    assert waiting[0] == "RanksError"
    assert "rank 1 reported: step 4 (FULL): MemoryError: no memory for this step" in waiting[1]


@pytest.mark.slow
def test_a_model_that_changes_on_one_rank_alone_is_an_error_on_both(workers: Workers) -> None:
    waiting, changed = workers.run(rank_programs.draw, "changes", rfc.FORA(interval=2))
    assert {waiting[0], changed[0]} == {"RanksError"}
    assert "rank 1 waited 3 s for rank 0 before the capture, and rank 0 did not come to it" in changed[1]
    assert "lost the others in step" in waiting[1]


@pytest.mark.slow
def test_a_group_of_guidance_decides_as_one(workers: Workers) -> None:
    method = rfc.NewtonRCS(tau=0.4)
    cond, uncond = workers.run(rank_programs.guidance, method, True)
    assert cond == uncond
    assert "ESTIMATE" in cond[3:]
    apart = workers.run(rank_programs.guidance, method, False)
    assert apart[0] != apart[1]  # so that the group has something to join


@pytest.mark.slow
def test_a_sequence_that_is_split_within_a_generation_is_honoured_in_the_next_step(workers: Workers) -> None:
    for phases, difference in workers.run(rank_programs.late, rfc.FORA(interval=6, warmup=2)):
        assert phases == ["FULL", "FULL", "ESTIMATE"]  # a new record, with new programs
        assert difference < CLOSE
