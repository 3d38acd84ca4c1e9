"""The README's lines on pipelines of several families, and pipelines made from an accelerated one."""

from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers
import pipelines
import pytest
import torch
from pipelines import Prompt, run
from small_digits import first_blocks
from torch import Tensor

import rfc
import rfc_fx
from rfc_fx.runtime.compiled_runs import CompiledRuns
from rfc_fx.zoo.digits_pipeline import DigitsPipeline

pytestmark = pytest.mark.usefixtures("captured_once")

PICTURE = torch.linspace(0, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)


def digits() -> tuple[Any, Prompt]:
    """Two blocks of the shipped model."""
    model, scheduler = first_blocks(1)
    return DigitsPipeline(model, scheduler), lambda *_: {"class_labels": [3, 8]}


def drawn(pipe: Any, prompt: Prompt) -> Tensor:
    return run(pipe, prompt(), steps=20)


FAMILIES: dict[str, tuple[Callable[[], tuple[Any, Prompt]], set[str]]] = {
    "digits": (digits, {"default"}),
    "flux": (pipelines.flux, {"cond", "uncond"}),
    "sd3": (pipelines.sd3, {"default"}),
    "wan 2.2": (partial(pipelines.wan, 2), {"cond", "uncond"}),
}


@pytest.mark.parametrize("family", [pytest.param(name, marks=pytest.mark.slow if name == "wan 2.2" else ()) for name in FAMILIES])
def test_the_lines_of_the_readme(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CompiledRuns, "of", lambda runs, run: run)  # other tests compile
    build, contexts = FAMILIES[family]
    pipe, prompt = build()
    before, plain = dict(pipe.components), drawn(pipe, prompt)
    pipe = rfc_fx.accelerate(pipe)
    image = drawn(pipe, prompt)
    text = str(rfc_fx.summary(pipe))
    rfc_fx.restore(pipe)
    assert 0 < float((image - plain).norm() / plain.norm()) < 0.1
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    assert {name for name, *_ in rows} == contexts
    for name in contexts:
        steps, full, skipped = (sum(int(row[column]) for row in rows if row[0] == name) for column in (1, 2, 3))
        assert (steps, skipped) == (20, 20 - full)
        assert 5 <= full <= 7  # 28 %
    assert "torch.compile(fullgraph=True)" in text
    assert pipe.components == before
    assert torch.equal(drawn(pipe, prompt), plain)


@pytest.fixture(scope="module")
def accelerated() -> tuple[Any, Prompt]:
    pipe, prompt = pipelines.flux()
    rfc_fx.accelerate(pipe, compile=False)
    return pipe, prompt


def test_from_pipe_says_to_spell_the_transformer_out(accelerated: tuple[Any, Prompt]) -> None:
    pipe, _ = accelerated
    with pytest.raises(ValueError, match=r"expected .*'transformer'.* but only"):
        diffusers.FluxImg2ImgPipeline.from_pipe(pipe)


RELATIVES: dict[str, Callable[[Any], Any]] = {
    "from_pipe": lambda pipe: diffusers.FluxImg2ImgPipeline.from_pipe(pipe, transformer=pipe.transformer),
    "AutoPipeline": diffusers.AutoPipelineForImage2Image.from_pipe,
    "components": lambda pipe: diffusers.FluxImg2ImgPipeline(**pipe.components),
}


@pytest.mark.parametrize("way", RELATIVES)
def test_a_relative_draws_with_the_cached_model_and_its_own_levels(accelerated: tuple[Any, Prompt], way: str) -> None:
    pipe, prompt = accelerated
    relative = RELATIVES[way](pipe)
    assert relative.transformer is pipe.transformer
    assert relative.config["transformer"] == ("diffusers", "FluxTransformer2DModel")
    run(relative, {**prompt(), "image": PICTURE, "strength": 0.6}, steps=20)
    for record in pipe.transformer.contexts.values():
        assert record.phases[0] == "FULL"
        assert (record.nfc, len(record.phases)) == (3, 12)


def test_pipelines_that_share_a_model_share_the_method_that_was_asked_for_last(accelerated: tuple[Any, Prompt]) -> None:
    pipe, prompt = accelerated
    relative = rfc_fx.accelerate(diffusers.FluxPipeline(**pipe.components), nfc=5)
    run(relative, prompt())
    assert pipe.transformer.stats.nfc == 5
    assert "not compiled" in str(rfc_fx.summary(relative))
    run(pipe, prompt())
    assert pipe.transformer.stats.nfc == 5
    with pytest.raises(ValueError, match=r"^accelerate: transformer is the cached FluxTransformer2DModel of another pipeline, made for"):
        rfc_fx.accelerate(diffusers.FluxPipeline(**pipe.components), rfc.RFC())
    rfc_fx.restore(relative)
    rfc_fx.accelerate(pipe, compile=False)
    run(pipe, prompt())
    assert pipe.transformer.stats.nfc == 2
