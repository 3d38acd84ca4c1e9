"""Parallel: the ranks that torchrun started draw one picture together, each with its part of the sequence (context parallel)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import nn

from rfc_fx.tools.arguments import OptionError

DEGREES = ("ulysses", "ring")


@dataclass(frozen=True)
class Degrees:
    """Over how many ranks a sequence is split: by heads in attention (ulysses), or by passing keys and values on (ring)."""

    ulysses: int = 1
    ring: int = 1

    @property
    def ranks(self) -> int:
        """Of one sequence."""
        return self.ulysses * self.ring


def parse_parallel(text: str) -> Degrees:
    """ "ulysses=2", "ring=4" or "ulysses=2,ring=2"; OptionError for anything else."""
    degrees: dict[str, int] = {}
    for part in text.split(","):
        name, _, number = part.strip().partition("=")
        if name not in DEGREES or name in degrees or not number.isdecimal() or not 1 <= len(number) <= 4 or int(number) < 1:
            raise OptionError(f"--parallel must be such as ulysses=2 or ulysses=2,ring=2, got {text!r}")
        degrees[name] = int(number)
    found = Degrees(**degrees)
    if found.ranks < 2:
        raise OptionError(f"--parallel {text}: one rank is no group; leave --parallel out")
    return found


@contextmanager
def group_of(degrees: Degrees, device: torch.device) -> Iterator[torch.device]:
    """Join the group that torchrun has started; gives the device of this rank. OptionError outside of torchrun, or for another number."""
    known = {name: os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    command = f"torchrun --nproc-per-node {degrees.ranks} -m rfc_export.main generate ..."
    if not all(value.isdecimal() for value in known.values()):
        raise OptionError(f"--parallel: every rank is a process of its own; start them with torchrun: {command}")
    if int(known["WORLD_SIZE"]) != degrees.ranks:
        raise OptionError(f"--parallel: needs {degrees.ranks} ranks, torchrun has started {known['WORLD_SIZE']}: {command}")
    mine = torch.device(device.type, int(known["LOCAL_RANK"])) if device.type == "cuda" else device
    if mine.type == "cuda":
        torch.cuda.set_device(mine)
    torch.distributed.init_process_group("nccl" if mine.type == "cuda" else "gloo")
    try:
        yield mine
    finally:
        torch.distributed.destroy_process_group()


def is_first() -> bool:
    """Whether this process writes files and speaks: the first rank, or the only process."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def split_sequence(model: nn.Module, degrees: Degrees) -> None:
    """Split a denoiser's sequence over the ranks; OptionError where its class has no plan for that, or the ranks do not fit."""
    from diffusers import ContextParallelConfig

    given: Any = model
    if getattr(given, "_cp_plan", None) is None:
        raise OptionError(f"--parallel: {type(model).__name__} has no context-parallel plan in diffusers, as FLUX, Qwen-Image, Wan have")
    with _some_device():
        try:
            given.enable_parallelism(config=ContextParallelConfig(ulysses_degree=degrees.ulysses, ring_degree=degrees.ring))
        except ValueError as error:
            raise OptionError(f"--parallel: {type(model).__name__}: {error}") from error


@contextmanager
def _some_device() -> Iterator[None]:
    """diffusers divides a rank by the number of accelerators (0.42), which is none on a CPU."""
    if torch.accelerator.device_count():
        yield
        return
    with mock.patch.object(torch.accelerator, "device_count", return_value=1):
        yield
