"""Sources of drawings: the models that can be exported with a sampler, and an engine with what its manifest says of the sampler."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from rfc.record import Record
from rfc_export.errors import ArtifactError, ExportError
from rfc_export.manifest import Manifest
from rfc_export.runtime import Engine
from rfc_fx.tools.inputs import load_with_inputs
from rfc_fx.tools.load import locate, model_kind
from rfc_fx.tools.sources import DigitsSource, Tick, load_source
from rfc_fx.zoo import NULL_CLASS, digits_noise, sample

CFG = 1.5
"""Guidance of the digits model, where nothing else is said."""


HIDDEN = "hidden_states"


class DigitsFacts(BaseModel):
    """Facts for drawing digits: the scheduler's configuration, guidance, and the label of "no class"."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    kind: Literal["digits"]
    scheduler: dict[str, Any]
    cfg: float
    null_class: Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class Exportable:
    """A model, the arguments of the call that its engine will answer, and what a sampler needs to know."""

    model: nn.Module
    inputs: dict[str, Any]
    sampler: dict[str, Any] | None
    """None: `rfc-fx run` cannot draw with it."""


def exportable(name: str, dtype: torch.dtype, device: torch.device, batch: int | None) -> Exportable:
    """Load a model for calls of `batch` samples with guidance: of digits ten where nothing is said, of others one.

    LoadError for what cannot be loaded, ExportError where calls of that many samples cannot be made from the inputs that are known.
    """
    if model_kind(locate(name)) != "digits":
        model, inputs = load_with_inputs(name, dtype, device)
        return Exportable(model, _repeated(name, inputs, batch or 1), None)
    source = load_source(name, classes=None, prompts=[], seeds=[0], cfg=CFG, dtype=dtype, device=device)
    assert isinstance(source, DigitsSource)
    facts = DigitsFacts(kind="digits", scheduler=json.loads(source.scheduler.to_json_string()), cfg=CFG, null_class=NULL_CLASS)
    count = batch or NULL_CLASS
    labels = [i % NULL_CLASS for i in range(count)] + [NULL_CLASS] * count
    inputs = {
        HIDDEN: digits_noise([0] * (2 * count), dtype).to(device),
        "timestep": torch.full((2 * count,), 500, device=device),
        "class_labels": torch.tensor(labels, device=device),
    }
    return Exportable(source.model, inputs, facts.model_dump())


def _repeated(name: str, inputs: dict[str, Any], count: int) -> dict[str, Any]:
    if count == 1:
        return inputs
    rows = {len(value) if isinstance(value, Tensor) and value.dim() else None for value in inputs.values()}
    if len(rows) != 1 or None in rows:
        raise ExportError(
            f"{name}: --batch {count} cannot be made from the inputs of one sample; call rfc_export.export with example_inputs"
        )
    return {key: torch.cat([value] * count) for key, value in inputs.items()}


@dataclass(kw_only=True)
class EngineSource:
    """An engine and how to draw digits with it: classes in batches of the engine's size, the last one filled up."""

    name: str
    model: Engine
    scheduler: Any
    facts: DigitsFacts
    classes: list[int]
    seeds: list[int]
    cfg: float
    generations: dict[str, Record] = field(default_factory=dict)
    """Records of the latest draw, by batch."""

    @property
    def groups(self) -> list[str]:
        return [str(label) for label in self.classes]

    @property
    def size(self) -> int:
        """Samples in a call; guidance doubles them."""
        return _latent(self.model.manifest)[0] // 2

    @property
    def batches(self) -> list[list[int]]:
        """The classes of each call."""
        return [self.classes[i : i + self.size] for i in range(0, len(self.classes), self.size)]

    def draw(self, model: nn.Module, seed: int, steps: int, tick: Tick) -> Float[Tensor, "N C H W"]:
        """One sample of every class, a generation for every batch: pixels in [-1, 1], float32 on the CPU."""
        images, self.generations = [], {}
        for batch in self.batches:
            self.model.reset()
            images.append(self.draw_batch(model, batch, seed, steps, tick)[: len(batch)].float().cpu())
            self.generations[f"classes {', '.join(map(str, batch))}"] = self.model.stats
        return torch.cat(images)

    def draw_batch(self, model: Callable[..., Any], classes: list[int], seed: int, steps: int, tick: Tick) -> Float[Tensor, "N C H W"]:
        """One call of the sampler; a batch that is not full is filled up with its own classes again."""
        device = self.model.device
        labels = torch.tensor([classes[i % len(classes)] for i in range(self.size)], device=device)
        noise = digits_noise([seed] * self.size, self.model.dtype).to(device)
        return sample(model, self.scheduler, labels, noise, steps=steps, cfg=self.cfg, null_class=self.facts.null_class, progress=tick)


def _latent(manifest: Manifest) -> list[int]:
    return next((leaf.shape for leaf in manifest.call.leaves if leaf.argument == manifest.call.latent and leaf.shape), [])


def engine_source(name: str, engine: Engine, classes: list[int] | None, seeds: list[int], cfg: float | None) -> EngineSource:
    """How to draw with an engine; `classes` None is all of them.

    ArtifactError where the manifest says nothing of a sampler or something that no sampler is, ExportError for classes that are not there.
    """
    manifest = engine.manifest
    if manifest.sampler is None:
        raise ArtifactError(
            f"{name}: says nothing of a sampler; pass --model with its pipeline and --prompt, or put the engine into the pipeline: "
            f"pipe.transformer = rfc_export.load({name!r})"
        )
    facts, scheduler = _facts(name, manifest)
    shape = _latent(manifest)
    if len(shape) != 4 or shape[0] < 2 or shape[0] % 2 or shape[1:] != [1, 8, 8]:
        raise ArtifactError(
            f"{name}: sampler.kind is digits, which needs a latent of shape (2 N, 1, 8, 8), got {tuple(shape)}; export again"
        )
    labels = list(range(facts.null_class)) if classes is None else classes
    if wrong := [label for label in labels if not 0 <= label < facts.null_class]:
        raise ExportError(f"{name}: --classes must lie in 0-{facts.null_class - 1}, got {', '.join(map(str, wrong))}")
    return EngineSource(
        name=name,
        model=engine,
        scheduler=scheduler,
        facts=facts,
        classes=labels,
        seeds=seeds,
        cfg=facts.cfg if cfg is None else cfg,
    )


def _facts(name: str, manifest: Manifest) -> tuple[DigitsFacts, Any]:
    from diffusers import DDIMScheduler

    try:
        facts = DigitsFacts.model_validate(manifest.sampler)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(("sampler", *map(str, first["loc"])))
        raise ArtifactError(f"{name}: {where}: {first['msg']}; export again with this rfc-fx") from error
    try:
        scheduler: Any = DDIMScheduler.from_config(facts.scheduler)
    except Exception as error:  # a scheduler raises what it likes of a configuration
        raise ArtifactError(f"{name}: sampler.scheduler: no DDIM scheduler: {error}; export again") from error
    return facts, scheduler
