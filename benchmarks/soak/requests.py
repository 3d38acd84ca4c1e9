"""Requests: random generations of every kind that share models, and the failures that end some of them early."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import count, product
from typing import Any, Literal

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rfc_fx.zoo import NULL_CLASS, starting_noise

SAMPLERS: Mapping[str, Any] = {
    "DDIM": DDIMScheduler,
    "DPM++ 2M": DPMSolverMultistepScheduler,
    "Euler": EulerDiscreteScheduler,
    "Heun": HeunDiscreteScheduler,
}
SIZES, MOST_BATCH = (8, 12), 2
"""Rows and columns of the latent, and samples; engines have the first alone. With two types of timesteps: eight sets of programs."""

Failure = Literal["none", "in a program", "in the sampler", "out of memory", "cancelled", "left early"]
FAILURES: tuple[Failure, ...] = ("in a program", "in the sampler", "out of memory", "cancelled", "left early")
PIPELINE_FAILURES: tuple[Failure, ...] = ("in the sampler", "out of memory", "cancelled")


class InjectedError(Exception):
    """A failure that a request was told to have."""


class _FailingOperation(TorchDispatchMode):
    """Raises in the given operation of torch, which is in the middle of some program."""

    def __init__(self, operation: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.left = operation

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if self.left == 0:
            raise InjectedError("in a program")
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True, kw_only=True)
class Request:
    """One generation: what is drawn, how, and where it fails."""

    model: str
    sampler: str
    steps: int
    batch: int
    size: int
    seed: int
    failure: Failure = "none"
    at: int = 0
    """The step of the failure."""


def every_signature(models: list[str]) -> Iterator[Request]:
    """A request for each set of programs that random ones need."""
    for model in models:
        for sampler in ("DDIM", "Euler"):
            for size, batch in product(SIZES, range(1, MOST_BATCH + 1)) if not model.startswith("engine") else ((SIZES[0], 1),):
                yield Request(model=model, sampler=sampler, steps=4, batch=batch, size=size, seed=0)


def random_request(generator: random.Random, models: list[str]) -> Request:
    """A request of any kind; one in four fails."""
    model, steps = generator.choice(models), generator.randint(3, 12)
    is_engine, is_pipeline = model.startswith("engine"), model.startswith("pipeline")
    failures = PIPELINE_FAILURES if is_pipeline else FAILURES
    return Request(
        model=model,
        sampler=generator.choice(list(SAMPLERS)),
        steps=steps,
        batch=1 if is_engine else generator.randint(1, MOST_BATCH),
        size=SIZES[0] if is_engine or is_pipeline else generator.choice(SIZES),
        seed=generator.randrange(1 << 30),
        failure=generator.choice(failures) if generator.randrange(4) == 0 else "none",
        at=generator.randrange(1, steps),
    )


class Pipelined:
    """An accelerated pipeline, whose calls take turns: it has one scheduler, which every request exchanges for its own."""

    def __init__(self, pipe: Any) -> None:
        self.pipe, self._lock = pipe, threading.Lock()

    def draw(self, request: Request) -> Tensor:
        """The latents of a request."""
        scheduler, steps = SAMPLERS[request.sampler](), count()
        own = scheduler.step

        def step(*args: Any, **kwargs: Any) -> Any:
            if next(steps) == request.at:
                fail(request.failure)
            return own(*args, **kwargs)

        with self._lock:
            self.pipe.scheduler, scheduler.step = scheduler, step
            generators = [torch.Generator().manual_seed(request.seed + i) for i in range(request.batch)]
            labels = [i % NULL_CLASS for i in range(request.batch)]
            drawn = self.pipe(labels, num_inference_steps=request.steps, generator=generators, output_type="latent")
        latents: Tensor = drawn.images
        return latents


def fail(failure: Failure) -> None:
    """Raise what the failure is, where it is one that raises between two steps."""
    if failure == "in the sampler":
        raise InjectedError(failure)
    if failure == "out of memory":
        raise torch.OutOfMemoryError("injected")
    if failure == "cancelled":
        raise asyncio.CancelledError


@torch.no_grad()
def drawn(request: Request, model: Any) -> Tensor:
    """The latents of a request; InjectedError, OutOfMemoryError or CancelledError where it fails."""
    if isinstance(model, Pipelined):
        return model.draw(request)
    scheduler = SAMPLERS[request.sampler]()
    scheduler.set_timesteps(request.steps)
    labels = torch.arange(request.batch) % NULL_CLASS
    both = torch.cat([labels, torch.full_like(labels, NULL_CLASS)])
    x: Tensor = (
        starting_noise((1, request.size, request.size), [request.seed + i for i in range(request.batch)]) * scheduler.init_noise_sigma
    )
    with model.generation(source=scheduler) as generation:
        for step, timestep in enumerate(scheduler.timesteps):
            fails = step == request.at and request.failure
            inputs = scheduler.scale_model_input(torch.cat([x, x]), timestep)
            with _FailingOperation(7) if fails == "in a program" else nullcontext():
                both_noises = generation(inputs, timestep=timestep.expand(len(both)), class_labels=both).sample
            if fails == "left early":
                break
            if fails:
                fail(fails)
            cond, uncond = both_noises.chunk(2)
            x = scheduler.step(uncond + 1.5 * (cond - uncond), timestep, x).prev_sample
    return x


async def drawn_in_a_task(request: Request, model: Any) -> Tensor:
    """The same in a task that gives way to others, and is cancelled where the request says so."""
    await asyncio.sleep(0)
    return await asyncio.to_thread(drawn, request, model)


def outcome(request: Request, model: Any) -> Failure:
    """How the request ended: as it was told to."""
    try:
        drawn(request, model)
    except InjectedError:
        return "in a program" if request.failure == "in a program" else "in the sampler"
    except torch.OutOfMemoryError:
        return "out of memory"
    except asyncio.CancelledError:
        return "cancelled"
    return "left early" if request.failure == "left early" else "none"
