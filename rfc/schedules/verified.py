"""The schedule of speculative caching: draft, verify the draft's last block, and compute the next step where it was bad."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rfc.phase import ESTIMATE, FULL, VERIFY, PhaseName
from rfc.schedules.base import Numbers, Schedule, checked_count, checked_threshold


@dataclass(frozen=True, kw_only=True)
class Verified(Schedule):
    """Full after a draft whose last block was off by more than a threshold that decays (SpeCa, arXiv 2509.11628, its released code).

    A full step is followed by a draft. From `min_drafts` drafts on, a draft is verified: its last block is computed too, and
    err = mean(|x - x'| / (|x'| + 1e-10)) counts from the next step on, so that nothing waits for it. A step is full where
    err > max(base decay^(step / num_steps), floor), after `max_drafts` drafts, and after each draft among the first `enhanced` steps.
    """

    base: float = 0.1
    decay: float = 0.01
    floor: float = 0.01
    min_drafts: int = 2
    max_drafts: int = 5
    enhanced: int = 3
    num_steps: int = 50

    def __post_init__(self) -> None:
        for name, low in (("min_drafts", 1), ("max_drafts", 1), ("enhanced", 0), ("num_steps", 1)):
            checked_count("Verified", name, getattr(self, name), low)
        for name in ("base", "decay", "floor"):
            checked_threshold("Verified", name, getattr(self, name), more="")

    @property
    def warmup(self) -> int:
        return 1

    @property
    def is_lagged(self) -> bool:
        return True

    @property
    def accumulates(self) -> bool:
        return False

    @property
    def branches(self) -> tuple[PhaseName, ...]:
        return (FULL.name, ESTIMATE.name, VERIFY.name)

    def numbers(self) -> dict[str, Tensor]:
        names = ("base", "decay", "floor", "min_drafts", "max_drafts", "enhanced", "num_steps")
        return {name: torch.tensor(float(getattr(self, name))) for name in names}

    @staticmethod
    def full(numbers: Numbers, step: Tensor, k: Tensor, total: Tensor) -> Bool[Tensor, ""]:
        drafts = k - 1
        threshold = torch.maximum(numbers["base"] * numbers["decay"] ** (step / numbers["num_steps"]), numbers["floor"])
        bad = (drafts >= numbers["min_drafts"]) & ~(total <= threshold)
        return (step == 0) | ((drafts >= 1) & ((step < numbers["enhanced"]) | (drafts >= numbers["max_drafts"]) | bad))

    @classmethod
    def phase(cls, numbers: Numbers, step: Tensor, k: Tensor, total: Tensor) -> Int[Tensor, ""]:
        skipped = torch.where(k - 1 >= numbers["min_drafts"], 2, 1)
        return torch.where(cls.full(numbers, step, k, total), 0, skipped)

    def can_skip(self, num_steps: int) -> bool:
        return num_steps > 1

    @property
    def threshold(self) -> float:
        return self.base

    def with_threshold(self, threshold: float) -> Verified:
        return replace(self, base=threshold)

    def exercised(self) -> Verified:
        return replace(self, base=math.inf, decay=1.0, min_drafts=1, max_drafts=2, enhanced=0)
