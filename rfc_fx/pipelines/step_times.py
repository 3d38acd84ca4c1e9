"""Step times: what a full and an estimated step of a model take on this device, measured in its own generations and kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from rfc.files import read_json
from rfc_fx.io.atomic import write_atomically
from rfc_fx.ir.program import ProgramSet
from rfc_fx.runtime.ranks import Ranks

log = logging.getLogger("rfc_fx")


class StepTimes(NamedTuple):
    """Median seconds."""

    full: float
    estimate: float

    def share(self, speedup: float) -> float:
        """The share of full steps at which a generation is that many times faster than full computation; 0 or less where none is."""
        return (self.full / speedup - self.estimate) / max(self.full - self.estimate, 1e-12)


def key_of(model: nn.Module, compiled: ProgramSet, settings: str) -> str:
    """What times depend on: the graph, the device, the versions, and how it is compiled."""
    device = (
        torch.cuda.get_device_name(compiled.device)
        if compiled.device.type == "cuda"
        else f"{platform.processor()} x{torch.get_num_threads()}"
    )
    plan = compiled.plan
    facts = (type(model).__name__, plan.sites, plan.slots, plan.full_flops, plan.estimate_flops, device, torch.__version__, settings)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


def of_slowest(ranks: Ranks, times: StepTimes | None) -> StepTimes | None:
    """The times of the slowest rank, so that all choose the same full steps; None where one does not know its own."""
    said = {} if times is None else {"full": repr(times.full), "estimate": repr(times.estimate)}
    heard = ranks.exchange("choosing the full steps", said)
    if not all("full" in each for each in heard):
        return None
    return StepTimes(max(float(each["full"]) for each in heard), max(float(each["estimate"]) for each in heard))


def cache_file() -> Path:
    """Where times are kept: `rfc_fx/step_times.json` in the user's cache folder (XDG_CACHE_HOME)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rfc_fx" / "step_times.json"


def read_times(key: str) -> StepTimes | None:
    """Times that were measured before; None where there are none, or the file cannot be read."""
    try:
        full, estimate = read_json(cache_file())[key]
        times = StepTimes(float(full), float(estimate))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return times if times.estimate > 0 and 0 < times.full < float("inf") else None


def write_times(key: str, times: StepTimes) -> None:
    """Keep them; where that is not possible they are measured again."""
    path = cache_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            known = dict(read_json(path))
        except (OSError, ValueError, TypeError):
            known = {}
        text = json.dumps(known | {key: list(times)})
        write_atomically(path, lambda partial: partial.write_text(text))
    except OSError as error:
        log.info("step times are not kept: %s", error)
