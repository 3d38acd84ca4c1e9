"""Errors of the compiler: where, what was expected, what came, what to do."""

from __future__ import annotations

import sysconfig
import traceback

import torch
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
        for name, module in model.named_modules():
            if packed := [each for each, value in vars(module).items() if isinstance(value, torch.ScriptObject)]:
                return cls(
                    f"{type(model).__name__}: {name}.{packed[0]} is an object of TorchScript (packed weights of torch.ao.quantization), "
                    "which torch.export does not take; quantise with weights that are tensors, such as torchao's or GGUF's"
                )
        frames = traceback.extract_tb(error.__traceback__)
        inside = ("/torch/", "/rfc_fx/capture/", "<")
        own = [frame for frame in frames if not any(part in frame.filename for part in inside) and not _is_pythons(frame.filename)]
        where = f"{own[-1].filename}:{own[-1].lineno}: {own[-1].line}" if own else "outside the model's code"
        reason = str(error).strip().splitlines() or [type(error).__name__]
        return cls(
            f"{type(model).__name__}: torch.export cannot trace the forward: {type(error).__name__}: {reason[0]}\n"
            f"  at {where}\n"
            "  check that model(**inputs) runs, and that no Python branch there depends on a tensor's values"
        )


def _is_pythons(filename: str) -> bool:
    """Whether a file belongs to Python itself."""
    return filename.startswith(sysconfig.get_path("stdlib")) and "site-packages" not in filename


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
