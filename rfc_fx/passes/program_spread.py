"""Program spread: the laws of programs whose sequence lies on several ranks."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from rfc_fx.capture.parallel import Parallel
from rfc_fx.ir.ops import aten, recall, select
from rfc_fx.ir.phase import BEFORE_DECISION
from rfc_fx.ir.program import Program
from rfc_fx.passes.guard import Guarded
from rfc_fx.passes.spread import Spread, is_completed, name_of, reduces_tokens, spreads


def unfinished(guarded: Guarded, programs: dict[str, Program]) -> Iterator[str]:
    """Reductions over one rank's tokens that no all-reduce completes, and decisions that would differ from rank to rank."""
    parallel = guarded.outlined.captured.parallel
    if parallel is None:
        return
    for phase, found in _spreads_of(guarded, programs, parallel).items():
        program = programs[phase]
        for node in program.graph.nodes:
            if reduces_tokens(node, found) and not is_completed(node):
                yield f"{phase}: {node.name} ({name_of(node)}) reduces the tokens of one rank; pass the sum to rfc.ranks.summed"
        for name, node in zip(program.results, program.returned(), strict=True):
            if name == "decision" and found[node] is not Spread.REPLICATED:
                yield f"{phase}: what the step is decided by differs from rank to rank"


def _spreads_of(guarded: Guarded, programs: dict[str, Program], parallel: Parallel) -> dict[str, dict[fx.Node, Spread]]:
    """How the values of every program lie over the ranks; of slots, as FULL and the others write them."""
    held = _of_guarded(guarded, parallel)
    slots = dict.fromkeys(guarded.slots, Spread.REPLICATED)
    order = sorted(programs, key=[*BEFORE_DECISION, *programs].index)
    while True:
        found = {phase: _of_program(programs[phase], held, slots, parallel) for phase in order}
        now = dict(slots)
        for phase in order:
            for slot, spread in _written(programs[phase], found[phase]):
                now[slot] = max(now[slot], spread)
        if now == slots:
            return found
        slots = now


def _of_guarded(guarded: Guarded, parallel: Parallel) -> dict[str, Spread]:
    """By node name; an estimate lies as what it stands for."""
    graph = guarded.module.graph
    recalled = {node: Spread.SHARDED for node in graph.nodes if node.target is recall}
    found = spreads(graph, parallel, recalled)
    return {node.name: found[node.args[1]] if node.target is select else spread for node, spread in found.items()}  # type: ignore[index]


def _of_program(program: Program, held: dict[str, Spread], slots: dict[str, Spread], parallel: Parallel) -> dict[fx.Node, Spread]:
    start: dict[fx.Node, Spread] = {}
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    for node, (kind, name) in zip(placeholders, program.arguments, strict=True):
        if kind == "carry":
            start[node] = held.get(name, Spread.SHARDED)
        elif kind == "state":
            start[node] = slots[name]
    for node in program.graph.nodes:
        if "in_pool" in node.meta:
            start[node] = slots[str(node.meta["in_pool"])]
    return spreads(program.graph, parallel, start)


def _written(program: Program, found: dict[fx.Node, Spread]) -> Iterator[tuple[str, Spread]]:
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    names = {node: name for node, (kind, name) in zip(placeholders, program.arguments, strict=True) if kind == "state"}
    for node in program.graph.nodes:
        if node.target is aten.copy_.default and node.args[0] in names:
            yield names[node.args[0]], found[node.args[1]]
    for name, node in zip(program.results, program.returned(), strict=True):
        if name.startswith("state:"):
            yield name.removeprefix("state:"), found[node]
