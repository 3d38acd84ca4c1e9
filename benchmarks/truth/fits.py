"""Lists whose weights are found on a model: fitted to its recorded outputs, or refined by what is drawn with them."""

from __future__ import annotations

from dataclasses import dataclass

import rfc
from rfc.method import Method
from rfc.placement.fitted import Recorded
from rfc.placement.nearest import full_steps_at


@dataclass(frozen=True)
class Fitted:
    """A linear prediction, fitted to full computation by the same sampler on the seeds for choosing (`rfc.fitted`)."""

    corrections: float
    at_log_snr: bool = False
    """Whether its full steps are LogSNR's."""

    def method(self, recorded: Recorded, n: int) -> Method:
        """With n full steps."""
        levels = recorded.levels
        steps = full_steps_at(levels, n) if self.at_log_snr else None
        return rfc.fitted(recorded, n, corrections=self.corrections, full_steps=steps)


@dataclass(frozen=True)
class Refined:
    """The same, refined by samples of the seeds for choosing (`rfc.refined`), the forecast being the blocks' residual or their output."""

    to_truth: bool = False
    """Refined by the converged solution, in the place of full computation."""
    size: int = 8
    small: int = 8
    """Samples that it draws again and again, of those seeds; `small` of pictures of 8 x 8."""
    rounds: int = 1
    again: int = 0
    """Full steps up to which it has one more."""
    is_solver: bool = False
    """All steps of the sampler are full: the weights make another solver of it, and nothing is cached."""


FITTED: dict[str, Fitted | Refined] = {
    "fitted, corrected by 0.6": Fitted(0.6),
    "fitted, corrected by 0.3": Fitted(0.3),
    "fitted, not corrected": Fitted(0.0),
    "fitted at LogSNR's steps, corrected by 0.3": Fitted(0.3, at_log_snr=True),
    "refined": Refined(),
}
"""What `rfc-fx tune` tries, by name."""

TO_TRUTH = {
    "refined to the truth": Refined(to_truth=True, size=22, small=44, rounds=2, again=8),
    "trained solver": Refined(to_truth=True, size=22, small=44, rounds=2, again=8, is_solver=True),
}
"""By name."""
