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
from rfc_export.example_calls import Wanted, pipeline_calls, pipeline_sources
from rfc_export.manifest import Manifest
from rfc_export.runtime import Engine
from rfc_fx.tools.inputs import NEEDED, load_with_inputs, pipeline_inputs
from rfc_fx.tools.load import locate, model_kind
from rfc_fx.tools.pipeline.folder import pipeline_folder
from rfc_fx.tools.pipeline.source import refusing
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
    """A model, the arguments of the calls that its engine will answer, and what a sampler needs to know."""

    model: nn.Module
    calls: list[dict[str, Any]]
    sampler: dict[str, Any] | None
    """None: `rfc-fx run` cannot draw with it."""
    others: tuple[str, ...] = ()
    """Further denoisers of the pipeline, which this is no engine of."""
    scheduler: Any = None
    """As it stands in a generation of the first of a pipeline's calls."""


def exportable(name: str, dtype: torch.dtype, device: torch.device, wanted: Wanted, steps: int | None = None) -> Exportable:
    """Load a model for calls of every wanted batch, with guidance: of digits ten samples where nothing is said, of others one.

    `steps`: of a pipeline's generation (None: its own number).
    LoadError for what cannot be loaded, ExportError where such calls cannot be made.
    """
    kind = model_kind(locate(name))
    if kind != "pipeline" and (wanted.sizes or wanted.call is not None):
        raise ExportError(f"{name}: --shapes, --prompt, --negative-prompt and --call are for pipelines; call rfc_export.export instead")
    if is_called(name, wanted):
        model, calls, scheduler = pipeline_calls(name, dtype, device, wanted, steps)
        return Exportable(model, calls, None, tuple(pipeline_folder(name).denoisers[1:]), scheduler)
    if kind != "digits":
        model, inputs = load_with_inputs(name, dtype, device)
        return Exportable(model, [_repeated(name, inputs, batch) for batch in wanted.batches or [1]], None)
    source = load_source(name, classes=None, prompts=[], seeds=[0], cfg=CFG, dtype=dtype, device=device)
    assert isinstance(source, DigitsSource)
    facts = DigitsFacts(kind="digits", scheduler=json.loads(source.scheduler.to_json_string()), cfg=CFG, null_class=NULL_CLASS)
    calls = [_digits_call(count, dtype, device) for count in wanted.batches or [NULL_CLASS]]
    return Exportable(source.model, calls, facts.model_dump())


def with_first_call(name: str, dtype: torch.dtype, device: torch.device) -> Exportable:
    """Load a model with one call by default arguments, for which nothing of the model runs; errors as of `exportable`."""
    if not is_called(name, Wanted()):
        return exportable(name, dtype, device, Wanted())
    source = next(pipeline_sources(name, dtype, device, Wanted()))
    with refusing(source):
        return Exportable(source.model, [pipeline_inputs(source)], None)


def is_called(name: str, wanted: Wanted) -> bool:
    """Whether the calls are those that a pipeline makes in its first step, and no model's that is loaded alone."""
    said = bool(wanted.sizes) or wanted.call is not None
    return model_kind(locate(name)) == "pipeline" and (said or not _is_class_conditional(name))


def _digits_call(count: int, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    labels = [i % NULL_CLASS for i in range(count)] + [NULL_CLASS] * count
    return {
        HIDDEN: digits_noise([0] * (2 * count), dtype).to(device),
        "timestep": torch.full((2 * count,), 500, device=device),
        "class_labels": torch.tensor(labels, device=device),
    }


def _is_class_conditional(name: str) -> bool:
    """Whether inputs can be made from the denoiser's configuration, without the pipeline."""
    folder = pipeline_folder(name)
    config = folder.denoiser_config()
    return "class_labels" in folder.parameters and all(config.get(key) is not None for key in NEEDED)


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
    def sizes(self) -> list[int]:
        """Samples in the engine's calls, which guidance doubles; from few to many."""
        return sorted({one.call.latent_shape[0] // 2 for one in self.model.manifest.sets})

    def size_of(self, number: int) -> int:
        """Samples in one of the engine's calls."""
        return self.model.manifest.sets[number].call.latent_shape[0] // 2

    @property
    def size(self) -> int:
        """Samples in a call, at most."""
        return self.sizes[-1]

    @property
    def filled(self) -> int:
        """Samples of the last batch that are drawn and not shown."""
        last = len(self.batches[-1]) if self.batches else 0
        return next((size - last for size in self.sizes if size >= last), 0)

    @property
    def batches(self) -> list[list[int]]:
        """The classes of each call."""
        return [self.classes[i : i + self.size] for i in range(0, len(self.classes), self.size)]

    def draw(self, model: nn.Module, seed: int, steps: int, tick: Tick) -> Float[Tensor, "N C H W"]:
        """One sample of every class, a generation for every batch: pixels in [-1, 1], float32 on the CPU."""
        images, self.generations = [], {}
        for batch in self.batches:
            with self.model.generation(source=self.scheduler) as generation:  # a list that was fitted to other levels says so
                images.append(self.draw_batch(model, batch, seed, steps, tick)[: len(batch)].float().cpu())
            self.generations[f"classes {', '.join(map(str, batch))}"] = generation.stats
        return torch.cat(images)

    def draw_batch(self, model: Callable[..., Any], classes: list[int], seed: int, steps: int, tick: Tick) -> Float[Tensor, "N C H W"]:
        """One call of the sampler, the smallest that holds the batch; one that is not full is filled up with its own classes again."""
        device = self.model.device
        size = next(size for size in self.sizes if size >= len(classes))
        labels = torch.tensor([classes[i % len(classes)] for i in range(size)], device=device)
        noise = digits_noise([seed] * size, self.model.dtype).to(device)
        return sample(model, self.scheduler, labels, noise, steps=steps, cfg=self.cfg, null_class=self.facts.null_class, progress=tick)


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
    for shape in (one.call.latent_shape for one in manifest.sets):
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
