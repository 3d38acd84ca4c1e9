"""Presets: the settings that methods were published with, by model: `rfc.preset("taylorseer", "flux.1-dev")`.

A row says where its numbers come from: the paper, the released code (by repository), or the tables of another paper. What was not published
is the method's own default, and said so. Names of models are lower case.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from types import MappingProxyType
from typing import Any

from rfc.method import Method
from rfc.placement.magcache import MagCache
from rfc.published import FORA, RFC, DeltaDiT, DiCache, DisCa, DuCa, FirstBlockCache, HiCache, SpeCa, TaylorSeer, TeaCache, ToCa
from rfc.token_selection import Tokens
from rfc.whole_model import EasyCache, Spectrum

Row = partial[Method]
"""A method with published settings."""


def preset(method: str, model: str, **changes: Any) -> Method:
    """Return the method with its published settings for that model and these changes, e.g. `preset("speca", "flux.1-dev", num_steps=28)`.

    Raises ValueError for names that are not in `PRESETS`, and for changes the method has no setting for.
    """
    if method not in PRESETS:
        raise ValueError(f"preset: method must be one of {', '.join(PRESETS)}, got {method!r}")
    rows = ROWS[method]
    if model.lower() not in rows:
        raise ValueError(f"preset: {method} was published with settings for {', '.join(rows)}, got {model!r}")
    row = rows[model.lower()]
    settings = settings_of(row.func)
    if unknown := [name for name in changes if name not in settings]:
        raise ValueError(f"preset: {method} has the settings {', '.join(settings)}, got {', '.join(unknown)}")
    return row(**changes)


def settings_of(make: Callable[..., Method]) -> list[str]:
    """The settings of a published method, those of `Tokens` among them where it takes them."""
    parameters = inspect.signature(make).parameters.values()
    own = [parameter.name for parameter in parameters if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
    return own + ([field.name for field in fields(Tokens)] if len(own) < len(parameters) else [])


_FORA = {
    # prathebaselva/FORA: --cache-threshold 3; warm-up: its rule on DDIM's 50 steps (step 49, then those that 3 divides)
    "dit-xl-2": partial(FORA, interval=3, warmup=2),
    # RFC's tables (arXiv 2602.19506), which name 17 and 9 full computations in 50 steps; not by FORA's authors
    "flux.1-dev": partial(FORA, interval=3, warmup=1),
    "hunyuanvideo": partial(FORA, interval=6, warmup=1),
}

_TAYLORSEER = {
    # Shenyi-Z/TaylorSeer, 50 steps each; warm-up is its first_enhance
    "dit-xl-2": partial(TaylorSeer, interval=4, order=4, warmup=2),  # README; the paper's headline is interval 3, order 3
    "flux.1-dev": partial(TaylorSeer, interval=6, order=2, warmup=3),  # the paper; the code has order 1
    "hunyuanvideo": partial(TaylorSeer, interval=5, order=1, warmup=1),
    "wan2.1": partial(TaylorSeer, interval=5, order=1, warmup=1),
}

_HICACHE = {
    # arXiv 2508.16984: interval 7, order 2, sigma 0.5 (0.3 for FLUX.1-schnell); its code is TaylorSeer's, of which the warm-up is
    "flux.1-dev": partial(HiCache, interval=7, order=2, sigma=0.5, warmup=3),
}

_TOCA = {
    # Shenyi-Z/ToCa, DiT with DDIM's 50 steps (250 of DDPM: step_weight 0.4, layer_weight 0.8); interval 4 is the first of RFC's tables
    "dit-xl-2": partial(ToCa, interval=4, ratio=0.07, freshness=0.25, bonus=0.6, step_weight=2.0, layer_weight=-0.2, emphasis=2.5),
}

_DUCA = {
    # Shenyi-Z/DuCa, DiT; the score is the paper's V-caching, which needs no attention map
    "dit-xl-2": partial(DuCa, interval=3, ratio=0.05, score="value", bonus=0.8),
}

_RFC = {
    # arXiv 2602.19506: the orders of its tables. tau was not published (calibrate it); the warm-up is TaylorSeer's, as its counts of full
    # computations for FORA and TaylorSeer need it
    "dit-xl-2": partial(RFC, order=2, warmup=2),
    "flux.1-dev": partial(RFC, order=2, warmup=3),  # order 1 too
    "hunyuanvideo": partial(RFC, order=1, warmup=1),
}

_SPECA = {
    # Shenyi-Z/Cache4Diffusion: dit/speca-dit sample.py (sample_ddp.py: 0.3, 0.05, 0.01, 3, 8), flux/speca-flux,
    # hunyuan_video/speca-hunyuan_video
    "dit-xl-2": partial(SpeCa, base=0.1, decay=0.01, floor=0.01, min_drafts=2, max_drafts=5, order=4, enhanced=3, num_steps=50),
    "flux.1-dev": partial(SpeCa, base=7.0, decay=0.3, floor=0.1, min_drafts=2, max_drafts=8, order=2, enhanced=3, num_steps=50),
    "hunyuanvideo": partial(SpeCa, base=1.0, decay=0.1, floor=0.1, min_drafts=4, max_drafts=12, order=1, enhanced=1, num_steps=50),
}

_DELTA_DIT = {
    # Shenyi-Z/TaylorSeer, mode Delta on FLUX: the 19 double blocks always run, what the single blocks add is reused; interval 3
    "flux.1-dev": partial(DeltaDiT, interval=3, first=19, warmup=1),
}

_TEACACHE = {
    # ali-vilab/TeaCache; thresholds by the speed-up that it names: 0.25 1.5x, 0.4 1.8x, 0.6 2.0x, 0.8 2.25x (28 steps)
    "flux.1-dev": partial(
        TeaCache, threshold=0.25, coefficients=(498.651651, -283.781631, 55.8554382, -3.82021401, 0.264230861), num_steps=28
    ),
    # 0.1 1.6x, 0.15 2.1x. Wan's polynomials are of another signal, the timestep's embedding, and not among these
    "hunyuanvideo": partial(
        TeaCache, threshold=0.1, coefficients=(733.226126, -401.131952, 67.5869174, -3.149878, 0.0961237896), num_steps=50
    ),
}

_FIRST_BLOCK = {
    # chengzeyi/ParaAttention: 0.08 is its default for FLUX (diffusers' documentation); diffusers' own hook has 0.05
    "flux.1-dev": partial(FirstBlockCache, threshold=0.08),
}

_DBCACHE = {
    # vipshop/cache-dit, its benchmark's F8B0, warm-up 4, R 0.08: 1.80x
    "flux.1-dev": partial(FirstBlockCache, threshold=0.08, blocks=8, tail=0, warmup=4),
}

_DICACHE = {
    # Bujiazi/DiCache, FLUX: against the input's change ("delta_minus"), 0.08 with no step retained but the first, 30 steps
    "flux.1-dev": partial(DiCache, threshold=0.08, depth=1, warmup=1, num_steps=30),
}

_EASYCACHE = {
    # H-EmbodVis/EasyCache, text to video with 50 steps; the residual of the whole model there
    "hunyuanvideo": partial(EasyCache, threshold=0.025, warmup=5, num_steps=50),
}

_SPECTRUM = {
    # hanjq17/Spectrum, 50 steps: 14 full ones; growth=3 has 10. Its README recommends a weight of 0.5 to 1
    "flux.1-dev": partial(Spectrum, growth=0.75, weight=0.5, num_steps=50),
    "hunyuanvideo": partial(Spectrum, growth=0.75, weight=0.5, num_steps=50),
}

_DISCA = {
    # arXiv 2602.05449 (Tencent-Hunyuan/DisCa): its lists of full steps; 8 of 20: 0 1 2 5 9 13 17 19. No weights of a predictor are here:
    # pass the folder of one that was trained for the model, preset("disca", "hunyuanvideo", predictor=...)
    "hunyuanvideo": partial(DisCa, predictor=None, full_steps=(0, 1, 2, 5, 9, 11, 13, 15, 17, 19)),  # text to video, 20 steps, distilled
    "hunyuanvideo-1.5-i2v": partial(DisCa, predictor=None, full_steps=(0, 2, 4, 7)),  # image to video, 8 steps, distilled
}

# fmt: off
_FLUX_RATIOS = (
    1.0, 1.21094, 1.11719, 1.07812, 1.0625, 1.03906, 1.03125, 1.03906, 1.02344, 1.03125, 1.02344, 0.98047, 1.01562, 1.00781,
    1.0, 1.00781, 1.0, 1.00781, 1.0, 1.0, 0.99609, 0.99609, 0.98047, 0.98828, 0.96484, 0.95703, 0.93359, 0.89062,
)
_HUNYUAN_RATIOS = (
    1.0, 1.0754, 1.27807, 1.11596, 1.09504, 1.05188, 1.00844, 1.05779, 1.00657, 1.04142, 1.03101, 1.00679, 1.02556, 1.00908,
    1.06949, 1.05438, 1.02214, 1.02321, 1.03019, 1.00779, 1.03381, 1.01886, 1.01161, 1.02968, 1.00544, 1.02822, 1.00689, 1.02119,
    1.0105, 1.01044, 1.01572, 1.02972, 1.0094, 1.02368, 1.0226, 0.98965, 1.01588, 1.02146, 1.0018, 1.01687, 0.99436, 1.00283,
    1.01139, 0.97122, 0.98251, 0.94513, 0.97656, 0.90943, 0.85703, 0.75456,
)
_WAN_1_3B_RATIOS = (
    1.0, 1.0124, 1.00166, 0.99791, 0.99682, 0.99634, 0.99567, 0.99416, 0.99578, 0.9957, 0.99511, 0.99535, 0.99552, 0.99541,
    0.9954, 0.99489, 0.99518, 0.99484, 0.99481, 0.99415, 0.99419, 0.99396, 0.99388, 0.99349, 0.99309, 0.9927, 0.99228, 0.99171,
    0.99137, 0.99068, 0.99005, 0.98944, 0.98849, 0.98758, 0.98644, 0.98504, 0.9836, 0.98202, 0.97977, 0.97717, 0.9741, 0.97003,
    0.96538, 0.9593, 0.95086, 0.94013, 0.92402, 0.90241, 0.86821, 0.81838,
)
_WAN_14B_RATIOS = (
    1.0, 1.02504, 1.00025, 0.9985, 0.99779, 0.9966, 0.99482, 0.99467, 0.99664, 0.99434, 0.99533, 0.99468, 0.99438, 0.99516,
    0.99384, 0.99404, 0.99517, 0.99409, 0.99428, 0.99347, 0.99418, 0.99271, 0.99313, 0.99215, 0.99218, 0.99216, 0.99163, 0.99138,
    0.98982, 0.98996, 0.9887, 0.98772, 0.98767, 0.98573, 0.98501, 0.9838, 0.98177, 0.98037, 0.97678, 0.97546, 0.97184, 0.96711,
    0.96349, 0.95629, 0.94926, 0.93964, 0.92511, 0.90693, 0.8796, 0.86111,
)
# fmt: on

_MAGCACHE = {
    # Zehong-Ma/MagCache: the ratios and settings of its scripts, of 28 steps for FLUX and of 50 for the others; of Wan those of the
    # conditional calls (the others differ in the fourth digit). On FLUX it computes step 11 whatever the ratios say; diffusers does not
    "flux.1-dev": partial(MagCache, ratios=_FLUX_RATIOS, threshold=0.24, max_skip=5, retention=0.1),
    "hunyuanvideo": partial(MagCache, ratios=_HUNYUAN_RATIOS, threshold=0.24, max_skip=6, retention=0.2),  # 720p; slower: 0.12, 4
    "wan2.1-t2v-1.3b": partial(MagCache, ratios=_WAN_1_3B_RATIOS, threshold=0.12, max_skip=2, retention=0.2),
    "wan2.1-t2v-14b": partial(MagCache, ratios=_WAN_14B_RATIOS, threshold=0.12, max_skip=2, retention=0.2),
}

ROWS: Mapping[str, Mapping[str, Row]] = {
    "fora": _FORA,
    "taylorseer": _TAYLORSEER,
    "hicache": _HICACHE,
    "rfc": _RFC,
    "speca": _SPECA,
    "delta-dit": _DELTA_DIT,
    "teacache": _TEACACHE,
    "first-block": _FIRST_BLOCK,
    "dbcache": _DBCACHE,
    "dicache": _DICACHE,
    "easycache": _EASYCACHE,
    "spectrum": _SPECTRUM,
    "magcache": _MAGCACHE,
    "toca": _TOCA,
    "duca": _DUCA,
    "disca": _DISCA,
}


PRESETS: Mapping[str, Mapping[str, Method]] = MappingProxyType(
    {name: MappingProxyType({model: row() for model, row in rows.items()}) for name, rows in ROWS.items()}
)
"""Published settings by method and model."""
