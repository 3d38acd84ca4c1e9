"""What the quality laboratory draws: trained models, samplers, seeds and labels, real pictures, and the classifier that looks at them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import typer
from jaxtyping import Float, Int
from torch import Tensor

from benchmarks.training import shapes_data as shapes
from rfc_fx import zoo

Images = Float[Tensor, "N C H W"]


EVALUATED, CALIBRATED, FORCED = 1_000_000, 900_000, 800_000
"""First seeds of the samples that are judged, of those that thresholds are found with, and of the teacher-forced ones; never the same."""


GROUP = 10_000
"""Seeds from one group of judged samples to the next."""


CLASSES = 10


class Classifier(Protocol):
    """A trained classifier whose inner values serve as features."""

    def features(self, x: Images) -> Float[Tensor, "N D"]:
        """For the Frechet distance: what its last layer reads."""
        ...

    def spatial(self, x: Images) -> Float[Tensor, "N S"]:
        """For the spatial variant: a few channels of an earlier layer, places kept apart."""
        ...

    def logits(self, x: Images) -> Float[Tensor, "N K"]: ...


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A trained model and what belongs to it."""

    name: str
    what: str
    load: Callable[[], tuple[Any, Any]]
    """Returns the model and the scheduler it was trained with."""
    noise: Callable[[list[int]], Images]
    real: Callable[[], Images]
    """Real pictures for the Frechet distance, in [-1, 1]."""
    real_is: str
    guidance: float = 1.5


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """A sampler, its number of steps, and the numbers of full computations it is judged at."""

    name: str
    what: str
    steps: int
    budgets: tuple[int, ...]
    shown: tuple[int, ...] = ()
    """Budgets whose samples are shown side by side."""
    controlled: tuple[int, ...] = ()
    """Budgets of the methods that only stand in a table of parts or variants."""
    scheduler: Callable[[Any], Any] = lambda scheduler: scheduler
    """Makes it from the model's own scheduler."""

    def judged_at(self, kind: str) -> tuple[int, ...]:
        """The budgets of a kind of method (`benchmarks.quality.entry.Entry`)."""
        return self.controlled if kind == "control" else self.budgets

    def at(self, budgets: Collection[int]) -> Sampler:
        """The same sampler at these budgets alone."""
        judged, shown, controlled = (tuple(b for b in of if b in budgets) for of in (self.budgets, self.shown, self.controlled))
        return replace(self, budgets=judged, shown=shown, controlled=controlled)


def dpm_solver(scheduler: Any) -> Any:
    """DPM-Solver++ of second order, multistep (arXiv 2211.01095), on the same noise levels."""
    from diffusers import DPMSolverMultistepScheduler

    names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")
    clipped = {"lambda_min_clipped": -5.1} if scheduler.config["beta_schedule"] == "squaredcos_cap_v2" else {}  # as its documentation says
    return DPMSolverMultistepScheduler(
        **{name: scheduler.config[name] for name in names}, **clipped, algorithm_type="dpmsolver++", solver_order=2
    )


SAMPLERS = {
    sampler.name: sampler
    for sampler in (
        Sampler(name="ddim-50", what="DDIM, 50 steps", steps=50, budgets=(25, 17, 14, 11, 8, 7), shown=(8,), controlled=(14, 11, 8)),
        Sampler(name="ddim-20", what="DDIM, 20 steps", steps=20, budgets=(10, 7, 5)),
        Sampler(
            name="dpmpp-20",
            what="DPM-Solver++ (second order), 20 steps",
            steps=20,
            budgets=(10, 7, 5),
            scheduler=dpm_solver,
        ),
    )
}


QUICK = Sampler(name="ddim-8", what="DDIM, 8 steps", steps=8, budgets=(4,), shown=(4,), controlled=(4,))


@dataclass(frozen=True, kw_only=True)
class Lot:
    """Seeds and labels of some samples, in batches."""

    seeds: list[int]
    labels: Int[Tensor, " N"]
    batch: int

    @classmethod
    def of(cls, seeds: Sequence[int], batch: int) -> Lot:
        """Every class in turn; BadParameter unless the batches are whole: programs are made for one batch size."""
        if not seeds or len(seeds) % batch:
            raise typer.BadParameter(f"{len(seeds)} samples are no whole number of batches of {batch}")
        return cls(seeds=list(seeds), labels=torch.arange(len(seeds)) % CLASSES, batch=batch)

    @property
    def batches(self) -> list[slice]:
        return [slice(start, start + self.batch) for start in range(0, len(self.seeds), self.batch)]


def judged(samples: int, groups: int, batch: int) -> Lot:
    """The samples that are judged: `groups` groups of seeds that lie far apart."""
    if samples % groups:
        raise typer.BadParameter(f"{samples} samples are not {groups} groups of one size")
    each = samples // groups
    return Lot.of([EVALUATED + group * GROUP + i for group in range(groups) for i in range(each)], batch)


def _real_digits() -> Images:
    from benchmarks.training.digits import digits

    train, _, held, _ = digits()
    return torch.cat([train, held])


def _trained_shapes() -> tuple[Any, Any]:
    """The shipped shapes model; BadParameter where it is missing."""
    if not shapes.MODEL.is_dir():
        raise typer.BadParameter(f"no model in {shapes.MODEL}: train one with python -m benchmarks.train_shapes (an hour or more)")
    return zoo.load(shapes.MODEL)


def _real_shapes(number: int = 5000) -> Images:
    return shapes.draw(torch.arange(number) % CLASSES, torch.Generator().manual_seed(7))


def classifier(name: str) -> Classifier:
    """The classifier trained on a model's data; BadParameter where its weights are missing."""
    from benchmarks.quality.classifier import load

    try:
        return load(name)  # type: ignore[arg-type]  # its names are the workloads'
    except FileNotFoundError as error:
        raise typer.BadParameter(f"no classifier for {name}: run python -m benchmarks.classifier ({error})") from None


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            name="digits",
            what="the shipped digits model: 8x8 grey, 8 blocks of 128, 64 tokens",
            load=zoo.load_digits,
            noise=zoo.digits_noise,
            real=_real_digits,
            real_is="scikit-learn's 1,797 digits",
        ),
        Workload(
            name="shapes",
            what="a trained shapes model: 32x32 RGB, 8 blocks of 192, 64 tokens",
            load=_trained_shapes,
            noise=shapes.noise,
            guidance=shapes.GUIDANCE,
            real=_real_shapes,
            real_is="5,000 pictures drawn by benchmarks.training.shapes_data",
        ),
    )
}


@dataclass(frozen=True)
class Bench:
    """A loaded workload on its device, and what draws with it."""

    workload: Workload
    model: Any
    scheduler: Any
    """The model's own."""
    device: torch.device

    @classmethod
    def of(cls, workload: Workload, device: str = "cpu") -> Bench:
        model, scheduler = workload.load()
        return cls(workload, model.to(device), scheduler, torch.device(device))

    def draw(
        self, model: Callable[..., Any], sampler: Sampler, lot: Lot, part: slice, progress: Callable[[], object] | None = None
    ) -> Images:
        """One batch of a lot, conditional and unconditional halves in one call; on the CPU."""
        samples = zoo.sample(
            model,
            sampler.scheduler(self.scheduler),
            lot.labels[part].to(self.device),
            self.workload.noise(lot.seeds[part]).to(self.device),
            steps=sampler.steps,
            cfg=self.workload.guidance,
            progress=progress,
        )
        return samples.cpu()
