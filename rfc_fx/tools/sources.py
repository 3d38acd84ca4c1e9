"""Sources: a model and how samples are drawn from it, and the inputs of one call of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rfc_fx.tools.load import LoadError, load_scheduler, load_transformer, locate, model_kind, reading
from rfc_fx.tools.pipeline.call import CallOptions, checked_classes, pipeline_call
from rfc_fx.tools.pipeline.folder import pipeline_folder
from rfc_fx.tools.pipeline.source import PipelineSource
from rfc_fx.zoo import NULL_CLASS, digits_noise, sample

Tick = Callable[[], object]

_DIGITS_CONFIG = {"in_channels": 1, "out_channels": 1, "sample_size": 8, "num_embeds_ada_norm": NULL_CLASS}


class Source(Protocol):
    """A model and how to draw from it: `groups` of samples (a class, a prompt), each once per seed."""

    @property
    def name(self) -> str: ...
    @property
    def seeds(self) -> list[int]: ...
    @property
    def model(self) -> nn.Module: ...
    @property
    def groups(self) -> list[str]: ...

    def draw(self, model: nn.Module, seed: int, steps: int, tick: Tick) -> Float[Tensor, "N C H W"]:
        """One sample of every group, in one batch: pixels in [-1, 1], float32 on the CPU; `tick` is called once a step."""
        ...


@dataclass(kw_only=True)
class DigitsSource:
    """A folder in the layout of the digits model: config.json, safetensors, scheduler_config.json."""

    name: str
    model: nn.Module
    scheduler: Any
    classes: list[int]
    seeds: list[int]
    cfg: float

    @property
    def groups(self) -> list[str]:
        return [str(label) for label in self.classes]

    def draw(self, model: nn.Module, seed: int, steps: int, tick: Tick) -> Float[Tensor, "N C H W"]:
        weights = next(self.model.parameters())
        labels = torch.tensor(self.classes, device=weights.device)
        noise = digits_noise([seed] * len(self.classes), weights.dtype).to(weights.device)
        return sample(model, self.scheduler, labels, noise, steps=steps, cfg=self.cfg, progress=tick).float().cpu()


def load_source(
    name: str,
    *,
    classes: list[int] | None,
    prompts: list[str],
    seeds: list[int],
    cfg: float | None,
    dtype: torch.dtype | None,
    device: torch.device,
    assignments: Sequence[str] = (),
) -> DigitsSource | PipelineSource:
    """Return the model `name` and how to draw from it; `classes` None is all ten digits, or a pipeline's first four.

    `dtype` None is that of the folder's own weights; `assignments` are texts `name=value` for the call of a pipeline.
    """
    where = locate(name)
    if model_kind(where) != "digits":
        folder = pipeline_folder(name)
        call = pipeline_call(folder, CallOptions(prompts=prompts, classes=classes, cfg=cfg, assignments=assignments))
        return PipelineSource(name=name, pipe=folder.load(dtype, device), call=call, seeds=seeds)
    if prompts or assignments:
        option = "--prompt is for text pipelines" if prompts else "--call is for pipelines"
        raise LoadError(f"{name}: {option}; this model draws classes, pass --classes")
    assert isinstance(where, Path)
    labels = checked_classes(name, list(range(NULL_CLASS)) if classes is None else classes, NULL_CLASS)
    model, scheduler = load_transformer(where, dtype, device), load_scheduler(where)
    config = {key: getattr(model.config, key, None) for key in _DIGITS_CONFIG}
    if config != _DIGITS_CONFIG:
        raise LoadError(f"{name}: config.json has {config}, the digits layout needs {_DIGITS_CONFIG}; pass a pipeline folder instead")
    source = DigitsSource(name=name, model=model, scheduler=scheduler, classes=labels, seeds=seeds, cfg=1.5 if cfg is None else cfg)
    with reading(where):  # settings that no sampler or model can work with
        trial = replace(source, classes=labels[:1], scheduler=copy.deepcopy(scheduler))
        if not torch.isfinite(trial.draw(model, seeds[0], 2, lambda: None)).all():
            raise LoadError(f"{name}: two steps of a trial gave numbers that are not finite; copy the model again")
    return source
