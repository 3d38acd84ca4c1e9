"""A pipeline as a source of samples, with any of its arguments and whatever it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rfc_fx.pipelines.accelerated import transformers_of
from rfc_fx.tools.load import LoadError, one_line
from rfc_fx.tools.pipeline.call import PipelineCall
from rfc_fx.tools.pipeline.media import Media, Samples, media_of


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One generation: a sample of one group, or of every class."""

    media: Media
    latents: Tensor | None
    """What the last step left, where the pipeline tells."""
    steps: int
    """Steps that were taken, where the pipeline tells; else those that were asked for."""


@dataclass(kw_only=True)
class PipelineSource:
    """A diffusers pipeline with its call; a denoiser may be exchanged for the time of a draw."""

    name: str
    pipe: Any
    call: PipelineCall
    seeds: list[int]

    @property
    def model(self) -> nn.Module:
        """The first denoiser."""
        return next(iter(transformers_of(self.pipe).values()))

    @property
    def groups(self) -> list[str]:
        return self.call.groups

    @property
    def cfg(self) -> float | None:
        """The guidance of the call."""
        return self.call.value("guidance_scale")  # type: ignore[no-any-return]

    def draw(self, model: nn.Module, seed: int, steps: int, tick: Callable[[], object]) -> Samples:
        """One sample of every group, with `model` in the place of the first denoiser."""
        with self.exchanged(model):
            return torch.cat([drawn.media.samples for drawn in self.generations(self.pipe, seed, steps, tick)])

    def generations(self, pipe: Any, seed: int, steps: int, tick: Callable[[], object]) -> Iterator[Drawn]:
        """One generation for each batch of the call."""
        for own, samples in self.call.batches:
            yield generation(pipe, self.call, own, samples, seed, steps, tick)

    @contextmanager
    def exchanged(self, model: nn.Module) -> Iterator[None]:
        """The pipeline with `model` for its first denoiser."""
        name, own = next(iter(transformers_of(self.pipe).items()))
        setattr(self.pipe, name, model)
        if callable(follow := getattr(model, "follow", None)) and hasattr(self.pipe, "scheduler"):
            follow(self.pipe)
        try:
            yield
        finally:
            setattr(self.pipe, name, own)


@torch.no_grad()
def generation(
    pipe: Any, call: PipelineCall, own: dict[str, Any], samples: int, seed: int, steps: int, tick: Callable[[], object]
) -> Drawn:
    """Call the pipeline once; `tick` is called once a step."""
    arguments = call.keywords(own, samples, seed, steps)
    taken, latents = 0, None

    def count(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        nonlocal taken, latents
        taken, latents = taken + 1, tensors.get("latents")
        tick()
        return {}

    reports = "callback_on_step_end" in call.parameters
    if reports:
        arguments["callback_on_step_end"] = count
    if "generator" not in call.parameters:
        torch.manual_seed(seed)
    output = pipe(**arguments)
    for _ in range(taken, steps):  # those that were not told, or that the pipeline left out
        tick()
    return Drawn(
        media=media_of(output, samples),
        latents=latents.detach().float().cpu() if isinstance(latents, Tensor) else None,
        steps=taken or steps,
    )


@contextmanager
def refusing(source: PipelineSource) -> Iterator[None]:
    """What the untransformed pipeline refuses about its arguments is one LoadError of one line."""
    try:
        yield
    except LoadError:
        raise
    except Exception as error:
        what = f"{type(source.pipe).__name__} cannot be called like this"
        raise LoadError(f"{source.name}: {what}: {type(error).__name__}: {one_line(error)}") from error
