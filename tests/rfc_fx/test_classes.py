"""Transformer classes that differ in structure go through the same checks; none of them is named in the package."""

import re
from pathlib import Path

import pytest

from benchmarks.coverage.checks import check
from benchmarks.coverage.specs import all_specs

STRUCTURES = {
    "AuraFlowTransformer2DModel": "register tokens; a feed-forward that is added to the block's input, around attention",
    "ChromaTransformer2DModel": "residual layers on the timestep before any on the latent",
    "WanVACETransformer3DModel": "a control stream whose hints are added to the main one",
    "SanaTransformer2DModel": "linear attention, a feed-forward of convolutions",
    "NucleusMoEImageTransformer2DModel": "a mixture of experts",
    "StableAudioDiTModel": "one dimension, a convolution on the latent itself before the blocks",
    "HunyuanDiT2DModel": "skips from the first half of the blocks to the second",
    "SkyReelsV2Transformer3DModel": "a timestep for each frame",
    "QwenImage21Transformer2DModel": "Python that reads a mask",
    "Cosmos3OmniTransformer": "tokens without samples",
}


SLOWER = (
    *("ChromaTransformer2DModel", "WanVACETransformer3DModel", "NucleusMoEImageTransformer2DModel", "HunyuanDiT2DModel"),
    *("AuraFlowTransformer2DModel", "Cosmos3OmniTransformer", "QwenImage21Transformer2DModel"),
)
"""Those that take longest, with the slow tests."""


@pytest.mark.parametrize(
    ("number", "name"),
    [pytest.param(*pair, marks=pytest.mark.slow if pair[1] in SLOWER else ()) for pair in enumerate(STRUCTURES)],
)
def test_a_class_passes_every_check(number: int, name: str) -> None:
    """Beside those of its modules, its blocks or all of them at once are sites, and values are hoisted, in turn."""
    coarse = ("block", "stack")[number % 2]
    row = check(all_specs()[name], meta=False, compiles=number < 4, hoists=number // 2 % 2 == 0, granularities=("module", coarse))
    assert row.errors == []
    assert row.full_difference == 0
    assert len(row.sites) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("name", all_specs())
def test_every_class_passes_every_check_or_says_why(name: str) -> None:
    row = check(all_specs()[name])
    stated = ("capture: CaptureError", "share: AssertionError: not counted")
    assert all(error.startswith(stated) for error in row.errors)


REFUSED = {
    "HiDreamImageTransformer2DModel": ("reads the values of hidden_states", "transformer_hidream_image.py:", "flat_expert_indices"),
    "Kandinsky6SRTransformer3DModel": ("calls flex_attention", "transformer_kandinsky6_sr.py:"),
    "WanAnimate2Transformer3DModel": ("'kv_cache'", "WanAnimate2KVCache", "register_pytree_node"),
}


@pytest.mark.parametrize(
    ("name", "said"), [pytest.param(*pair, marks=() if pair[0].startswith("HiDream") else pytest.mark.slow) for pair in REFUSED.items()]
)
def test_a_forward_that_no_program_can_take_over_is_refused_with_what_stands_in_the_way(name: str, said: tuple[str, ...]) -> None:
    (error,) = check(all_specs()[name], meta=False, compiles=False).errors
    assert all(part in error for part in said)


def test_the_package_names_no_class() -> None:
    package = Path(__file__).parents[2] / "rfc_fx"
    text = "\n".join(path.read_text() for path in package.rglob("*.py"))
    named = {name for name in all_specs() if re.search(rf"\b{name}\b", text)}
    assert named <= {"DiTTransformer2DModel", "FluxTransformer2DModel"}  # the classes of the models that ship
