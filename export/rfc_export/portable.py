"""Portable: programs as back ends take them: one flat graph each, weights by one name in all of them, every tensor described."""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from rfc.phase import FULL
from rfc.state import SlotSpec
from rfc_export.fold_weights import fold_weights
from rfc_export.methods import dtype_of, name_of
from rfc_export.specs import TensorSpec
from rfc_export.weight_names import Weights
from rfc_fx.ir.ops import flops, value
from rfc_fx.ir.phase import PREFIX
from rfc_fx.ir.program import Program
from rfc_fx.passes.build import CompiledSet
from rfc_fx.passes.lower_cond import Cond, lower_cond
from rfc_fx.passes.lower_host import Host

Writes = Literal["in_place", "returned"]

STEP = "STEP"
"""The one program of `dispatch="cond"`."""


@dataclass(frozen=True)
class Portable:
    """A program to build. `module` takes the inputs in order and returns the outputs in order, as a tuple."""

    phase: str
    module: nn.Module
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    """`next` for the new value of a slot; of a program that writes in place only what it returns."""
    examples: tuple[Tensor, ...]
    weights: dict[str, str]
    """Name of a parameter or buffer in the module -> its name in all programs (`Weights`)."""
    flops: int
    written: tuple[str, ...]
    """Slots that it writes, in place or by returning them."""


def portable_host(compiled: CompiledSet, host: Host, weights: Weights) -> dict[str, Portable]:
    """The programs of one host decision per step."""
    return {phase: _portable(compiled, program, host, weights) for phase, program in host.programs.items()}


def _portable(compiled: CompiledSet, program: Program, host: Host, weights: Weights) -> Portable:
    graph, used = flat(program.module, weights)
    places = [node for node in graph.nodes if node.op == "placeholder"]
    pools = {pool.name: pool.spec for pool in host.layout.pools}
    state = host.layout.allocate(torch.device("meta"))[0]
    numbers = compiled.guarded.method.schedule.numbers()
    inputs, examples = [], []
    for node, (kind, name) in zip(places, program.arguments, strict=True):
        if kind == "state":
            like = state[name]
        elif kind == "pool":
            like = torch.empty(pools[name].shape, dtype=pools[name].dtype, device="meta")
        elif kind == "clock":
            like = torch.empty(compiled.clock_size, device="meta")
        elif kind == "number":
            like = torch.empty_like(numbers[name], device="meta")
        else:
            like = torch.empty(value(node).shape, dtype=value(node).dtype, device="meta")
        inputs.append(_spec(kind, name, like))
        examples.append(torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=compiled.device).zero_())
    outputs = []
    for node, result in zip(program.returned(), program.results, strict=True):
        what, _, rest = result.partition(":")
        if what == "state":
            outputs.append(_slot("next", rest, host.layout.slots[rest]))
        elif what == "decision":
            brings_noise = program.phase == PREFIX and compiled.timestep is not None
            outputs.append(_spec("decision", what, torch.empty(3 if brings_noise else 1, device="meta")))
        else:
            outputs.append(_spec(what, rest, value(node)))
    module = fx.GraphModule(used, graph, class_name=program.phase.capitalize())
    named = {name: name for name in used}
    cost, written = flops(program.graph.nodes), tuple(dict.fromkeys(program.written()))
    return Portable(program.phase, module.eval(), inputs, outputs, tuple(examples), named, cost, written)


def _spec(kind: Any, name: str, like: Tensor) -> TensorSpec:
    return TensorSpec(kind=kind, name=name, dtype=name_of(like.dtype), shape=list(like.shape))


def flat(module: fx.GraphModule, weights: Weights) -> tuple[fx.Graph, dict[str, Tensor]]:
    """The module's graph with called graphs in the place of their calls, and the weights that it reads by their names in all programs."""
    graph, used = fx.Graph(), {}

    def copy(owner: fx.GraphModule, source: fx.Graph, given: list[fx.Node] | None) -> Any:
        env: dict[fx.Node, Any] = {}
        arguments = iter(given or ())
        for node in source.nodes:
            if node.op == "placeholder" and given is not None:
                env[node] = next(arguments)
            elif node.op == "get_attr":
                tensor = attrgetter(str(node.target))(owner)
                name = weights.name(str(node.target), tensor)
                used[name] = tensor
                env[node] = graph.create_node("get_attr", name)
                env[node].meta = dict(node.meta)
            elif node.op == "call_module":
                called = owner.get_submodule(str(node.target))
                assert isinstance(called, fx.GraphModule)
                env[node] = copy(called, called.graph, [env[argument] for argument in node.args])
            elif node.op == "output":
                return fx.node.map_arg(node.args[0], lambda n: env[n])
            elif node.op == "call_function" and isinstance(env.get(node.args[0] if node.args else None), tuple | list):  # type: ignore[arg-type]
                env[node] = env[node.args[0]][node.args[1]]
            else:
                env[node] = graph.node_copy(node, lambda n: env[n])
        raise AssertionError("a graph has an output")

    graph.output(copy(module, module.graph, None))
    used = fold_weights(graph, used, weights)
    graph.lint()
    return graph, used


# ---- one step with its decision --------------------------------------------------------------------------------------


class CondStep(nn.Module):
    """One step for both phases: state and bookkeeping are written in place, or returned after the outputs."""

    def __init__(self, cond: Cond, slots: list[str], inputs: int, numbers: list[str], writes: Writes) -> None:
        super().__init__()
        self._step, self._returns = cond.step, writes == "returned"
        self._slots, self._inputs, self._numbers = slots, inputs, numbers
        for phase, program in cond.programs.items():
            self.add_module(phase, program.module)

    def forward(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        inputs, rest = arguments[: self._inputs], list(arguments[self._inputs :])
        held = [rest.pop(0) for _ in range(len(self._slots) + 2)]
        *slots, progress, log = [tensor.clone() for tensor in held] if self._returns else held
        state = dict(zip(self._slots, slots, strict=True))
        outputs = self._step(inputs, state, progress, log, dict(zip(self._numbers, rest, strict=True)))
        return (*outputs, *state.values(), progress, log) if self._returns else tuple(outputs)


def portable_cond(compiled: CompiledSet, weights: Weights, writes: Writes) -> dict[str, Portable]:
    """One program for a whole step: inputs, state, bookkeeping and thresholds in; outputs, new state and bookkeeping out."""

    def finish(program: Program) -> Program:
        graph, used = flat(program.module, weights)
        return replace(program, module=fx.GraphModule(used, graph, class_name=program.phase.capitalize()).eval())

    guarded, captured = compiled.guarded, compiled.captured
    cond = lower_cond(guarded, compiled.timestep, finish)
    numbers = guarded.method.schedule.numbers()
    names = sorted(numbers)
    places = {node.name: node for node in captured.graph.nodes if node.op == "placeholder"}
    inputs = [_spec("input", name, value(places[name])) for name in captured.names]
    state = {name: SlotSpec(slot.shape, slot.dtype) for name, slot in cond.layout.slots.items()}
    own = [_slot(name if name in ("progress", "log") else "state", name, slot) for name, slot in state.items()]
    inputs += own + [_spec("numbers", name, numbers[name]) for name in names]
    full = cond.programs[FULL.name]
    outputs = [
        _spec("output", name.removeprefix("output:"), value(node))
        for node, name in zip(full.returned(), full.results, strict=True)
        if name.startswith("output:")
    ]
    outputs += [spec.model_copy(update={"kind": "next"}) for spec in own if writes == "returned"]
    module = CondStep(cond, list(guarded.slots), len(captured.names), names, writes)
    examples = [torch.zeros(spec.shape, dtype=dtype_of(spec.name, spec.dtype), device=compiled.device) for spec in inputs]
    used = {
        f"{phase}.{name}": name
        for phase, program in cond.programs.items()
        for name, _ in (*program.module.named_parameters(), *program.module.named_buffers())
    }
    cost = max(flops(program.graph.nodes) for program in cond.programs.values())
    return {STEP: Portable(STEP, module.eval(), inputs, outputs, tuple(examples), used, cost, tuple(state))}


def _slot(kind: Any, name: str, slot: SlotSpec) -> TensorSpec:
    return TensorSpec(kind=kind, name=name, dtype=name_of(slot.dtype), shape=list(slot.shape))
