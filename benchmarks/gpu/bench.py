"""How the GPU benchmark runs, and its clock: no part takes longer than it may, and a part that fails is a row that says why."""

from __future__ import annotations

import gc
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn

from benchmarks.latency.rivals.rival import copied

R = TypeVar("R")


class OutOfTime(BaseException):
    """A part took longer than it may; no Exception, so that no compiler handles it."""


class NeedsCUDAError(Exception):
    """A part that a CPU cannot run."""


@dataclass
class Bench:
    """Where and how everything runs, and what the device section measured."""

    device: torch.device
    tiny: bool
    backend: str
    regional: bool
    steps: int
    nfc: int
    rounds: int
    end: float
    """Of the whole run, on the host's clock."""
    facts: dict[str, Any] = field(default_factory=dict)
    full_steps: int = 10
    """Steps of a generation of full computation."""
    save: Callable[[], None] = lambda: None
    """Writes down what there is so far."""
    turn: Callable[[], None] = lambda: None
    """Waits until the device is this process's alone."""

    @property
    def settings(self) -> dict[str, Any]:
        """What a record says of how it came about."""
        names = ("tiny", "backend", "regional", "steps", "nfc", "rounds", "full_steps")
        return {name: getattr(self, name) for name in names}

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def compiled(self, model: nn.Module, *, graphs: bool = False) -> Any:
        """torch.compile with this run's backend, on CUDA graphs where asked."""
        if not graphs:
            return torch.compile(model, fullgraph=True, backend=self.backend)
        if not self.cuda:
            raise NeedsCUDAError("needs CUDA")
        step = torch.compile(model, fullgraph=True, mode="reduce-overhead")

        def marked(**arguments: Any) -> Any:
            torch.compiler.cudagraph_mark_step_begin()
            return step(**arguments)

        return marked

    def compiled_blocks(self, model: nn.Module) -> Any:
        """A copy, with the same weights, that is compiled as diffusers compiles deep models: each kind of block once."""
        own: Any = copied(model)
        own.compile_repeated_blocks(fullgraph=True, backend=self.backend)
        return own


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in the main thread when this takes longer, again every few seconds where something swallows it; may be nested."""

    def stop(*_: Any) -> None:
        raise OutOfTime(f"out of time after {seconds:.0f} s")

    if seconds <= 0:
        raise OutOfTime("no time left")
    before = signal.signal(signal.SIGALRM, stop)
    begin = time.perf_counter()
    outer, again = signal.setitimer(signal.ITIMER_REAL, seconds, 5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if outer:
            signal.setitimer(signal.ITIMER_REAL, max(1e-3, outer - (time.perf_counter() - begin)), again)


def left(until: float) -> float:
    """Seconds up to that moment."""
    return until - time.perf_counter()


def reason(error: BaseException) -> str:
    """Class and first lines of an error, without the machine's paths."""
    text = re.sub(r"(?:/[\w.+-]+)+/([\w.+-]+)", r"\1", str(error))
    said = " ".join(line.strip() for line in text.splitlines() if line.strip())
    return f"{type(error).__name__}: {said[:400]}" if said else type(error).__name__


def tried(row: dict[str, Any], seconds: float, part: Callable[[], R], *, key: str = "error") -> R | None:
    """Run a part in that time and return its result; what it raises becomes an entry of its row instead."""
    try:
        with within(seconds):
            return part()
    except (OutOfTime, NeedsCUDAError) as error:
        row["skipped" if key == "error" else key] = str(error)
    except Exception as error:
        row[key] = reason(error)
        empty_cache()
    return None


def forget() -> None:
    """Drop what the last workload compiled and allocated."""
    torch._dynamo.reset()
    gc.collect()
    empty_cache()


def empty_cache() -> None:
    """Give memory back to the device; after some errors every call of CUDA fails, and what is known has to be written down."""
    with suppress(Exception):
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def note(row: dict[str, Any], key: str, seconds: float, part: Callable[[], dict[str, Any]]) -> None:
    """What a part found, or why it found nothing, as an entry of the row."""
    if (outcome := tried(row, seconds, part, key=key)) is not None:
        row[key] = outcome
