"""Arguments: what stands on the command line becomes devices, dtypes, granularities and classes, or one line that says why not."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from importlib import import_module
from math import isfinite, nan
from operator import attrgetter
from typing import Literal, TypeVar

import torch

from rfc.granularity import parse_granularity
from rfc.placement.base import check_count
from rfc_fx.errors import RFCError
from rfc_fx.ir.config import Config, Decision, Dispatch, parse_bytes
from rfc_fx.tools.load import one_line

GRANULARITIES = ("module", "block", "stack", "output", "prediction", "blocks[a:b]")

DTypeName = Literal["float32", "bfloat16", "float16"]
StateDTypeName = Literal["bfloat16", "float16", "int8", "float8_e4m3fn"]
"""`rfc.storage.STORED` by name."""


MOST_SEED, MOST_SEEDS = 2**62, 10_000
"""The largest first seed, of which torch takes 2^64, and the largest number of seeds or classes."""

Imported = TypeVar("Imported")


class OptionError(RFCError):
    """An option with a value that cannot be."""


def parse_granularity_option(text: str) -> str:
    """A granularity; OptionError for anything else."""
    try:
        parse_granularity(text)
    except ValueError as error:
        raise OptionError(f"--granularity must be one of {', '.join(GRANULARITIES)}, got {text}") from error
    return text


def parse_budget(size: str) -> int:
    """Bytes of `--state-budget`."""
    try:
        return parse_bytes(size)
    except ValueError as error:
        raise OptionError(f"--{str(error).replace('_', '-', 1)}") from error


def parse_classes(text: str | None) -> list[int] | None:
    """`0-9` or `3,7` or `0-2,8` as a list; OptionError for anything else."""
    if text is None:
        return None
    labels: list[int] = []
    for part in text.split(","):
        if not (match := re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)):
            raise OptionError(f"--classes must be a list like 3,7 or a range like 0-9, got {text}")
        if len(part) > 60:
            raise OptionError(f"--classes: numbers below 2^62, got one of {len(part)} digits")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise OptionError(f"--classes: a range goes upwards, got {part.strip()}")
        if last - first >= MOST_SEEDS or last >= 2**62:
            raise OptionError(f"--classes: at most {MOST_SEEDS} classes, numbers below 2^62, got {part.strip()}")
        labels += range(first, last + 1)
    return list(dict.fromkeys(labels))


def new_config(
    *,
    granularity: str | None = None,
    state_dtype: StateDTypeName | None = None,
    state_budget: int | None = None,
    dispatch: Dispatch = "host",
    decision: Decision = "batch",
    hoist: bool | None = None,
    regional: bool = False,
) -> Config:
    """The configuration of these options; OptionError names two that exclude each other."""
    if dispatch == "cond" and (hoist or decision == "per_sample"):
        raise OptionError(f"{'--hoist' if hoist else '--decision per_sample'} needs --dispatch host")
    return Config(
        granularity=granularity,
        state_dtype=None if state_dtype is None else dtype_named(state_dtype),
        state_budget=state_budget,
        dispatch=dispatch,
        decision=decision,
        hoist=hoist,
        regional=regional,
    )


def dtype_named(name: DTypeName | StateDTypeName) -> torch.dtype:
    """The dtype of that name."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def parse_device(name: str) -> torch.device:
    """The device of that name; OptionError where this machine does not have it."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # meta has no values
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        raise OptionError(f"--device {name}: not available here: {one_line(error, width=120)}") from error
    return device


def device_here() -> torch.device:
    """The accelerator of this machine that torch can use, else the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if accelerator is None or accelerator.type not in ("cuda", "mps") else accelerator


def finite(option: str, least: float | None = None) -> Callable[[str], float]:
    """A parser of finite numbers, of at least `least`; OptionError for any other text."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = nan
        if not isfinite(value) or (least is not None and value < least):
            at_least = "" if least is None else f" of at least {least:g}"
            raise OptionError(f"{option} must be a finite number{at_least}, got {text}")
        return value

    return parse


def parse_nfc(text: str) -> int | float:
    """A number of full steps, or the share of the steps that are full; OptionError for any other text."""
    try:
        count = int(text) if re.fullmatch(r"\s*[+-]?\d+\s*", text) else float(text)
        check_count("--nfc", count)
    except ValueError:
        raise OptionError(f"--nfc must be a number of full steps such as 8, or a share of the steps such as 0.28, got {text}") from None
    return count


def parse_speedup(text: str) -> float:
    """A speed-up above 1; OptionError for any other text."""
    speedup = finite("--speedup")(text)
    if speedup <= 1:
        raise OptionError(f"--speedup must be above 1, how many times faster than full computation, got {text}")
    return speedup


def threshold(text: str) -> float:
    """A threshold: a number of at least 0, or inf; OptionError for any other text."""
    try:
        value = float(text)
    except ValueError:
        value = nan
    if not value >= 0:
        raise OptionError(f"--threshold must be a number >= 0 (inf: never full after warm-up), got {text}")
    return value


def imported(option: str, path: str, kind: type[Imported]) -> Imported:
    """The object at an import path such as "package.module:name", the working folder included; OptionError where none of that kind is."""
    module, _, name = path.partition(":")
    if "" not in sys.path:
        sys.path.append("")
    try:
        value = attrgetter(name)(import_module(module))
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise OptionError(f"{option} {path}: expected package.module:name of an object that can be imported: {error}") from error
    if not isinstance(value, kind):
        got = one_line(Exception(repr(value)), width=80)
        raise OptionError(f"{option} {path}: expected an object of the type {kind.__name__}, got {got}")
    return value


def parse_class(path: str) -> type:
    """The class at an import path."""
    return imported("--class", path, type)
