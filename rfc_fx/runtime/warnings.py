"""Warnings: settings that a generation shows to be wrong, each said once for a model."""

from __future__ import annotations

import warnings

from rfc.bookkeeping import Book, never_skipped
from rfc.schedules.base import Schedule
from rfc_fx.runtime.position import Position


class NothingSkippedWarning(UserWarning):
    """A generation ran every step in full although its schedule could have skipped some."""


class StepsMismatchWarning(UserWarning):
    """A generation has other steps than its full steps were placed for (`rfc.Placed`: `rfc.Chebyshev`, `rfc.MagCache`, `rfc.Weighted`)."""


class UnknownLevelsWarning(UserWarning):
    """Full steps cannot be placed, because the noise levels of the generation are not known; every step is computed in full."""


class UncertainCallWarning(UserWarning):
    """Calls of a model cannot be told apart, so they are computed in full."""


class LateCallWarning(UserWarning):
    """A call comes again after steps that were made without it, and nobody has said the sampler."""


class RepeatedCallWarning(UserWarning):
    """The same call comes twice, and nobody has said whether it is another generation's."""


class ForeignHooksWarning(UserWarning):
    """Calls are made with hooks on the model that are there for these calls alone; the plain model takes them."""


class UnknownPassWarning(UserWarning):
    """A method has other full steps for calls without a condition, and no call of a generation was one."""


class RisingTimestepWarning(UserWarning):
    """Calls at rising timesteps are taken for one generation; nobody has said so."""


class MovedWeightsWarning(UserWarning):
    """Weights lie elsewhere than in the generation before, so that CUDA graphs are recorded again."""


class Warned:
    """What a model has warned of, and how it does."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._said: set[type[Warning]] = set()
        self.can_skip = True
        """Whether the method could estimate a step: otherwise no doubt matters."""

    def at_the_end(self, record: Book, schedule: Schedule, *, is_known: bool = False) -> None:
        """Say what was wrong with a generation that has ended; `is_known`: the schedule was made for its own timesteps."""
        if never_skipped(record, schedule):
            self._once(
                NothingSkippedWarning,
                f"all {record.step} steps of a generation were computed in full although {schedule} "
                "could skip; raise its threshold, or check that one generation reaches one context",
            )
        if record.has_moved and not is_known:  # otherwise it may be the beginning of one whose timestep rises
            self.of_length(schedule, record.step)

    def of_step(self, schedule: Schedule, step: int) -> None:
        """Warn where a generation has come to more steps than its full steps were placed for."""
        self.of_length(schedule, step, " or more")

    def of_length(self, schedule: Schedule, steps: int, more: str = "") -> None:
        """Warn where full steps were placed for generations of another length than `steps` (or `more`)."""
        if schedule.is_placed and steps != schedule.num_steps:
            self._once(
                StepsMismatchWarning,
                f"a generation of {steps}{more} steps, but the full steps were placed for one of {schedule.num_steps}; "
                "pass the number of calls of a generation as `num_steps` of the method",
            )

    def of_few_steps(self, schedule: Schedule, steps: int) -> None:
        """Warn where a generation has so few steps that none can be skipped."""
        if not schedule.can_skip(steps):
            self._once(NothingSkippedWarning, f"a generation of {steps} steps is computed in full: {schedule} has nothing to skip in it")

    def of_other_levels(self, schedule: Schedule, used: Schedule, steps: int) -> None:
        """Warn where the weights of a method were fitted at other noise levels than a generation has."""
        self._once(
            StepsMismatchWarning,
            f"the weights of this method were fitted to the noise levels of {schedule.num_steps} steps; this generation of {steps} steps "
            f"has others, so it takes rfc.LogSNR's full steps and Newton's polynomial, {used.nfc} full steps; fit again for it with "
            "rfc-fx tune, at the steps, scheduler and size that you draw with",
        )

    def of_unknown_levels(self) -> None:
        """Warn where full steps cannot be placed for want of noise levels."""
        self._once(
            UnknownLevelsWarning,
            "the full steps are placed by a generation's noise levels, which are not known here, so every step is computed in full; "
            "use rfc_fx.accelerate(pipe), pass source=pipe (or a scheduler) to rfc_fx.transform, open model.generation(scheduler=...), or "
            "choose a method that needs none, such as rfc.Chebyshev",
        )

    def of_passes(self, names: list[str]) -> None:
        """Warn where full steps of their own were asked for a pass that no call was."""
        self._once(
            UnknownPassWarning,
            f"uncond_nfc was not used: no call of a generation was named 'uncond', only {', '.join(names)}; both passes of guidance in one "
            "batch have one list of full steps; where they are calls of their own, name them with model.cache_context('uncond')",
        )

    def of_rising(self) -> None:
        """Warn where calls at rising timesteps are taken for one generation."""
        self._once(
            RisingTimestepWarning,
            "its timestep rises from call to call, which is taken for one generation whose timestep rises from noise to image; if these "
            "are requests of one step each, open model.generation() for each of them; if not, pass source=pipe to rfc_fx.transform",
        )

    def of_visitors(self, names: list[str]) -> None:
        """Warn where hooks are on the model for single calls."""
        self._once(
            ForeignHooksWarning,
            f"calls with hooks of a guider on the model ({', '.join(names)}) are made by the model itself, in full and outside of the "
            "cache; all others are cached; to have these cached too, choose a guidance without hooks (classifier-free guidance, for one)",
        )

    def of_moved_weights(self) -> None:
        """Warn where CUDA graphs were recorded for weights that lie elsewhere by now."""
        self._once(
            MovedWeightsWarning,
            "its weights have moved on the device since the generation before, so every CUDA graph is recorded again, beside the earlier "
            "ones; where weights move in every generation (enable_model_cpu_offload), compile without CUDA graphs: no "
            'mode="reduce-overhead" or "max-autotune"',
        )

    def of_rows(self, before: int, now: int) -> None:
        """Warn where samples of a batch cannot be told apart."""
        self._once(
            UncertainCallWarning,
            f"the batch had {before} samples and has {now} within one generation, so each of them is computed in full; "
            "wrap the calls in model.samples(names), which says who is who",
        )

    def of_moved_rows(self) -> None:
        """Warn where the sample in a row of a batch is another than before, as far as its latent says."""
        if self.can_skip:
            self._once(
                UncertainCallWarning,
                "a row of a batch does not follow from what stood in it before: samples that changed places or took another's, or a "
                "sampler that adds noise; such rows are computed in full; wrap the calls in model.samples(names), which says who is who, "
                "or say the sampler with model.generation(source=scheduler)",
            )

    def of_eviction(self) -> None:
        """Warn where the programs of a run have made room, and its state is gone with them."""
        if self.can_skip:
            self._once(
                UncertainCallWarning,
                "calls of so many other shapes came between two steps of a loop that its programs and state were dropped; it goes on with "
                "a full step; open model.generation() for each generation, which holds its own",
            )

    def of_place(self, at: Position, *, is_told: bool) -> None:
        """Warn of what is not certain of a call's place in its generation; `is_told`: it is known who its sample is."""
        if at.is_evicted:
            self.of_eviction()
        if at.is_late:
            self.of_late()
        if at.is_recounted:
            self.of_recount()
        elif at.in_doubt and not is_told:
            self.of_moved_rows()
        elif at.in_doubt:
            self.of_doubt(is_known=at.step is not None)

    def of_doubt(self, *, is_known: bool) -> None:
        """Warn where a call may be no next step of the one before; `is_known`: its timesteps are."""
        if not self.can_skip:
            return
        if not is_known:
            self._once(
                UncertainCallWarning,
                "the latent of a call is not what a sampler makes of the latent and output before: a generation that was abandoned, "
                "windows or tiles, a sampler that adds noise (ancestral, SDE), or a loop that mixes other latents in (inpainting); such "
                "calls are computed in full; say which calls belong together: use rfc_fx.accelerate(pipe), open model.generation() for "
                "each generation, or pass source=pipe to rfc_fx.transform",
            )
            return
        self._once(
            UncertainCallWarning,
            "two calls of one name (or one conditioning) at one timestep had different latents: windows or tiles, a sampler of second "
            "order, or a generation that was abandoned; they are computed in full; say which it is: open model.generation() for each "
            "generation, pass source=pipe to rfc_fx.transform, or call reset()",
        )

    def of_late(self) -> None:
        """Warn where steps were made without a call since it came last, and it goes on with what it held."""
        if self.can_skip:
            self._once(
                LateCallWarning,
                "a call comes again after steps that were made without it (guidance within an interval), and goes on as if it had been one "
                "step: estimates are made of older state than the method counts; say the sampler, which has such a step computed in full: "
                "use rfc_fx.accelerate(pipe), model.generation(source=scheduler), or source=scheduler in rfc_fx.transform",
            )

    def of_recount(self) -> None:
        """Warn where a name is called another number of times a step than before, in a generation that somebody has opened."""
        if self.can_skip:
            self._once(
                UncertainCallWarning,
                "one name (or one conditioning) is called another number of times at a timestep than at the one before: calls of one name "
                "(windows, tiles) are told apart by their order within the step, so the latest may have gone on from another one's state; "
                "from here on they are computed in full until their number stays; give each a name with model.cache_context(name)",
            )

    def of_repeat(self) -> None:
        """Warn where a call comes twice and both count as steps."""
        if self.can_skip:
            self._once(
                RepeatedCallWarning,
                "it is called again with the same latent at the same timestep, which counts as another step of the generation; if this is "
                "another generation (a request that is tried again) or another prompt with the same text, open model.generation(), give "
                "names with model.cache_context(name), or call reset()",
            )

    def _once(self, category: type[Warning], said: str) -> None:
        if category not in self._said:
            self._said.add(category)
            warnings.warn(f"{self._name}: {said}", category, stacklevel=4)
