"""Cases: every value first, then every two values of two choices together; all combinations where they are asked for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from diffusers import DDIMScheduler

import rfc
import rfc_fx

FAMILIES = (
    "DiTTransformer2DModel",
    "PixArtTransformer2DModel",
    "SD3Transformer2DModel",
    "FluxTransformer2DModel",
    "WanTransformer3DModel",
    "LongCatImageTransformer2DModel",
    "Flux2Transformer2DModel",
    "ChromaTransformer2DModel",
    "AuraFlowTransformer2DModel",
    "SanaTransformer2DModel",
    "CogView4Transformer2DModel",
    "HunyuanVideoTransformer3DModel",
    "CogVideoXTransformer3DModel",
    "LTXVideoTransformer3DModel",
    "MochiTransformer3DModel",
)
"""15 classes of `benchmarks.coverage` that differ in their blocks, streams and conditioning."""

JOINT = ("CogView4Transformer2DModel", "CogVideoXTransformer3DModel")
"""Families that take two streams as one and give back each alone: an output has no input for each of its tokens."""

RCS = rfc.RCS(tau=0.1)

METHODS: dict[str, rfc.Method] = {
    "reuse": rfc.FORA(interval=3),
    "taylor": rfc.TaylorSeer(interval=3, order=2),
    "hermite": rfc.HiCache(interval=3),
    "newton": rfc.LogSNR(DDIMScheduler(), 10, 5),
    "rfe": rfc.RFC(tau=0.1),
    "rfe, sketched": rfc.Method(estimator=rfc.RFE(order=1, sketch=4), schedule=RCS),
    "projective": rfc.Method(estimator=rfc.Projective(order=2), schedule=RCS),
    "projective, tokens, sketched": rfc.Method(estimator=rfc.Projective(order=1, per="token", sketch=2), schedule=RCS),
    "aligned": rfc.DiCache(threshold=0.3, warmup=3),
    "probe": rfc.FirstBlockCache(threshold=0.3, tail=1),
    "verified": rfc.SpeCa(base=0.1, order=2, min_drafts=1, num_steps=10),
    "linear prediction": rfc.Method(
        estimator=rfc.LinearPrediction(order=3),
        schedule=rfc.Weighted(full_steps=[0, 1, 4, 7], num_steps=10, weights=[(0.3, -0.1, 0.4)] * 10),
        granularity="stack",
    ),
    "ridge": rfc.Spectrum(num_steps=10),
    "predictor, corrector": rfc.FoCa(interval=3),
    "output's change": rfc.EasyCache(threshold=0.1),
}
"""Every estimator that needs no trained predictor, with the schedules and phases that have programs of their own."""

STATE: dict[str, torch.dtype | None] = {
    "model's": None,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
    "float8": torch.float8_e4m3fn,
}

GRANULARITIES = ("module", "block", "stack")

Way = Literal["host", "hoisted", "cond"]
WAYS: tuple[Way, ...] = ("host", "hoisted", "cond")


@dataclass(frozen=True)
class Case:
    """One combination."""

    family: str
    method: str
    state: str
    granularity: str
    way: Way

    @property
    def caching(self) -> rfc.Method:
        """The method itself."""
        return METHODS[self.method]

    @property
    def config(self) -> rfc_fx.Config:
        """How the model is transformed; a method with a granularity of its own keeps it."""
        granularity = self.granularity if self.caching.granularity is None else None
        state = STATE[self.state]
        if self.way == "cond":
            return rfc_fx.Config(granularity=granularity, state_dtype=state, dispatch="cond")
        return rfc_fx.Config(granularity=granularity, state_dtype=state, hoist=self.way == "hoisted")

    @property
    def layers(self) -> int:
        """How often the model has every kind of block: methods that probe, keep or verify blocks need more."""
        return {"aligned": 2, "probe": 3, "verified": 2}.get(self.method, 1)

    @property
    def is_possible(self) -> bool:
        """Whether the package takes it: one graph has two phases, what is verified is a block, and each token has an input of its own."""
        if self.method == "verified" and self.granularity == "stack":
            return False
        if self.family in JOINT and "tokens" in self.method:
            return False
        return self.way != "cond" or len(self.caching.schedule.branches) == 2

    def __str__(self) -> str:
        return f"{self.family}-{self.method}-{self.state}-{self.granularity}-{self.way}"


CHOICES: Mapping[str, Sequence[str]] = {
    "family": FAMILIES,
    "method": tuple(METHODS),
    "state": tuple(STATE),
    "granularity": GRANULARITIES,
    "way": WAYS,
}


Pair = tuple[tuple[str, str], tuple[str, str]]


def everything(**fixed: str) -> Iterator[Case]:
    """All combinations that are possible, with these values."""
    values = ((fixed[name],) if name in fixed else choices for name, choices in CHOICES.items())
    return (case for each in itertools.product(*values) if (case := Case(*each)).is_possible)  # type: ignore[arg-type]


def every_value() -> list[Case]:
    """The fewest cases in which every value occurs."""
    cases = []
    for index in range(max(map(len, CHOICES.values()))):
        case = Case(*(values[index % len(values)] for values in CHOICES.values()))  # type: ignore[arg-type]
        cases.append(case if case.is_possible else replace(case, way="hoisted"))
    return cases


def pairwise() -> list[Case]:
    """Few cases in which every possible pair of values occurs: those in which every value does, then each with the pair that comes next.

    Of these it has as many others as can be.
    """
    pairs = {case: _pairs(case) for case in everything()}
    having: dict[Pair, list[Case]] = {}
    for case, of in pairs.items():
        for pair in of:
            having.setdefault(pair, []).append(case)
    chosen = every_value()
    missing = {*having}.difference(*map(_pairs, chosen))
    while missing:
        chosen.append(max(having[min(missing)], key=lambda case: len(pairs[case] & missing)))
        missing -= pairs[chosen[-1]]
    return chosen


def _pairs(case: Case) -> set[Pair]:
    return set(itertools.combinations([(name, getattr(case, name)) for name in CHOICES], 2))
