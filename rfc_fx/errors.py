"""Errors of the compiler: where, what was expected, what came, what to do."""

from __future__ import annotations

import traceback

from torch import nn

from rfc.predictor import PredictorError


class RFCError(RuntimeError):
    """Base of all errors that this package raises on purpose."""


class NestedGraphError(RFCError):
    """An exported graph that calls other graphs; those of autocast are spelled out when it is traced with values, others are not."""

    def __init__(self, call: str, where: str) -> None:
        super().__init__(
            f"the forward calls {call}, which holds a graph of its own that no program can take over; at {where}; "
            "choose another attention for the model, such as model.set_attention_backend('native'), if it has one"
        )


class CaptureError(RFCError):
    """The model's forward could not be turned into a graph."""

    @classmethod
    def from_export(cls, model: nn.Module, error: Exception) -> CaptureError:
        """Point at the deepest line of the model's own code that stood in the way."""
        if isinstance(error, NestedGraphError):
            return cls(f"{type(model).__name__}: {error}")
        frames = traceback.extract_tb(error.__traceback__)
        inside = ("/torch/", "/rfc_fx/capture/", "<")
        own = [frame for frame in frames if not any(part in frame.filename for part in inside)]
        where = f"{own[-1].filename}:{own[-1].lineno}: {own[-1].line}" if own else "outside the model's code"
        reason = str(error).strip().splitlines() or [type(error).__name__]
        return cls(
            f"{type(model).__name__}: torch.export cannot trace the forward: {type(error).__name__}: {reason[0]}\n"
            f"  at {where}\n"
            "  check that model(**inputs) runs, and that no Python branch there depends on a tensor's values"
        )


class NoSiteError(RFCError):
    """The graph has no residual branch that could be estimated: caching would silently do nothing."""


class StateBudgetError(RFCError):
    """The state of one context takes more memory than it was given."""


class IllegalGraphError(RFCError):
    """A pass produced a graph that breaks a law; a defect of this package."""


class SignatureError(RFCError):
    """A call does not fit what was captured."""


class RanksError(RFCError):
    """Ranks that share a sequence or a decision differ, or one of them is gone."""


class PredictorMismatchError(RFCError, PredictorError):
    """A predictor that cannot stand in for this model's blocks; a `rfc.PredictorError`, as the eager twin raises it."""
