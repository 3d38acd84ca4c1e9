"""The same laws over 2, 4 and 8 ranks: sites, state, collectives, and programs that are the same on all."""

from typing import Any

import pytest
from rank_programs import family
from ranks import fake_ranks, split

import rfc
import rfc_fx
from rfc_fx.passes.spread import collectives, name_of

pytestmark = pytest.mark.filterwarnings("ignore")  # torch warns of the fake group's work that nobody waits for

NEWTON = rfc.NewtonRCS(tau=0.1)


def kinds(program: Any) -> list[str]:
    return [name_of(node) for node in collectives(program.graph.nodes)]


ATTENTIONS = {"flux": 2, "wan": 1, "qwen": 1}
"""Of models with one layer, those that communicate."""


@pytest.mark.parametrize(
    ("name", "size"),
    [("wan", 8)]
    + [
        pytest.param(n, size, marks=pytest.mark.slow)
        for n, size in (("flux", 4), ("flux", 8), ("wan", 2), ("wan", 4), ("qwen", 2), ("qwen", 4), ("qwen", 8))
    ],
)
def test_ranks_share_the_sites_and_the_state_and_make_the_same_programs(name: str, size: int) -> None:
    model, kwargs = family(name, heads=8)
    alone = rfc_fx.transform(model, NEWTON, example_inputs=kwargs)
    digests, sequences = [], []
    for rank in (0, size - 1):
        with fake_ranks(size, rank):
            parted = split(family(name, heads=8)[0], size)
            cached = rfc_fx.transform(parted, NEWTON, example_inputs=kwargs)
            plan = cached.plan()
            assert plan.sites == alone.plan().sites
            for mine, whole in zip(plan.slots, alone.plan().slots, strict=True):
                assert mine.bytes in (whole.bytes // size, whole.bytes if mine.name.endswith("ages") else -1), mine.name
            traffic = plan.traffic
            assert traffic["FULL"].collectives["all_to_all_single"] == 4 * ATTENTIONS[name]
            assert dict(traffic["ESTIMATE"].collectives) == {"all_gather_into_tensor": 1}
            assert dict(traffic["PREFIX"].collectives) == {"all_reduce": 1}
            digests.append(cached.compiled.digest)
            sequences.append({phase: kinds(program) for phase, program in cached.programs.items()})
    assert digests[0] == digests[1]
    assert sequences[0] == sequences[1]
