"""Pipelines of diffusers: every denoiser cached, and a generation opened for each call."""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import nn

from rfc.arguments import timestep_argument
from rfc.method import Method, programs_of
from rfc_fx.errors import RFCError
from rfc_fx.ir.config import Config
from rfc_fx.pipelines.announced import announced
from rfc_fx.pipelines.choices import chosen
from rfc_fx.pipelines.graphs import settle_graphs
from rfc_fx.pipelines.modular import guidance_pass, offloading_paused, put, release_guiders
from rfc_fx.pipelines.step_times import StepTimes, key_of, of_slowest, read_times, write_times
from rfc_fx.runtime.cached_model import Build, CachedModel
from rfc_fx.runtime.kinds import cached_model
from rfc_fx.runtime.ranks import ranks_of
from rfc_fx.runtime.sampler import Known, stages
from rfc_fx.runtime.step_model import StepModel
from rfc_fx.runtime.stopwatch import Stopwatch


@dataclass(frozen=True)
class Accelerated:
    """What a pipeline was, and the cached models that stand in it."""

    kind: type
    originals: Mapping[str, nn.Module]
    cached: Mapping[str, CachedModel]
    config: Config | None
    """As it was passed."""
    compiled: Mapping[str, Any] | None
    """Arguments of torch.compile; None: not compiled."""
    graphs: bool = False
    """Whether the programs run as CUDA graphs where these hold."""
    speedup: float | None = None
    """Of a generation over full computation, which the number of full steps is chosen for once step times are known."""


_ACCELERATED: weakref.WeakKeyDictionary[Any, Accelerated] = weakref.WeakKeyDictionary()


def accelerated(pipe: Any) -> Accelerated:
    """What `accelerate` has done to a pipeline; ValueError where it has done nothing."""
    if (found := _ACCELERATED.get(pipe)) is None:
        raise ValueError(f"{type(pipe).__name__} is not accelerated; call rfc_fx.accelerate(pipe) first")
    return found


def denoisers(pipe: Any) -> dict[str, nn.Module]:
    """The transformers of a pipeline that are called with a timestep, by component; ControlNets and adapters are none.

    TypeError for what is no pipeline, ValueError for one that denoises with a U-Net, or with nothing that takes a timestep.
    """
    components = getattr(pipe, "components", None)
    if not isinstance(components, Mapping) or not callable(pipe):
        raise TypeError(f"accelerate: expected a pipeline of diffusers, got {type(pipe).__name__}; for a bare model use rfc_fx.transform")
    named = {name: component for name, component in components.items() if isinstance(component, nn.Module)}
    if unets := [f"{name} ({type(part).__name__})" for name, part in named.items() if type(part).__name__.startswith("UNet")]:
        raise ValueError(
            f"accelerate: {type(pipe).__name__} denoises with a U-Net, {', '.join(unets)}; rfc-fx caches transformers, whose blocks add to "
            "one stream; use a pipeline with a transformer"
        )
    transformers = transformers_of(pipe)
    found = {name: model for name, model in transformers.items() if not is_engine(model)}
    if transformers and not found:
        raise ValueError(
            f"accelerate: {', '.join(transformers)} of {type(pipe).__name__} is an engine, cached already: draw with it as it is; "
            f"pipe.{next(iter(transformers))}.follow(pipe) tells it the scheduler, summary() what it did"
        )
    if not found:
        raise ValueError(
            f"accelerate: {type(pipe).__name__} has no transformer that is called with a timestep, among {', '.join(components) or 'none'}"
        )
    return found


def transformers_of(pipe: Any) -> dict[str, nn.Module]:
    """The transformers that a pipeline denoises with, by component, compiled, cached and exported ones too; none where it has none."""
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module) and _denoises(part)}


def is_engine(module: nn.Module) -> bool:
    """Whether a module runs programs that were exported: it is cached already, and has no model."""
    return isinstance(module, StepModel) and not isinstance(module, CachedModel)


def _denoises(module: nn.Module) -> bool:
    inner = getattr(module, "_orig_mod", module)  # torch.compile's wrapper
    if is_engine(inner):
        return inner.timestep_argument is not None
    kind = type(inner.model if isinstance(inner, CachedModel) else inner)
    skipped = ("ControlNet", "Adapter", "Autoencoder", "VQ", "UNet")
    return not any(word in kind.__name__ for word in skipped) and timestep_argument(kind.forward) is not None


def accelerate_pipeline(
    pipe: Any,
    method: Method,
    config: Config | None,
    compiled: Mapping[str, Any] | None,
    build: Build,
    speedup: float | None = None,
    *,
    graphs: bool = False,
) -> None:
    """Put cached models in the place of a pipeline's denoisers, and open a generation of each in every call of the pipeline."""
    originals = denoisers(pipe)
    before = _ACCELERATED.get(pipe)
    if before is not None:
        settings = (config, compiled, speedup, graphs)
        if (before.config, before.compiled, before.speedup, before.graphs) == settings and _takes(pipe, before, method):
            for model in before.cached.values():
                model.method = method
            return
        restore(pipe)
        originals = denoisers(pipe)
    cached: dict[str, CachedModel] = {}
    with offloading_paused(pipe):
        for name, part in originals.items():
            if isinstance(part, CachedModel):  # of a pipeline that this one was made from
                cached[name] = _shared(name, part, method, config)
                continue
            model = cached[name] = cached_model(part, method, chosen(part, config), announced(pipe, build))
            if compiled is not None:
                model.compile(**compiled)
        put(pipe, cached)
    for model in cached.values():
        _follow(pipe, model)
    _ACCELERATED[pipe] = Accelerated(type(pipe), originals, cached, config, compiled, graphs, speedup)
    pipe.__class__ = _opening(type(pipe))


def _shared(name: str, model: CachedModel, method: Method, config: Config | None) -> CachedModel:
    """The cached model of another pipeline, with the method that is asked for; ValueError where it needs other programs."""
    if programs_of(model.method) != programs_of(method) or (config is not None and chosen(model.model, config) != model.options):
        raise ValueError(
            f"accelerate: {name} is the cached {model.model_name} of another pipeline, made for {model.method} and {model.options}; "
            "use the same here, restore the other pipeline first, or pass a component of its own"
        )
    model.method = method
    return model


def _follow(pipe: Any, model: CachedModel) -> bool:
    """Tell a model the scheduler, for pipelines that share the model and are not accelerated themselves; whether there is one."""
    if (scheduler := getattr(pipe, "scheduler", None)) is None:
        return False
    model.follow(scheduler)
    return True


def _takes(pipe: Any, before: Accelerated, method: Method) -> bool:
    is_whole = len(_held(pipe, before)) == len(before.cached)
    return is_whole and all(programs_of(model.method) == programs_of(method) for model in before.cached.values())


def _held(pipe: Any, state: Accelerated) -> list[str]:
    """The components that are still the cached models, compiled or not."""
    return [name for name, model in state.cached.items() if getattr(part := getattr(pipe, name), "_orig_mod", part) is model]


def _opening(kind: type) -> type:
    """The pipeline's class with a call that opens generations; the same name, for whoever saves or asks."""

    @functools.wraps(kind.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        state = _ACCELERATED.get(self)
        if state is None:  # a copy: the models know the scheduler
            return kind.__call__(self, *args, **kwargs)
        with ExitStack() as opened:
            for name, model in state.cached.items():
                if state.graphs and state.compiled is not None:
                    settle_graphs(self, name, model, state.compiled)
                known = Known()
                known.keeps_rows = True
                known.passes = functools.partial(guidance_pass, self, name)
                if _follow(self, model):
                    known.follow(self, stages(self).get(name))
                opened.enter_context(model.driver.generations.opened(known))
                model.driver.may_have_changed = True
                if state.speedup is not None:
                    model.stopwatch = model.stopwatch or Stopwatch(model.device)
            try:
                result = kind.__call__(self, *args, **kwargs)
                _choose_full_steps(state)
                return result
            except BaseException as error:
                release_guiders(self, (model.model for model in state.cached.values()))
                if isinstance(error, RFCError) and not any(len(model.cache) for model in state.cached.values()):
                    restore(self)  # nothing was captured: as if never accelerated
                raise

    return type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__, "__qualname__": kind.__qualname__})


def _choose_full_steps(state: Accelerated) -> None:
    """Once step times are known, take the share of full steps that gives the speed-up that was asked for."""
    for model in state.cached.values() if state.speedup is not None else ():
        if not len(model.cache) or getattr(model.method.schedule, "count", None) is not None:
            continue
        key = key_of(model.model, model.compiled, repr(state.compiled))
        times = read_times(key)
        if times is None and model.stopwatch is not None and (medians := model.stopwatch.medians()) is not None:
            times = StepTimes(*medians)
            write_times(key, times)
        for ranks in ranks_of(model.model):
            times = of_slowest(ranks, times)
        if times is None:
            continue
        share, most = times.share(state.speedup or 1.0), times.full / times.estimate
        if share <= 0:
            coarser = "; a coarser granularity (rfc_fx.Config(granularity='stack')) makes it cheaper"
            warnings.warn(
                f"{model.model_name}: a speed-up of {state.speedup:g} cannot be reached: an estimated step takes 1/{most:.1f} of a full "
                f"one here{coarser if model.compiled.analysis.granularity in ('module', 'block') else ''}",
                SpeedupWarning,
                stacklevel=3,
            )
        model.method = model.method.with_nfc(min(max(share, 0.01), 0.99))
        model.stopwatch = None


class SpeedupWarning(UserWarning):
    """The speed-up that was asked for cannot be reached."""


def restore(pipe: Any) -> Any:
    """Give a pipeline its own models (unless others took their place) and class back, and return it; ValueError where it has them."""
    state = accelerated(pipe)
    with offloading_paused(pipe):
        put(pipe, {name: state.originals[name] for name in _held(pipe, state)})
    pipe.__class__ = state.kind
    del _ACCELERATED[pipe]
    return pipe
