"""PredictorCorrector: against FoCa's recursion from step to step, in numpy."""

from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from tolerances import FORECAST
from torch import Tensor

import rfc
from rfc import Clock, PredictorCorrector
from rfc.state import spec_of, zeros

SHAPE = (2, 3, 4)


def foca(phases: str, O: list[Any]) -> list[Any]:
    """The loop of cache-dit's calibrator, with the derivative between full steps divided by their gap: what every step returns."""
    values: list[Any] = []
    full: list[int] = []
    for step, phase in enumerate(phases):
        if phase == "F":
            values.append(O[step])
            full.append(step)
        elif step == 1:
            values.append(values[-1])
        else:
            local = values[-1] - values[-2]
            predicted = 2 * values[-1] - values[-2]
            slope = (O[full[-1]] - O[full[-2]]) / (full[-1] - full[-2]) if len(full) > 1 else local
            values.append(predicted + 0.5 * (slope - local))
    return values


def estimates(phases: str, O: list[Tensor]) -> list[Tensor]:
    """What every step returns, by the estimator; its state begins with what another generation left."""
    estimator = PredictorCorrector()
    slots = estimator.slots(spec_of(O[0]), spec_of(O[0]))
    state = {name: torch.full_like(X, float("nan")) for name, X in zeros(slots, torch.device("cpu")).items()}
    values, full = [], [step for step, phase in enumerate(phases) if phase == "F"]
    for step, phase in enumerate(phases):
        before = [s for s in full if s < step]
        k = step - before[-1] if before else 1
        clock = Clock.at(k, before[-1] - before[-2] if len(before) > 1 else 0, len(before))
        if phase == "F":
            state = estimator.refresh(state, O[step], O[step], clock)
            values.append(O[step])
        else:
            values.append(estimator.estimate(state, O[step], clock))
    return values


@given(seed=st.integers(0, 10**6), rest=st.text("FEE", min_size=1, max_size=14))
def test_the_closed_form_is_focas_recursion(seed: int, rest: str) -> None:
    phases = "F" + rest
    draw = torch.Generator().manual_seed(seed)
    O = list((torch.randn(len(phases), *SHAPE, generator=draw) * 0.3).cumsum(0))
    wanted = foca(phases, [now.double().numpy() for now in O])
    for got, value in zip(estimates(phases, O), wanted, strict=True):
        assert np.abs(got.double().numpy() - value).max() <= FORECAST * max(1.0, np.abs(value).max())


def test_outputs_on_a_line_are_met_exactly_from_neighbouring_full_steps_on() -> None:
    O = [torch.full(SHAPE, 2.0 * step) for step in range(9)]
    assert all(torch.equal(a, b) for a, b in zip(estimates("FFEEEFEEE", O), O, strict=True))


def test_it_keeps_three_tensors_and_reads_no_input() -> None:
    estimator = rfc.FoCa().estimator
    spec = spec_of(torch.ones(SHAPE, dtype=torch.bfloat16))
    assert estimator.slots(spec, spec) == {"O": spec, "dO1": spec, "dO2": spec}
    assert not estimator.needs_input
    O = torch.ones(SHAPE, dtype=torch.bfloat16)
    state = estimator.refresh(zeros(estimator.slots(spec, spec), torch.device("cpu")), O, O, Clock.at(1, 0, 0))
    assert estimator.estimate(state, O, Clock.at(1, 0, 1)).dtype == torch.bfloat16
