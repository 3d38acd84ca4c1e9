"""Tolerances, each with its reason. All are relative to the norm of what is compared unless it says otherwise."""

import torch

EPS = torch.finfo(torch.float32).eps
"""Spacing of float32 numbers near 1, 1.2e-7."""

ROUND = 32 * EPS
"""A formula of a few float32 operations against float64: each operation adds half a spacing, reductions a few."""

FORECAST = 256 * EPS
"""A forecast from differences of nearly equal tensors: the subtraction loses up to four bits of the difference in the
motions drawn here, and the extrapolation multiplies what was lost by k/N, up to 12."""

GRAM = 1e3 * EPS
"""RFE of order 2: ||d||^2 is the sum of three inner products that nearly cancel when the difference terms oppose each
other; a cancellation of 1e-3 (rarer ones are not drawn) leaves 1e3 spacings in ||d||^2."""

HALF = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
"""A float32 result rounded once to a half-precision type: one spacing of that type."""


def ridge_bias(ridge: float, condition: float = 1.0) -> float:
    """Projective with past moves whose Gram matrix has this condition number (times order): the damped coefficients are off by it.

    The second term is rounding: the inverse of the damped matrix has entries up to 1/ridge, in float32.
    """
    return ridge * condition + 32 * EPS / ridge


SAME_GRAPH = 8 * EPS
"""Twin, guarded graph and programs run the same aten operations on the same numbers; traced estimators may meet another kernel."""

PREPARED = 32 * SAME_GRAPH
"""Modulation computed for all steps in one product rounds in another order; estimates extrapolate that over up to nine steps."""

WHOLE_CALL = 8 * SAME_GRAPH
"""Eight steps of a sampler, each of which starts from the last one's rounding."""

INDUCTOR = 1e-4
"""Inductor fuses and reorders float32 reductions (1e-6 a step); estimates extrapolate the difference over up to nine steps."""

ROUNDED_STATE = 0.05
"""Outputs kept in bfloat16 are off by 2^-9 each; normalization and gates of random weights multiply that on its way through the blocks."""
