"""Drawing with an engine that stands in its pipeline: prompts, classes, or whatever else the pipeline's call takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rfc.record import Record
from rfc_export.errors import ExportError
from rfc_export.manifest import Manifest
from rfc_export.methods import dtype_of
from rfc_export.runtime import Engine
from rfc_export.whole import WholeFolder
from rfc_fx.tools.pipeline.call import CallOptions, PipelineCall, pipeline_call
from rfc_fx.tools.pipeline.folder import PipelineFolder, pipeline_folder
from rfc_fx.tools.pipeline.source import PipelineSource, generation
from rfc_fx.tools.sources import Tick


@dataclass(kw_only=True)
class EngineInPipeline:
    """A pipeline whose denoiser is an engine, and its call."""

    name: str
    model: Engine
    pipeline: PipelineSource
    generations: dict[str, Record] = field(default_factory=dict)
    """Records of the latest draw, by prompt and context."""

    @property
    def seeds(self) -> list[int]:
        return self.pipeline.seeds

    @property
    def groups(self) -> list[str]:
        return self.pipeline.groups

    @property
    def batches(self) -> list[Any]:
        """The calls of a draw, a generation each."""
        return self.pipeline.call.batches

    @property
    def scheduler(self) -> Any:
        """That of the pipeline."""
        return self.pipeline.pipe.scheduler

    @property
    def cfg(self) -> float | None:
        """The guidance of the call."""
        guidance: float | None = self.pipeline.call.arguments.get("true_cfg_scale", self.pipeline.cfg)
        return guidance

    def draw(self, model: nn.Module, seed: int, steps: int, tick: Tick) -> Float[Tensor, "N C H W"]:
        """One sample of every prompt: pixels in [-1, 1], float32 on the CPU."""
        images, self.generations = [], {}
        with self.pipeline.exchanged(model):
            for own, samples in self.batches:
                self.model.reset()
                drawn = generation(self.pipeline.pipe, self.pipeline.call, own, samples, seed, steps, tick)
                images.append(drawn.media.samples)
                prompt = own.get("prompt", "sample")
                self.generations |= {f"{prompt}: {context}": record for context, record in self.model.contexts.items()}
        return torch.cat(images)


def whole_pipeline(
    path: Path, call: CallOptions, seeds: list[int], loaded: Callable[[WholeFolder], tuple[Engine, dict[str, nn.Module]]]
) -> EngineInPipeline:
    """A pipeline all of whose models are engines (`export_whole`); its call is checked before `loaded` opens them."""
    whole, folder = WholeFolder.read(path), pipeline_folder(str(path))
    options = pipeline_call(folder, call)
    engine, parts = loaded(whole)
    options = _with_samples_of(engine, folder, call, options)
    pipe = folder.load(engine.dtype, engine.device, **{whole.denoiser: engine}, **parts)
    return EngineInPipeline(name=str(path), model=engine, pipeline=PipelineSource(name=str(path), pipe=pipe, call=options, seeds=seeds))


def engine_in_pipeline(name: str, engine: Engine, model: str, call: CallOptions, seeds: list[int]) -> EngineInPipeline:
    """The pipeline `model` with an engine for its denoiser; ExportError where that denoiser is of another class."""
    manifest: Manifest = engine.manifest
    folder = pipeline_folder(model)
    options = _with_samples_of(engine, folder, call, pipeline_call(folder, call))
    pipe = folder.load(dtype_of("model.dtype", manifest.model.dtype), engine.device)
    source = PipelineSource(name=model, pipe=pipe, call=options, seeds=seeds)
    if (own := type(source.model).__name__) != manifest.model.model_class:
        raise ExportError(f"{model}: has a {own}, the engine was made from a {manifest.model.model_class}; pass --model of that pipeline")
    return EngineInPipeline(name=name, model=engine, pipeline=source)


def _with_samples_of(engine: Engine, folder: PipelineFolder, call: CallOptions, options: PipelineCall) -> PipelineCall:
    """The call with as many classes, where none were said, as the engine's first call has samples; guidance doubles its rows."""
    shape = engine.manifest.call.latent_shape
    if call.classes is not None or not options.classes or not shape:
        return options
    guidance = options.value("guidance_scale")
    is_guided = guidance is not None and guidance > 1 and shape[0] % 2 == 0
    samples, count = shape[0] // (1 + is_guided), folder.denoiser_config().get("num_embeds_ada_norm") or 1
    return replace(options, classes=[i % count for i in range(samples)])
