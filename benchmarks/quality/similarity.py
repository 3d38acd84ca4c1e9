"""How close a sample is to another of the same seed: relative L2, PSNR and SSIM, one number a sample. Pixels are in [-1, 1]."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from rfc_fx.tools.compare import DATA_RANGE

WINDOW, SIGMA = 11, 1.5
"""Of SSIM's Gaussian, in pixels, as published; a picture smaller than the window gets the largest odd one that fits."""


K1, K2 = 0.01, 0.03


Images = Float[Tensor, "N C H W"]


PerSample = Float[Tensor, " N"]


def relative_l2(x: Images, reference: Images) -> PerSample:
    """||x - x_0||_2 / ||x_0||_2."""
    x, reference = x.double().flatten(1), reference.double().flatten(1)
    ratio: Tensor = (x - reference).norm(dim=1) / reference.norm(dim=1)
    return ratio


def psnr(x: Images, reference: Images) -> PerSample:
    """10 log10(range^2 / mean squared error) in dB of the pixels clamped to [-1, 1]; inf where they are equal (`compare.psnr`)."""
    error = (x.double().clamp(-1, 1) - reference.double().clamp(-1, 1)).flatten(1).square().mean(1)
    return 10 * torch.log10(DATA_RANGE**2 / error)


def ssim(x: Images, reference: Images) -> PerSample:
    """Structural similarity, mean over the places where the window lies inside, and over channels (Wang et al. 2004, their equation 13).

    (2 m_x m_y + c_1)(2 s_xy + c_2) / ((m_x^2 + m_y^2 + c_1)(s_x^2 + s_y^2 + c_2)), m and s Gaussian-weighted means and (co)variances.
    """
    x, y = x.double().clamp(-1, 1), reference.double().clamp(-1, 1)
    c1, c2 = (K1 * DATA_RANGE) ** 2, (K2 * DATA_RANGE) ** 2
    m_x, m_y, xx, yy, xy = (_blurred(t) for t in (x, y, x * x, y * y, x * y))
    v_x, v_y, v_xy = xx - m_x**2, yy - m_y**2, xy - m_x * m_y
    quality = (2 * m_x * m_y + c1) * (2 * v_xy + c2) / ((m_x**2 + m_y**2 + c1) * (v_x + v_y + c2))
    return quality.flatten(1).mean(1)


def _blurred(x: Images) -> Images:
    """The Gaussian-weighted mean around every place where the window fits."""
    side = min(WINDOW, *(length - (length + 1) % 2 for length in x.shape[2:]))
    offsets = torch.arange(side, dtype=x.dtype, device=x.device) - side // 2
    weights = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    weights = weights / weights.sum()
    channels = x.shape[1]
    down = weights.reshape(1, 1, -1, 1).expand(channels, 1, -1, 1)
    return F.conv2d(F.conv2d(x, down, groups=channels), down.transpose(2, 3), groups=channels)


def geometric_mean(values: PerSample) -> float:
    """exp of the mean logarithm; 0 where one of the values is."""
    return float(values.double().log().mean().exp())


def finite_mean(values: PerSample) -> float | None:
    """The mean over the finite values; None where there is none."""
    finite = values[values.isfinite()]
    return float(finite.mean()) if len(finite) else None
