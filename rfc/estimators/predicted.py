"""Predicted: the outputs of a small trained network in place of all blocks (DisCa)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from rfc.estimators.base import Coefficients, Remembered
from rfc.predictor import Predictor, PredictorError, load_predictor
from rfc.state import Clock, State


@dataclass(frozen=True, kw_only=True)
class Predicted(Remembered):
    """The stream behind the last block as a trained predictor forecasts it from the embedded tokens and its past, O (`Predictor`).

    `folder` holds the predictor, whose weights have this `sha256`. The estimate needs the arguments of the blocks, which no formula has:
    the twin (`predictions`) and the compiler put the predictor's own operations in its place.
    """

    folder: str
    sha256: str

    def __post_init__(self) -> None:
        for name, value in (("folder", self.folder), ("sha256", self.sha256)):
            if not isinstance(value, str):
                raise TypeError(f"Predicted: {name} must be a string, got {value!r}")

    def load(self, model: nn.Module) -> Predictor:
        """The predictor, made for that model; PredictorError where it cannot be (`load_predictor`)."""
        if not self.folder:
            raise PredictorError("DisCa: predictor is None; pass the folder of one that was trained for the model")
        return load_predictor(model, Path(self.folder), self.sha256)

    def coefficients(self, state: State, I: Tensor, clock: Clock) -> Coefficients:
        raise NotImplementedError("Predicted: its estimate is a network's, with no coefficients; it needs granularity 'output'")
