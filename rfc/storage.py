"""In what data type a site's state is kept: the differences, and if wanted the output itself, in 16 or 8 bits."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from rfc.estimators.base import Coefficients, Estimator
from rfc.method import Method
from rfc.state import Clock, SlotSpec, State, scalar_shape

SCALED = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""Types with a scale for each token, and their largest number."""

STORED = (torch.bfloat16, torch.float16, *SCALED)
"""Types that a state can be kept in."""

_SCALE = "_scale"


@dataclass(frozen=True, kw_only=True)
class Stored(Estimator):
    """An estimator whose state is kept in smaller types: `differences` for dO_i and dI_i, `outputs` for O; None leaves them as they are.

    int8 and float8_e4m3fn carry one float32 scale per token (all but the last axis): X is kept as round(X / s), s = max |X| / 127, or as
    float8(X / s), s = max |X| / 448. A type that is no smaller than the model's changes nothing. The input I is kept as it is: its move is
    a small difference of large numbers; a sketch makes it smaller (`RFE.sketch`, `Projective.sketch`).
    Raises TypeError for other types, for estimators that are none, and with `outputs` for sites that change the type.
    """

    estimator: Estimator
    differences: torch.dtype | None = None
    outputs: torch.dtype | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.estimator, Estimator) or isinstance(self.estimator, Stored):
            raise TypeError(f"Stored: estimator must be an rfc Estimator such as rfc.RFE(order=1), got {self.estimator!r}")
        for name, dtype in (("differences", self.differences), ("outputs", self.outputs)):
            if dtype is not None and dtype not in STORED:
                raise TypeError(f"Stored: {name} must be None or one of {', '.join(map(str, STORED))}, got {dtype!r}")

    @property
    def orders(self) -> int:
        return self.estimator.orders

    @property
    def needs_input(self) -> bool:
        return self.estimator.needs_input

    @property
    def reads_all_inputs(self) -> bool:
        return self.estimator.reads_all_inputs

    def slots(self, I: SlotSpec, O: SlotSpec) -> dict[str, SlotSpec]:
        if self.outputs is not None and I.dtype != O.dtype:
            raise TypeError(f"Stored: outputs needs sites whose input and output have one type, got {I.dtype} and {O.dtype}; leave it None")
        slots: dict[str, SlotSpec] = {}
        for name, spec in self.estimator.slots(I, O).items():
            dtype = self._dtype(name, spec.dtype)
            slots[name] = spec._replace(dtype=dtype)
            if dtype in SCALED:
                slots[name + _SCALE] = SlotSpec(scalar_shape(spec.shape, "token"), torch.float32)
        return slots

    def refresh(self, old: State, I: Tensor, O: Tensor, clock: Clock) -> dict[str, Tensor]:
        fresh = self.estimator.refresh(_decoded(old), I, O, clock)
        state: dict[str, Tensor] = {}
        for name, X in fresh.items():
            dtype = self._dtype(name, O.dtype if name.startswith(("O", "dO")) else X.dtype)
            if dtype in SCALED:
                state[name], state[name + _SCALE] = scaled(X, dtype)
            else:
                state[name] = X.to(dtype)
        return state

    def coefficients(self, state: State, I: Tensor, clock: Clock) -> Coefficients:
        return self.estimator.coefficients(_decoded(state), I, clock)

    def estimate(self, state: State, I: Float[Tensor, "N *S D"], clock: Clock) -> Float[Tensor, "N *S D"]:
        O_hat = self.estimator.estimate(_decoded(state), I, clock)
        return O_hat if self.outputs is None else O_hat.to(I.dtype)

    @property
    def num_weights(self) -> int:
        return self.estimator.num_weights

    @property
    def corrects(self) -> bool:
        return self.estimator.corrects

    def uncorrected(self) -> Stored:
        return replace(self, estimator=self.estimator.uncorrected())

    def correction(self, old: State, I: Float[Tensor, "N *S D"], O: Float[Tensor, "N *S D"], clock: Clock) -> Float[Tensor, "N *S D"]:
        return self.estimator.correction(_decoded(old), I, O, clock)

    def _dtype(self, name: str, own: torch.dtype) -> torch.dtype:
        smaller = self.outputs if name == "O" else self.differences if name.startswith(("dO", "dI")) else None
        return smaller if smaller is not None and smaller.itemsize < own.itemsize else own


def _decoded(state: State) -> dict[str, Tensor]:
    """The state as the estimator left it, up to rounding; float32 where it was kept with a scale."""
    return {
        name: X.float() * state[name + _SCALE] if name + _SCALE in state else X for name, X in state.items() if not name.endswith(_SCALE)
    }


def scaled(X: Float[Tensor, "*S D"], dtype: torch.dtype) -> tuple[Tensor, Float[Tensor, "*S 1"]]:
    """X in 8 bits and the scale of each token, so that X is about the first times the second; a token of zeros has scale 0."""
    largest = SCALED[dtype]
    wide = X.float()
    scale = wide.abs().amax(-1, keepdim=True) / largest
    ratio = torch.where(scale > 0, wide / scale, torch.zeros_like(wide))
    if dtype is torch.int8:
        ratio = ratio.round()
    return ratio.clamp(-largest, largest).to(dtype), scale


def stored(method: Method, differences: torch.dtype | None, outputs: torch.dtype | None = None) -> Method:
    """Return the method with its state kept in these types (`Stored`); the method itself when both are None."""
    if differences is None and outputs is None:
        return method
    return replace(method, estimator=Stored(estimator=method.estimator, differences=differences, outputs=outputs))


def stored_anew(method: Method, differences: torch.dtype | None) -> Method:
    """The method with its differences kept in this type, whatever type they are kept in now; outputs as they are."""
    estimator = method.estimator
    if not isinstance(estimator, Stored):
        return stored(method, differences)
    return stored(replace(method, estimator=estimator.estimator), differences, estimator.outputs)


def kept_like(old: Method, new: Method) -> Method:
    """The new method with its state kept as that of the old one, unless it says itself how."""
    if isinstance(old.estimator, Stored) and not isinstance(new.estimator, Stored):
        return stored(new, old.estimator.differences, old.estimator.outputs)
    return new
