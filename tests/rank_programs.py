"""What the ranks of a test do: functions of a rank, run by `ranks.Workers`."""

import copy
from typing import Any, NamedTuple

import torch
from families import FAMILIES, Family, moved, sample
from ranks import split

import rfc_fx
from benchmarks.capturing import captured_once
from rfc.method import Method


class Case(NamedTuple):
    """A method under a configuration."""

    method: Method
    config: rfc_fx.Config = rfc_fx.Config()


class Outcome(NamedTuple):
    """A generation of one process beside that of the ranks."""

    difference: float
    """Largest of the outputs."""
    alone: tuple[str, ...]
    """Phases of one process."""
    phases: tuple[str, ...]
    """Phases of this rank."""
    traffic: dict[str, tuple[dict[str, int], int]]
    shares: float
    """State of this rank as a part of that of one process."""


def family(name: str) -> Family:
    """A tiny model whose tokens come apart on two ranks, with its arguments as pipelines pass them."""
    model, kwargs = FAMILIES[name]()
    if name == "flux":
        kwargs |= {"encoder_hidden_states": torch.cat([kwargs["encoder_hidden_states"]] * 2, 1)[:, :8], "txt_ids": torch.zeros(8, 3)}
    return model, {**kwargs, "return_dict": False}


def uneven(kwargs: dict[str, Any], step: int, steps: int = 12) -> dict[str, Any]:
    """The call of a step; the latent's second half moves more than its first, so that ranks alone would decide otherwise."""
    call = moved(kwargs, step, steps)
    latent = call["hidden_states"].clone()
    half = latent.shape[1] // 2 if latent.dim() == 3 else latent.shape[2] // 2
    tail = latent[:, half:] if latent.dim() == 3 else latent[:, :, half:]
    tail += 0.08 * step * step / steps * torch.randn(tail.shape, generator=torch.Generator().manual_seed(3))
    return {**call, "hidden_states": latent}


def generation(model: Any, kwargs: dict[str, Any], steps: int = 12) -> list[torch.Tensor]:
    """The outputs of a generation's steps."""
    with model.generation():
        return [sample(model(**uneven(kwargs, step, steps))) for step in range(steps)]


def compare(rank: int, name: str, cases: list[Case], size: int = 2) -> list[Outcome]:
    """Run each case with the whole model and with its sequence split."""
    model, kwargs = family(name)
    parted = split(copy.deepcopy(model), size)
    outcomes = []
    with captured_once():
        for case in cases:
            alone, here = (rfc_fx.transform(each, case.method, config=case.config) for each in (model, parted))
            expected, got = generation(alone, kwargs), generation(here, kwargs)
            difference = max(float((a - b).abs().max()) for a, b in zip(expected, got, strict=True))
            traffic = {phase: (dict(each.collectives), each.sent_bytes) for phase, each in here.plan().traffic.items()}
            shares = here.plan().state_bytes / alone.plan().state_bytes
            outcomes.append(Outcome(difference, tuple(alone.stats.phases), tuple(here.stats.phases), traffic, shares))
    return outcomes
