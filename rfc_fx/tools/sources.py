"""Sources: a model and how samples are drawn from it, and the inputs of one call of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rfc_fx.tools.load import LoadError, load_pipeline, load_scheduler, load_transformer, locate, model_kind
from rfc_fx.zoo import NULL_CLASS, digits_noise, sample

Tick = Callable[[], object]

_DIGITS_CONFIG = {"in_channels": 1, "out_channels": 1, "sample_size": 8, "num_embeds_ada_norm": NULL_CLASS}


class Source(Protocol):
    """A model and how to draw from it: `groups` of samples (a class, a prompt), each once per seed."""

    name: str
    seeds: list[int]

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


@dataclass(kw_only=True)
class PipelineSource:
    """A diffusers pipeline whose transformer is exchanged for the time of a call."""

    name: str
    pipe: Any
    classes: list[int]
    prompts: list[str]
    seeds: list[int]
    cfg: float | None
    """None: the pipeline's own default."""

    @property
    def model(self) -> nn.Module:
        return self.pipe.transformer  # type: ignore[no-any-return]

    @property
    def groups(self) -> list[str]:
        return self.prompts or [str(label) for label in self.classes]

    def arguments(self, seed: int, steps: int) -> dict[str, Any]:
        """What the pipeline is called with; noise comes from CPU generators, one a sample, so it is the same on every device."""
        conditions: list[Any] = list(self.prompts or self.classes)
        generators = [torch.Generator().manual_seed(seed) for _ in self.groups]
        guidance = {} if self.cfg is None else {"guidance_scale": self.cfg}
        parameter = "prompt" if self.prompts else "class_labels"
        return {parameter: conditions, "generator": generators, "num_inference_steps": steps, "output_type": "np", **guidance}

    def draw(self, model: nn.Module, seed: int, steps: int, tick: Tick) -> Float[Tensor, "N C H W"]:
        arguments = self.arguments(seed, steps)

        def count(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            tick()
            return tensors

        reports = "callback_on_step_end" in inspect.signature(self.pipe.__call__).parameters
        if reports:
            arguments["callback_on_step_end"] = count
        with self.exchanged(model):
            images = self.pipe(**arguments).images
        for _ in range(0 if reports else steps):
            tick()
        return torch.as_tensor(images).permute(0, 3, 1, 2).float() * 2 - 1

    @contextmanager
    def exchanged(self, model: nn.Module) -> Iterator[None]:
        """The pipeline with `model` for a transformer."""
        own = self.pipe.transformer
        self.pipe.transformer = model
        if callable(follow := getattr(model, "follow", None)) and hasattr(self.pipe, "scheduler"):
            follow(self.pipe)
        try:
            yield
        finally:
            self.pipe.transformer = own


def load_source(
    name: str,
    *,
    classes: list[int] | None,
    prompts: list[str],
    seeds: list[int],
    cfg: float | None,
    dtype: torch.dtype,
    device: torch.device,
) -> DigitsSource | PipelineSource:
    """Return the model `name` and how to draw from it; `classes` None is all ten digits, or a pipeline's first four."""
    where = locate(name)
    kind = model_kind(where)
    if kind == "transformer":
        raise LoadError(f"{name}: a transformer alone cannot draw images; pass its pipeline folder, or add scheduler_config.json (digits)")
    if kind == "digits":
        if prompts:
            raise LoadError(f"{name}: --prompt is for text pipelines; this model draws classes, pass --classes")
        assert isinstance(where, Path)
        model, scheduler = load_transformer(where, dtype, device), load_scheduler(where)
        config = {key: getattr(model.config, key, None) for key in _DIGITS_CONFIG}
        if config != _DIGITS_CONFIG:
            raise LoadError(f"{name}: config.json has {config}, the digits layout needs {_DIGITS_CONFIG}; pass a pipeline folder instead")
        labels = _checked_classes(name, list(range(NULL_CLASS)) if classes is None else classes, NULL_CLASS)
        return DigitsSource(name=name, model=model, scheduler=scheduler, classes=labels, seeds=seeds, cfg=1.5 if cfg is None else cfg)
    pipe = load_pipeline(where, dtype, device)
    parameters = inspect.signature(pipe.__call__).parameters
    if "class_labels" in parameters:
        if prompts:
            raise LoadError(f"{name}: {type(pipe).__name__} takes classes, not prompts; pass --classes")
        labels = _checked_classes(name, list(range(4)) if classes is None else classes, pipe.transformer.config.num_embeds_ada_norm)
        return PipelineSource(name=name, pipe=pipe, classes=labels, prompts=[], seeds=seeds, cfg=cfg)
    if classes is not None or not prompts:
        raise LoadError(f"{name}: {type(pipe).__name__} takes prompts; pass --prompt TEXT (once or several times) and no --classes")
    return PipelineSource(name=name, pipe=pipe, classes=[], prompts=prompts, seeds=seeds, cfg=cfg)


def _checked_classes(name: str, classes: list[int], count: int) -> list[int]:
    if wrong := [label for label in classes if not 0 <= label < count]:
        raise LoadError(f"{name}: --classes must lie in 0-{count - 1}, got {', '.join(map(str, wrong))}")
    return classes
