"""Rivals: other libraries' feature caching as variants of the latency benchmark, at the number of full steps that ours has.

Each works on a copy of the model that shares its weights, is begun anew before every generation, and is asked after every step by its own
record whether the step was full; an extra generation counts the runs of a layer in a middle block and compares. What a rival cannot do
is said in its row. Dynamo remembers for a piece of code which sizes changed: of two rivals from one library the second may compile
fewer graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from benchmarks.latency.rivals.db_cache import db_cache
from benchmarks.latency.rivals.first_block import first_block_cache
from benchmarks.latency.rivals.rival import Attached, Rival, copied, reason
from benchmarks.latency.rivals.taylor_seer import taylor_seer
from benchmarks.latency.timing import TimedVariant
from benchmarks.latency.workloads import Calls

RECOMPILE_LIMIT = 256
"""For all of dynamo while rivals run: with the default of 8 some of them fall back to the interpreter."""


def rivals(
    model: nn.Module, calls: Calls, planned: list[int], *, ways: Sequence[str] = ("eager", "compiled"), backend: str = "inductor"
) -> tuple[list[TimedVariant], dict[str, str]]:
    """Every rival, eager and compiled, with `planned` as its full steps where it lets one choose; and why others could not be made."""
    variants: list[TimedVariant] = []
    refused: dict[str, str] = {}
    for name, attach in RIVALS.items():
        for how in ways:
            try:
                patched = copied(model)
                rival = Rival(patched, attach(patched, calls, planned), compiles=how == "compiled", backend=backend)
            except Exception as error:
                refused[f"{name}, {how}"] = reason(error)
            else:
                variants.append(TimedVariant(f"{name}, {how}", rival, rival))
    return variants, refused


RIVALS: dict[str, Callable[[nn.Module, Calls, list[int]], Attached]] = {
    "cache-dit DBCache": db_cache,
    "cache-dit DBCache+TaylorSeer": lambda model, calls, planned: db_cache(model, calls, planned, order=1),
    "diffusers FirstBlockCache": first_block_cache,
    "diffusers TaylorSeerCache": taylor_seer,
}
