"""The converged solution: what a model draws with unlimited time.

With the noise's share sigma and the picture's share alpha of a sample x, y = x / sigma and rho = alpha / sigma, the sampler's differential
equation is dy / d rho = D, the picture that the model predicts (arXiv 2211.01095). D is taken as the polynomial in lambda = log rho through
the latest `ORDER` levels (Adams and Bashforth), and its integral over each step is exact. Steps are even in lambda.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.truth.levels import Levels, Reals, log_snr
from benchmarks.truth.models import Images

ORDER = 4
"""Levels that the polynomial goes through."""

STEPS = 120
"""In which the solution has converged (tested)."""

Predict = Callable[[Images, float], Images]
"""The model's output, guided, for a sample and a time."""


def converged(predict: Predict, levels: Levels, prediction: str, noise: Images, steps: int = STEPS, order: int = ORDER) -> Images:
    """The picture at the end of the differential equation that begins with `noise`; `prediction`: "epsilon", "v_prediction" or "flow"."""
    times = log_snr(levels, steps)
    lambdas = levels.lambdas(times)
    rho = np.exp(lambdas)
    sigma = 1 / (1 + rho) if levels.is_flow else 1 / np.sqrt(1 + rho**2)
    x, past = noise.double(), list[Tensor]()
    for step, time in enumerate(times):
        output = predict(x.to(noise.dtype), float(time)).double()
        picture = as_picture(x, output, float(rho[step] * sigma[step]), float(sigma[step]), prediction)
        past = [picture, *past][:order]
        if step == steps - 1:
            return picture.to(noise.dtype)
        if np.isinf(lambdas[step]):
            moved = (rho[step + 1] - rho[step]) * picture
            past = []
        else:
            nodes = lambdas[step - len(past) + 1 : step + 1][::-1]
            moved = sum(float(w) * D for w, D in zip(integrals(nodes, lambdas[step], lambdas[step + 1]), past, strict=True))
        x = float(sigma[step + 1]) * (x / float(sigma[step]) + moved)
    raise AssertionError("steps must be above 0")


def as_picture(x: Tensor, output: Tensor, alpha: float, sigma: float, prediction: str) -> Tensor:
    """The picture that an output stands for, x = alpha picture + sigma noise."""
    if prediction == "epsilon":
        return (x - sigma * output) / alpha
    if prediction == "v_prediction":
        return alpha * x - sigma * output
    return x - sigma * output


def integrals(nodes: Reals, low: float, high: float) -> Reals:
    """Of exp(lambda) times each Lagrange polynomial of the nodes, from low to high."""
    points, weights = np.polynomial.legendre.leggauss(12)
    at = (high + low) / 2 + (high - low) / 2 * points
    others = [np.delete(nodes, j) for j in range(len(nodes))]
    lagrange = np.array(
        [np.prod([(at - o) / (node - o) for o in other], axis=0) * np.ones_like(at) for node, other in zip(nodes, others, strict=True)]
    )
    result: Reals = (lagrange * np.exp(at)) @ weights * (high - low) / 2
    return result


def prediction_of(scheduler: Any) -> str:
    """What the model of a scheduler predicts."""
    return str(getattr(scheduler.config, "prediction_type", "flow"))


def guided(called: Any, labels: Tensor, guidance: float, null_class: int = 10) -> Predict:
    """Both halves of classifier-free guidance in one call."""
    both = torch.cat([labels, torch.full_like(labels, null_class)])

    @torch.no_grad()
    def predict(x: Images, time: float) -> Images:
        cond, uncond = called(torch.cat([x, x]), timestep=torch.full((len(both),), time), class_labels=both).sample.chunk(2)
        output: Tensor = uncond + guidance * (cond - uncond)
        return output

    return predict
