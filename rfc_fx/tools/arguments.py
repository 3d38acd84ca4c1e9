"""Options of the command rfc-fx: what stands on the command line becomes methods, sizes and devices, or one line that says why not."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar, get_args

import torch

import rfc
from rfc.granularity import parse_granularity
from rfc.method import Method
from rfc.placement.noise_levels import noise_levels
from rfc.presets import PRESETS, preset
from rfc.storage import STORED
from rfc_fx.errors import RFCError
from rfc_fx.io.preset import read_preset
from rfc_fx.ir.config import Config, Decision, Dispatch, parse_bytes
from rfc_fx.tools.compare import configs
from rfc_fx.tools.load import load_scheduler, locate, one_line
from rfc_fx.zoo import DIGITS_PREDICTOR

DIGITS_TAU = 0.15
"""RFC's threshold that gives about 14 full computations in 50 steps on the digits model."""


GRANULARITIES = ("module", "block", "stack", "output", "blocks[a:b]")


STATE_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in STORED}


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class OptionError(RFCError):
    """An option with a value that cannot be."""


@dataclass(frozen=True, kw_only=True)
class MethodArguments:
    """What was said of the methods; None: the method's own setting, or its preset's."""

    tau: float | None = None
    threshold: float | None = None
    order: int | None = None
    interval: int | None = None
    nfc: int | None = None
    num_steps: int | None = None
    """Calls of a generation, where it is known."""
    preset: str | None = None
    """The model whose published settings are taken."""
    model: str | None = None
    """As on the command line: its scheduler's noise levels may be asked for; None where nothing will be drawn."""
    is_digits: bool = False
    """Whether the methods are for the digits model, which has a threshold that suits it."""


class Kind(NamedTuple):
    """How to make a method, and what of `MethodArguments` it takes."""

    make: Callable[..., Method]
    takes: tuple[str, ...]


def _watched(estimator: Callable[..., rfc.Estimator]) -> Callable[..., Method]:
    """The estimator with RCS."""

    def make(*, tau: float = 0.1, **settings: Any) -> Method:
        return rfc.Method(estimator=estimator(**settings), schedule=rfc.RCS(tau=tau))

    return make


def _dicache(*, threshold: float = 0.08, num_steps: int | None = None) -> Method:
    """DiCache as its code decides against the change of the input: 0.08, and no step full at the beginning but the first."""
    return rfc.DiCache(threshold=threshold, warmup=1, num_steps=num_steps)


def _magcache(**_: Any) -> Method:
    raise OptionError(
        f"--method magcache: its ratios belong to a model; pass --preset with one of {', '.join(PRESETS['magcache'])}, "
        "or call rfc.MagCache(ratios=...) with those measured on yours"
    )


def _disca(*, interval: int = 3) -> Method:
    """DisCa with the predictor that ships, which is that of the digits model; any other model refuses it."""
    return rfc.DisCa(predictor=DIGITS_PREDICTOR, interval=interval, warmup=2)


def _log_snr(*, model: str | None = None, num_steps: int = 50, nfc: int | None = None, order: int = 2) -> Method:
    if model is None:
        raise OptionError("--method log-snr: it places full steps by a sampler's noise levels, and nothing is drawn here; take chebyshev")
    try:
        levels = noise_levels(load_scheduler(locate(model)), num_steps)
    except ValueError as error:
        raise OptionError(f"--method log-snr: {error} (chebyshev needs no scheduler)") from error
    return rfc.LogSNR(lambdas=levels.lambdas, end=levels.end, nfc=nfc, order=order)


METHODS: Mapping[str, Kind] = {
    "fora": Kind(rfc.FORA, ("interval",)),
    "taylorseer": Kind(rfc.TaylorSeer, ("interval", "order")),
    "taylorseer-lite": Kind(rfc.TaylorSeerLite, ("interval", "order")),
    "hicache": Kind(rfc.HiCache, ("interval", "order")),
    "delta-dit": Kind(rfc.DeltaDiT, ("interval",)),
    "rfc": Kind(rfc.RFC, ("tau", "order")),
    "projective": Kind(_watched(rfc.Projective), ("tau", "order")),
    "newton": Kind(rfc.NewtonRCS, ("tau", "order")),
    "chebyshev": Kind(rfc.Chebyshev, ("nfc", "order", "num_steps")),
    "log-snr": Kind(_log_snr, ("nfc", "order", "num_steps", "model")),
    "speca": Kind(rfc.SpeCa, ("order", "num_steps")),
    "teacache": Kind(rfc.TeaCache, ("threshold", "num_steps")),
    "first-block": Kind(rfc.FirstBlockCache, ("threshold",)),
    "dicache": Kind(_dicache, ("threshold", "num_steps")),
    "magcache": Kind(_magcache, ("threshold", "num_steps")),
    "toca": Kind(rfc.ToCa, ("interval", "num_steps")),
    "duca": Kind(rfc.DuCa, ("interval", "num_steps")),
    "disca": Kind(_disca, ("interval",)),
}
"""Methods by the names that the command line has for them."""


def taking(setting: str) -> list[str]:
    """The methods that have this setting."""
    return [name for name, kind in METHODS.items() if setting in kind.takes]


_SIZES = ", ".join(GRANULARITIES).replace("[", r"\[")  # what help shows has markup


HELP = {
    "tau": f"threshold of {', '.join(taking('tau'))} (default: {DIGITS_TAU} for digits, else the method's own)",
    "threshold": f"threshold of {', '.join(taking('threshold'))} (default: the method's own)",
    "order": "order of the forecast (default: the method's own)",
    "interval": f"{', '.join(taking('interval'))}: every so many steps one is full (default: the method's own)",
    "nfc": f"{', '.join(taking('nfc'))}: how many steps of a generation are full (default: 28 %)",
    "preset": "take the settings published for this model, such as flux.1-dev (rfc.PRESETS); other options change them",
    "granularity": f"{_SIZES} (default: the method's own, else the finest that fits --state-budget, else module)",
    "sizes": f"{_SIZES} (default: the method's own, else module)",
}


def new_method(name: str, asked: MethodArguments) -> Method:
    """Return the method of that name, .json file or import path ("package.module:name"); OptionError for one that cannot be."""
    if name.endswith(".json"):
        return read_preset(name)
    if ":" in name:
        return imported("--method", name, rfc.Method)
    if name not in METHODS:
        raise OptionError(f"--method must be one of {', '.join(METHODS)}, a preset's .json file or package.module:name, got {name}")
    kind = METHODS[name]
    if asked.is_digits and asked.tau is None and asked.preset is None:
        asked = replace(asked, tau=DIGITS_TAU)
    settings = {key: value for key in kind.takes if (value := getattr(asked, key)) is not None}
    try:
        return kind.make(**settings) if asked.preset is None else preset(name, asked.preset, **settings)
    except ValueError as error:
        raise OptionError(re.sub("^preset: ", "--preset: ", str(error))) from error


Imported = TypeVar("Imported")


def imported(option: str, path: str, kind: type[Imported]) -> Imported:
    """The object at an import path such as "package.module:name", found from here too; OptionError where there is none of that kind."""
    module, _, name = path.partition(":")
    if "" not in sys.path:
        sys.path.append("")
    try:
        value = attrgetter(name)(import_module(module))
    except (ImportError, AttributeError, ValueError) as error:
        raise OptionError(f"{option} {path}: expected package.module:name of an object that can be imported: {error}") from error
    if not isinstance(value, kind):
        raise OptionError(
            f"{option} {path}: expected an object of the type {kind.__name__}, got {one_line(Exception(repr(value)), width=80)}"
        )
    return value


def imported_classes(paths: list[str] | None) -> list[type]:
    """The classes at these import paths."""
    return [imported("--class", path, type) for path in paths or []]


def best_known(asked: MethodArguments) -> tuple[str, str | None]:
    """The name of the best method for the model, and why it is not log-snr, where it is not."""
    try:
        new_method("log-snr", MethodArguments(model=asked.model, num_steps=asked.num_steps))
    except RFCError as error:
        return "chebyshev", str(error)
    return "log-snr", None


def new_methods(names: list[str], asked: MethodArguments) -> dict[str, Method]:
    """Return the methods by name, each once; OptionError also for a setting that none of them has."""
    methods = {name: new_method(name, asked) for name in dict.fromkeys(names)}
    for setting in ("tau", "threshold", "order", "interval", "nfc"):
        if getattr(asked, setting) is not None and not any(setting in METHODS[name].takes for name in methods if name in METHODS):
            raise OptionError(f"--{setting}: not a setting of {', '.join(methods)}; {', '.join(taking(setting))} have it")
    return methods


def check_dispatch(methods: Mapping[str, Method], dispatch: str) -> None:
    """OptionError where a method has more phases than a torch.cond has branches."""
    for name, method in methods.items() if dispatch == "cond" else ():
        if len(phases := method.schedule.branches) > 2:
            raise OptionError(f"--dispatch cond: {name} has the phases {', '.join(phases)}, a torch.cond has two; leave --dispatch out")


def parse_config(
    *,
    granularity: str | None = None,
    state_dtype: str | None = None,
    state_budget: str | None = None,
    dispatch: str = "host",
    decision: str = "batch",
    hoist: bool | None = None,
    regional: bool = False,
) -> Config:
    """The configuration of these options; OptionError names the option that is wrong."""
    if dispatch == "cond" and (hoist or decision == "per_sample"):
        raise OptionError(f"{'--hoist' if hoist else '--decision per_sample'} needs --dispatch host")
    return Config(
        granularity=_parse_granularity(granularity),
        state_dtype=_parse_state_dtype(state_dtype),
        state_budget=_parse_budget(state_budget),
        dispatch=known("--dispatch", dispatch, get_args(Dispatch)),
        decision=known("--decision", decision, get_args(Decision)),
        hoist=hoist,
        regional=regional,
    )


def _parse_granularity(text: str | None) -> str | None:
    try:
        if text is not None:
            parse_granularity(text)
    except ValueError as error:
        raise OptionError(f"--granularity must be one of {', '.join(GRANULARITIES)}, got {text}") from error
    return text


def check_granularity(methods: Mapping[str, Method], config: Config) -> None:
    """OptionError where the granularity contradicts that of every method."""
    try:
        configs(methods, config)
    except ValueError as error:
        raise OptionError(f"--{error}") from error


def _parse_state_dtype(name: str | None) -> torch.dtype | None:
    if name is not None and name not in STATE_DTYPES:
        raise OptionError(f"--state-dtype must be one of {', '.join(STATE_DTYPES)}, got {name}")
    return None if name is None else STATE_DTYPES[name]


def _parse_budget(size: str | None) -> int | None:
    try:
        return None if size is None else parse_bytes(size)
    except ValueError as error:
        raise OptionError(f"--{str(error).replace('_', '-', 1)}") from error


def parse_classes(text: str | None) -> list[int] | None:
    """`0-9` or `3,7` or `0-2,8` as a list; OptionError for anything else."""
    if text is None:
        return None
    chosen: list[int] = []
    for part in text.split(","):
        if not (found := re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)):
            raise OptionError(f"--classes must be a list like 3,7 or a range like 0-9, got {text}")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise OptionError(f"--classes: a range goes upwards, got {part.strip()}")
        chosen += range(first, last + 1)
    return list(dict.fromkeys(chosen))


def parse_dtype(name: str) -> torch.dtype:
    """The dtype of that name."""
    if name not in DTYPES:
        raise OptionError(f"--dtype must be one of {', '.join(DTYPES)}, got {name}")
    return DTYPES[name]


def parse_device(name: str) -> torch.device:
    """The device of that name, if this machine has it."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise OptionError(f"--device {name}: not available here: {one_line(error, width=120)}") from error
    return device


def known(option: str, value: str, values: tuple[str, ...]) -> Any:
    """The value, if it is one of these."""
    if value not in values:
        raise OptionError(f"{option} must be one of {', '.join(values)}, got {value}")
    return value


def at_least(option: str, value: int, low: int) -> int:
    """The value, if it is large enough."""
    if value < low:
        raise OptionError(f"{option} must be at least {low}, got {value}")
    return value
