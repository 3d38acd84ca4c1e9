"""With values: a forward whose Python depends on the values of its conditioning, traced with those values.

Masks are the usual case: `if mask.all()`, `mask.sum().tolist()`, `x[mask]`. What was read this way is fixed in the graph, and the
arguments it was read from are named, so that a call with other values there gets a graph of its own.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode, resolve_name

from rfc_fx.capture.fold import fold, shape_depends_on_values, shaped_by
from rfc_fx.capture.lifted import Answer, Lifted, Number, lifted_numbers
from rfc_fx.errors import CaptureError
from rfc_fx.ir.ops import FLOPS, aten, closure, value

_READERS = frozenset(
    {
        Tensor.item,
        Tensor.tolist,
        Tensor.numpy,
        Tensor.__bool__,
        Tensor.__int__,
        Tensor.__float__,
        Tensor.__index__,
        Tensor.__array__,
        Tensor.__contains__,
        Tensor.__format__,
    }
)


@dataclass(frozen=True)
class Concrete:
    """A traced forward, ready for torch.export."""

    module: nn.Module
    """Takes the tensor arguments in order, returns the flat outputs."""
    inputs: list[Tensor]
    positions: list[int]
    """Their positions among the flattened arguments."""
    decided: frozenset[int]
    """Positions whose values are fixed in the graph."""
    outputs: pytree.TreeSpec
    weights: dict[str, str]
    """Attribute of the module -> path in the model."""
    answers: tuple[Answer, ...] = ()
    """Comparisons that the forward made with lifted numbers."""


class _Replay(nn.Module):
    """Runs a graph node by node, so that each node's place in the model is handed on to what is traced from it."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.traced = graph  # no module may be called graph: that is an attribute of every GraphModule

    def forward(self, *args: Tensor) -> Any:
        return fx.Interpreter(self.traced).run(*args)


@dataclass
class _Watch(TorchFunctionMode):
    """Notes every place where Python reads a traced tensor's values."""

    reads: list[tuple[frozenset[str], str]] = field(default_factory=list)
    """The traced arguments behind each read, and where it was."""

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READERS:
            mode = get_proxy_mode()
            for argument in args:
                if mode is not None and isinstance(argument, Tensor) and argument in mode.tracer.tensor_tracker:
                    proxy = mode.tracer.tensor_tracker[argument].proxy
                    self.reads.append((_sources(proxy.node), _line(resolve_name(func) or "a read")))
        return func(*args, **(kwargs or {}))


def _line(what: str) -> str:
    inside = ("/torch/", "/rfc_fx/capture/")
    frames = [frame for frame in traceback.extract_stack() if not any(part in frame.filename for part in inside)]
    return f"{frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line} ({what})" if frames else what


class _Paths:
    """Which module's forward made which nodes: written to their meta as torch.export does."""

    def __init__(self, model: nn.Module) -> None:
        self.names = {id(module): name for name, module in model.named_modules()}
        self.stack: list[tuple[str, type]] = []
        self.last: fx.Node | None = None

    @contextmanager
    def recorded(self) -> Iterator[None]:
        enter = register_module_forward_pre_hook(lambda module, args: self._move(module, True))
        leave = register_module_forward_hook(lambda module, args, output: self._move(module, False), always_call=True)
        try:
            yield
        finally:
            enter.remove()
            leave.remove()

    def _move(self, module: nn.Module, begins: bool) -> None:
        mode = get_proxy_mode()
        if mode is None or id(module) not in self.names:
            return
        root = mode.tracer.graph._root
        node = root._next if self.last is None else self.last._next
        while node is not root:
            node.meta["nn_module_stack"] = {str(i): entry for i, entry in enumerate(self.stack)}
            self.last, node = node, node._next
        if begins:
            self.stack.append((self.names[id(module)], type(module)))
        elif self.stack:
            self.stack.pop()


def trace(model: nn.Module, arguments: Mapping[str, Any], moving: frozenset[str]) -> Concrete:
    """Trace `model(**arguments)` with real values; `moving` names the arguments that change in every step.

    Raises CaptureError with file and line when the Python of the forward reads one of those.
    """
    flat, spec = pytree.tree_flatten_with_path(dict(arguments))
    for path, leaf in flat:
        if not isinstance(leaf, Tensor | Lifted | int | float | complex | str | bool | torch.dtype | torch.device | type(None)):
            raise CaptureError(
                f"{type(model).__name__}: the argument {pytree.keystr(path)} is a {type(leaf).__name__}, which a graph cannot read anew "
                "in every step; pass its tensors as arguments, or, where the forward only reads it, register the class with "
                "torch.utils._pytree.register_pytree_node, its flatten_with_keys_fn and serialized_type_name"
            )
    positions = [i for i, (_, leaf) in enumerate(flat) if isinstance(leaf, Tensor | Lifted)]
    owners = [str(getattr(flat[i][0][0], "key", flat[i][0][0])) for i in positions]
    outputs: list[pytree.TreeSpec] = []

    def forward(*tensors: Tensor) -> list[Any]:
        leaves = [leaf for _, leaf in flat]
        for position, tensor in zip(positions, tensors, strict=True):
            lifted = leaves[position]
            leaves[position] = tensor if isinstance(lifted, Tensor) else Number.of(lifted, tensor, position, notes)
        results, out_spec = pytree.tree_flatten(model(**pytree.tree_unflatten(leaves, spec)))
        outputs.append(out_spec)
        return results

    device = next((flat[i][1].device for i in positions if isinstance(flat[i][1], Tensor)), None)
    inputs = [leaf.tensor(device) if isinstance(leaf := flat[i][1], Lifted) else leaf for i in positions]
    watch, paths = _Watch(), _Paths(model)
    with torch.no_grad(), paths.recorded(), watch, lifted_numbers(model) as notes:
        module = make_fx(forward, tracing_mode="real", pre_dispatch=True, _error_on_data_dependent_ops=False)(*inputs)
    number = {node.name: i for i, node in enumerate(n for n in module.graph.nodes if n.op == "placeholder")}
    read = [(where, names) for names, where in watch.reads]
    for node in module.graph.nodes:
        if shape_depends_on_values(node):
            read.append((f"{node} in {_path(node)}", frozenset().union(*map(_sources, shaped_by(node)))))
    for where, names in read:
        if wrong := sorted({owners[number[name]] for name in names if owners[number[name]] in moving}):
            raise CaptureError(
                f"{type(model).__name__}: the forward's Python reads the values of {', '.join(wrong)}, which change in every step\n"
                f"  at {where}\n  no graph can follow that; replace it in the model by a tensor operation of fixed shape"
            )
    _spell_out_autocast(module.graph)
    decided = notes.read | frozenset(positions[number[name]] for _, names in read for name in names)
    fold(module, inputs)
    name_of = {id(tensor): name for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    held = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    weights = {name: name_of[id(getattr(module, name))] for name in held if id(getattr(module, name)) in name_of}
    paths_of = {f"traced.{name}": path for name, path in weights.items()}
    return Concrete(
        _Replay(module),
        inputs,
        positions,
        frozenset(decided),
        outputs[-1],
        paths_of,
        tuple(Answer(*item) for item in notes.answers.items()),
    )


def _spell_out_autocast(graph: fx.Graph) -> None:
    """Replace autocast regions by the casts they make: floating-point arguments of heavy operations, to the region's type."""
    open_regions: list[tuple[fx.Node, torch.dtype | None]] = []
    markers = []
    for node in list(graph.nodes):
        if node.target is torch.amp.autocast_mode._enter_autocast:
            kind, dtype, enabled = (*node.args, None, None)[:3]
            dtype = (dtype or torch.get_autocast_dtype(str(kind))) if enabled else None
            # on the CPU a region of float32 switches autocast off
            open_regions.append((node, None if kind == "cpu" and dtype is torch.float32 else dtype))
            markers.append(node)
        elif node.target is torch.amp.autocast_mode._exit_autocast:
            open_regions = [region for region in open_regions if region[0] is not node.args[0]]
            markers.append(node)
        elif open_regions and (dtype := open_regions[-1][1]) is not None and node.target in FLOPS:
            for source in node.all_input_nodes:
                tensor = value(source)
                if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dtype not in (dtype, torch.float64):
                    with graph.inserting_before(node):
                        cast = graph.call_function(aten.to.dtype, (source, dtype))
                    cast.meta = {"val": tensor.to(dtype), "nn_module_stack": node.meta.get("nn_module_stack", {})}
                    node.replace_input_with(source, cast)
    for node in reversed(markers):
        graph.erase_node(node)


def _path(node: fx.Node) -> str:
    entries = list((node.meta.get("nn_module_stack") or {}).values())
    return entries[-1][0] if entries else "the forward"


def _sources(node: fx.Node) -> frozenset[str]:
    """Names of the placeholders a node depends on."""
    return frozenset(source.name for source in closure([node]) if source.op == "placeholder")
