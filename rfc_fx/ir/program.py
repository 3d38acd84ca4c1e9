"""Program: a straight-line graph with its arguments and results, and what the host needs of a set of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from rfc.state import SlotSpec
from rfc_fx.ir.layout import Layout
from rfc_fx.ir.ops import aten
from rfc_fx.ir.plan import Plan


def as_read(argument: Any) -> Any:
    """A flat argument as programs read it: complex numbers as pairs of reals in a last axis."""
    return torch.view_as_real(argument.resolve_conj()) if isinstance(argument, Tensor) and argument.is_complex() else argument


Kind = Literal["input", "carry", "state", "next", "pool", "clock", "number"]


Argument = tuple[Kind, str]
"""What a program reads: a tensor argument of the model, a result of a program before it, a slot of the state, a pool of them, the clock.

`next` is memory for the new value of a slot, for programs of engines that do not write in place; `number` is one of the schedule's numbers.
"""


CLOCK: Argument = ("clock", "clock")


CLOCK_SPECS = [SlotSpec((), torch.float32)] * 3
"""Of k, N and n."""


@dataclass(frozen=True)
class Program:
    """A straight-line graph with fixed shapes. `arguments` says what to pass, in order; `results` what comes back."""

    phase: str
    module: fx.GraphModule
    arguments: tuple[Argument, ...]
    results: tuple[str, ...]
    """`output:<i>`, `carry:<name>`, `decision`, or `state:<slot>` where the new state is returned."""
    regional: fx.GraphModule | None = None
    """The same program with its repeated blocks as calls of one region, where that is wanted."""

    @property
    def run(self) -> fx.GraphModule:
        """What is called."""
        return self.module if self.regional is None else self.regional

    @property
    def batched(self) -> fx.GraphModule:
        """What `torch.vmap` can run."""
        return self.module

    @property
    def graph(self) -> fx.Graph:
        """The program's graph."""
        return self.module.graph

    def returned(self) -> list[fx.Node]:
        """The nodes whose values come back, in the order of `results`."""
        (output,) = (node for node in self.graph.nodes if node.op == "output")
        return list(output.args[0])

    def written(self) -> list[str]:
        """Slots the program writes, in place or by returning them, once for each time."""
        names = {node: name for node, (kind, name) in zip(self._placeholders(), self.arguments, strict=True) if kind == "state"}
        in_place = [names[node.args[0]] for node in self.graph.nodes if node.target is aten.copy_.default]
        return in_place + [name.removeprefix("state:") for name in self.results if name.startswith("state:")]

    def read(self) -> list[str]:
        """Slots the program reads."""
        pairs = zip(self._placeholders(), self.arguments, strict=True)
        alone = [
            name
            for node, (kind, name) in pairs
            if kind == "state" and any(u.target is not aten.copy_.default or u.args[1] is node for u in node.users)
        ]
        return alone + [str(node.meta["in_pool"]) for node in self.graph.nodes if "in_pool" in node.meta]

    def _placeholders(self) -> list[fx.Node]:
        return [node for node in self.graph.nodes if node.op == "placeholder"]


class RunnableProgram(Protocol):
    """A program as the host runs it."""

    @property
    def phase(self) -> str: ...
    @property
    def arguments(self) -> tuple[Argument, ...]: ...
    @property
    def results(self) -> tuple[str, ...]: ...
    @property
    def run(self) -> Callable[..., Any]:
        """Takes the arguments' tensors in order, returns the results in order."""

    @property
    def batched(self) -> Callable[..., Any] | None:
        """The same for `torch.vmap`, which cannot run everything."""


class ProgramSet(Protocol):
    """What the host needs to take steps for one call signature."""

    @property
    def programs(self) -> Mapping[str, RunnableProgram]:
        """By phase."""
        ...

    @property
    def layout(self) -> Layout: ...
    @property
    def plan(self) -> Plan: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def timestep(self) -> str | None:
        """Placeholder that carries the timestep, None when the model has no such argument."""
        ...

    @property
    def placeholders(self) -> Sequence[Argument]:
        """The tensor arguments by the names that programs have for them."""
        ...

    @property
    def latent(self) -> str:
        """Name of the argument that the sampler moves."""
        ...

    @property
    def clock_size(self) -> int: ...
    @property
    def counts_itself(self) -> bool:
        """Whether step numbers and decisions are state of the programs (`dispatch="cond"`)."""
        ...

    def inputs(self, leaves: list[Any]) -> list[Tensor]:
        """The tensor arguments in the order of the placeholders."""
        ...

    @property
    def unflatten(self) -> Callable[[Sequence[Tensor]], Any]:
        """Makes what the model's forward returns of flat outputs."""
        ...


class BuiltSet(ProgramSet, Protocol):
    """A set that was built from a model, in this process."""

    @property
    def programs(self) -> Mapping[str, Program]:
        """By phase."""
        ...

    @property
    def guarded(self) -> Any:
        """The guarded graph (`rfc_fx.passes.guard.Guarded`)."""
        ...

    @property
    def whole_plan(self) -> Plan:
        """The plan with what other granularities and types would take, and what depends on what."""
        ...

    @property
    def decided(self) -> Collection[int]:
        """Flat arguments whose values the model's forward read: the programs are for these values."""
        ...

    @property
    def answers(self) -> Sequence[Any]:
        """What the forward asked of lifted numbers: the programs are for calls that answer alike (`rfc_fx.capture.lifted.Answer`)."""
        ...

    @property
    def digest(self) -> Mapping[str, str]:
        """A digest of each program, equal on all ranks that share a sequence."""
        ...

    @property
    def outputs(self) -> pytree.TreeSpec:
        """The structure of what the model's forward returns."""
        ...

    @property
    def step(self) -> CondStep | None:
        """One step as one graph, for `dispatch="cond"`."""
        ...


CondStep = Callable[[Sequence[Tensor], dict[str, Tensor], Tensor, Tensor, Mapping[str, Tensor]], tuple[Tensor, ...]]
"""(inputs, state, progress, log, numbers) -> flat outputs; writes state, progress and log."""


def unflattener(spec: pytree.TreeSpec) -> Callable[[Sequence[Tensor]], Any]:
    """What rebuilds the model's return value; one flat object is built at once, without a walk over the tree."""
    if spec.is_leaf():
        return lambda outputs: outputs[0]
    if not all(child.is_leaf() for child in spec.children()):
        return lambda outputs: pytree.tree_unflatten(list(outputs), spec)
    if spec.type is tuple:
        return tuple
    kind: Any = spec.type
    context = spec.context
    if issubclass(kind, dict) and hasattr(kind, "__dataclass_fields__"):  # an output class of diffusers: its fields by name
        return _output_class(kind, tuple(context))
    rebuild = pytree.SUPPORTED_NODES[kind].unflatten_fn
    return lambda outputs: rebuild(outputs, context)


def _output_class(kind: Any, names: tuple[str, ...]) -> Callable[[Sequence[Tensor]], Any]:
    """What makes an output object of diffusers as its constructor does, without thirty calls where the class adds nothing of its own."""
    unset = {field: None for field in kind.__dataclass_fields__ if field not in names}
    put = OrderedDict.__setitem__
    places = tuple(enumerate(names))

    def constructed(outputs: Sequence[Tensor]) -> Any:
        return kind(**dict(zip(names, outputs, strict=True)))

    def filled(outputs: Sequence[Tensor]) -> Any:
        made = kind.__new__(kind)
        own = made.__dict__
        if unset:
            own.update(unset)
        for index, name in places:
            own[name] = outputs[index]
            put(made, name, outputs[index])
        return made

    if not issubclass(kind, OrderedDict):
        return constructed
    examples = [torch.empty(0) for _ in names]
    try:
        ours, theirs = filled(examples), constructed(examples)
    except Exception:  # a class that looks at its values, as its own constructor will
        return constructed
    same = list(map(id, ours.values())) == list(map(id, theirs.values())) and [*ours] == [*theirs]
    own, their = ({name: id(value) for name, value in vars(one).items()} for one in (ours, theirs))
    return filled if same and own == their else constructed
