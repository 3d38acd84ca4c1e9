"""Every class by name."""

from __future__ import annotations

from benchmarks.coverage.classes.spec import Spec
from benchmarks.coverage.rows import ClassCoverage

FAMILIES = (
    "DiTTransformer2DModel",
    "PixArtTransformer2DModel",
    "SD3Transformer2DModel",
    "FluxTransformer2DModel",
    "Flux2Transformer2DModel",
    "QwenImageTransformer2DModel",
    "WanTransformer3DModel",
    "HunyuanVideoTransformer3DModel",
    "CogVideoXTransformer3DModel",
    "LTXVideoTransformer3DModel",
    "ZImageTransformer2DModel",
    "Lumina2Transformer2DModel",
    "SanaTransformer2DModel",
    "HunyuanDiT2DModel",
    "AuraFlowTransformer2DModel",
    "ChromaTransformer2DModel",
    "MochiTransformer3DModel",
)
"""One class of each family: complex numbers, truth values that are masked, values that Python reads, video: every kind of graph."""


def all_specs() -> dict[str, Spec]:
    """Every class by name."""
    from benchmarks.coverage.classes import audio_and_other, image, text_to_image, video, wan_family

    specs = [spec for module in (image, text_to_image, video, wan_family, audio_and_other) for spec in module.SPECS]
    return {spec.name: spec for spec in specs}


def in_order(rows: list[ClassCoverage]) -> list[ClassCoverage]:
    """The rows in the order of the classes."""
    ranks = {name: i for i, name in enumerate(all_specs())}
    return sorted(rows, key=lambda row: ranks[row.name])
