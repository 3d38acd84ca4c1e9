"""Methods by the names that the command line has for them, made with the settings that were passed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import rfc
from rfc.method import Method
from rfc.placement.noise_levels import noise_levels
from rfc.presets import PRESETS, preset
from rfc_fx.errors import RFCError
from rfc_fx.io.method_file import read_method
from rfc_fx.ir.config import Config
from rfc_fx.tools.arguments import OptionError, imported
from rfc_fx.tools.load import load_scheduler, locate
from rfc_fx.tools.variants import configs
from rfc_fx.zoo import DIGITS_PREDICTOR

DIGITS_TAU = 0.15
"""RFC's threshold that gives about 14 full computations in 50 steps on the digits model."""


@dataclass(frozen=True, kw_only=True)
class MethodArguments:
    """Method settings given on the command line; None keeps the method's default, or its preset's."""

    tau: float | None = None
    threshold: float | None = None
    order: int | None = None
    interval: int | None = None
    nfc: int | float | None = None
    speedup: float | None = None
    """In the place of `nfc`, of a pipeline's generation over full computation."""
    num_steps: int | None = None
    """Calls of a generation; None where nothing says how many."""
    preset: str | None = None
    """The model whose published settings are taken."""
    model: str | None = None
    """Name of the model whose scheduler's noise levels `log-snr` reads; None where nothing will be drawn."""
    is_digits: bool = False
    """Whether the model is the digits model, for which RCS has a threshold of its own (`DIGITS_TAU`)."""

    def __post_init__(self) -> None:
        if self.nfc is not None and self.speedup is not None:
            raise OptionError("--nfc and --speedup: pass one of them, the speed-up says how many steps are full")


class NamedMethod(NamedTuple):
    """How to make a method, and the fields of `MethodArguments` that are its settings."""

    make: Callable[..., Method]
    settings: tuple[str, ...]


def _with_rcs(estimator: Callable[..., rfc.Estimator]) -> Callable[..., Method]:
    """The estimator under relational cache scheduling (RCS)."""

    def make(*, tau: float = 0.1, **settings: Any) -> Method:
        return rfc.Method(estimator=estimator(**settings), schedule=rfc.RCS(tau=tau))

    return make


def _dicache(*, threshold: float = 0.08, num_steps: int | None = None) -> Method:
    """DiCache as its code decides against the change of the input: 0.08, and no step full at the beginning but the first."""
    return rfc.DiCache(threshold=threshold, warmup=1, num_steps=num_steps)


def _magcache(**_: Any) -> Method:
    raise OptionError(
        f"--method magcache: its ratios belong to a model; pass --preset with one of {', '.join(PRESETS['magcache'])}, "
        "or --method package.module:name, an rfc.MagCache with the ratios that rfc.magnitude_ratios measures on yours"
    )


def _disca(*, interval: int = 3) -> Method:
    """DisCa with the predictor that ships, which is that of the digits model; any other model refuses it."""
    return rfc.DisCa(predictor=DIGITS_PREDICTOR, interval=interval, warmup=2)


def _spectrum(*, num_steps: int = 50, nfc: int | float | None = None) -> Method:
    method = rfc.Spectrum(num_steps=num_steps)
    return method if nfc is None else method.with_nfc(nfc)


def _seacache(*, threshold: float = 0.25, num_steps: int | None = None, model: str | None = None) -> Method:
    """SeaCache by the noise levels of the model's scheduler, where one is known."""
    scheduler = None if model is None else load_scheduler(locate(model))
    return rfc.SeaCache(scheduler, threshold=threshold, num_steps=num_steps)


def _log_snr(*, model: str | None = None, num_steps: int = 50, nfc: int | float | None = None, order: int | None = None) -> Method:
    if model is None:
        raise OptionError("--method log-snr: it places full steps by a sampler's noise levels, and nothing is drawn here; take chebyshev")
    try:
        levels = noise_levels(load_scheduler(locate(model)), num_steps)
    except ValueError as error:
        raise OptionError(f"--method log-snr: {error} (chebyshev needs no scheduler)") from error
    return rfc.LogSNR(lambdas=levels.lambdas, end=levels.end, is_flow=levels.is_flow, nfc=nfc, order=order)


METHODS: Mapping[str, NamedMethod] = {
    "fora": NamedMethod(rfc.FORA, ("interval",)),
    "taylorseer": NamedMethod(rfc.TaylorSeer, ("interval", "order")),
    "taylorseer-lite": NamedMethod(rfc.TaylorSeerLite, ("interval", "order")),
    "hicache": NamedMethod(rfc.HiCache, ("interval", "order")),
    "foca": NamedMethod(rfc.FoCa, ("interval",)),
    "delta-dit": NamedMethod(rfc.DeltaDiT, ("interval",)),
    "rfc": NamedMethod(rfc.RFC, ("tau", "order")),
    "projective": NamedMethod(_with_rcs(rfc.Projective), ("tau", "order")),
    "newton": NamedMethod(rfc.NewtonRCS, ("tau", "order")),
    "chebyshev": NamedMethod(rfc.Chebyshev, ("nfc", "order", "num_steps")),
    "log-snr": NamedMethod(_log_snr, ("nfc", "order", "num_steps", "model")),
    "speca": NamedMethod(rfc.SpeCa, ("order", "num_steps")),
    "teacache": NamedMethod(rfc.TeaCache, ("threshold", "num_steps")),
    "first-block": NamedMethod(rfc.FirstBlockCache, ("threshold",)),
    "dicache": NamedMethod(_dicache, ("threshold", "num_steps")),
    "easycache": NamedMethod(rfc.EasyCache, ("threshold", "num_steps")),
    "spectrum": NamedMethod(_spectrum, ("nfc", "num_steps")),
    "seacache": NamedMethod(_seacache, ("threshold", "num_steps", "model")),
    "magcache": NamedMethod(_magcache, ("threshold", "num_steps")),
    "toca": NamedMethod(rfc.ToCa, ("interval", "num_steps")),
    "duca": NamedMethod(rfc.DuCa, ("interval", "num_steps")),
    "disca": NamedMethod(_disca, ("interval",)),
}
"""Methods by the names that the command line has for them."""


def taking(setting: str) -> list[str]:
    """The methods that have this setting."""
    return [name for name, method in METHODS.items() if setting in method.settings]


def new_method(name: str, arguments: MethodArguments) -> Method:
    """Return the method of that name, .json file or import path ("package.module:name"); OptionError for one that cannot be."""
    if name.endswith(".json"):
        return read_method(name)
    if ":" in name:
        return imported("--method", name, rfc.Method)
    if name not in METHODS:
        raise OptionError(f"--method must be one of {', '.join(METHODS)}, a .json file of calibrate or package.module:name, got {name}")
    if arguments.is_digits and arguments.tau is None and arguments.preset is None:
        arguments = replace(arguments, tau=DIGITS_TAU)
    settings = {key: value for key in METHODS[name].settings if (value := getattr(arguments, key)) is not None}
    try:
        if arguments.preset is None:
            return METHODS[name].make(**settings)
        if name not in PRESETS:
            raise OptionError(f"--preset: {name} has no published settings; pass --method with one of {', '.join(PRESETS)}")
        return preset(name, arguments.preset, **settings)
    except ValueError as error:
        raise OptionError(re.sub("^preset: ", "--preset: ", str(error))) from error


def best_known(arguments: MethodArguments) -> tuple[str, str | None]:
    """The name of the best method for the model, and why it is not log-snr, where it is not."""
    try:
        new_method("log-snr", MethodArguments(model=arguments.model, num_steps=arguments.num_steps))
    except RFCError as error:
        return "chebyshev", str(error)
    return "log-snr", None


def new_methods(names: list[str], arguments: MethodArguments) -> dict[str, Method]:
    """Return the methods by name, each once; OptionError also for a setting that none of them has."""
    methods = {name: new_method(name, arguments) for name in dict.fromkeys(names)}
    check_settings(methods, arguments)
    return methods


def check_settings(names: Iterable[str], arguments: MethodArguments) -> None:
    """OptionError for a setting that none of the methods has."""
    names = list(names)
    for setting in ("tau", "threshold", "order", "interval", "nfc"):
        if getattr(arguments, setting) is not None and not any(setting in METHODS[name].settings for name in names if name in METHODS):
            raise OptionError(f"--{setting}: not a setting of {', '.join(names)}; {', '.join(taking(setting))} have it")


def check_dispatch(methods: Mapping[str, Method], dispatch: str) -> None:
    """OptionError where a method has more phases than a torch.cond has branches."""
    for name, method in methods.items() if dispatch == "cond" else ():
        if len(phases := method.schedule.branches) > 2:
            raise OptionError(f"--dispatch cond: {name} has the phases {', '.join(phases)}, a torch.cond has two; leave --dispatch out")


def check_granularity(methods: Mapping[str, Method], config: Config) -> None:
    """OptionError where the granularity contradicts that of every method."""
    try:
        configs(methods, config)
    except ValueError as error:
        raise OptionError(f"--{error}") from error
