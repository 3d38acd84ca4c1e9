"""Capture: a model and example arguments become a graph of aten operations. Weights are referenced, never copied."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, TensorArgument

from rfc_fx.errors import CaptureError
from rfc_fx.ops import aten, is_mutable, value

log = logging.getLogger("rfc_fx")

MODEL = "model"
"""Name under which every program refers to the original model: weights are read through it, live."""


@dataclass(frozen=True)
class Captured:
    """A model's forward as a graph: one placeholder per tensor among the arguments, weights as `model.<path>`."""

    model: nn.Module
    graph: fx.Graph
    inputs: dict[int, str]
    """Position among the flattened arguments -> placeholder."""
    names: dict[str, str]
    """Placeholder -> the argument of `forward` it belongs to."""
    outputs: pytree.TreeSpec
    constants: dict[str, Tensor]

    @property
    def latent(self) -> str:
        """Placeholder of the first tensor argument: what the sampler moves."""
        return next(iter(self.names))


def named_arguments(forward: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return every argument by name, in the order of the signature, so that equal calls look equal however they were written."""
    try:
        bound = inspect.signature(forward).bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"forward: {error}; the signature is {inspect.signature(forward)}") from None
    named: dict[str, Any] = {}
    for name, given in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            named.update(given)
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            raise TypeError(f"forward: *{name} cannot be captured; pass these arguments by name")
        else:
            named[name] = given
    return named


def capture(model: nn.Module, arguments: Mapping[str, Any]) -> Captured:
    """Trace `model(**arguments)` with `torch.export` (non-strict) and clean the graph.

    Raises CaptureError with the model's file and line when the forward cannot be traced or writes to its own buffers.
    """
    kwargs = dict(arguments)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            exported = torch.export.export(model, (), kwargs, strict=False)
            if any(is_mutable(node) for node in exported.graph.nodes):
                exported = exported.run_decompositions({})
        except Exception as error:
            raise CaptureError.from_export(model, error) from error
    lost = [spec.target for spec in exported.graph_signature.output_specs if spec.kind is OutputKind.BUFFER_MUTATION]
    if lost:
        raise CaptureError(
            f"{type(model).__name__}: forward writes to its buffers {', '.join(map(str, lost))}; "
            "a cached model must be a function of its inputs"
        )
    captured = _reference_weights(model, exported, kwargs)
    _clean(captured.graph)
    return captured


def _reference_weights(model: nn.Module, exported: torch.export.ExportedProgram, kwargs: dict[str, Any]) -> Captured:
    """Copy the exported graph with weights as get_attr of `model.<path>` and only tensors as placeholders."""
    graph = fx.Graph()
    env: dict[fx.Node, Any] = {}
    inputs: dict[int, str] = {}
    names: dict[str, str] = {}
    constants: dict[str, Tensor] = {}
    owners = [
        str(path[0].key) if isinstance(path[0], pytree.MappingKey) else str(path[0]) for path, _ in pytree.tree_flatten_with_path(kwargs)[0]
    ]
    placeholders = {node.name: node for node in exported.graph.nodes if node.op == "placeholder"}
    position = 0
    for spec in exported.graph_signature.input_specs:
        node = placeholders[spec.arg.name]
        if spec.kind is InputKind.USER_INPUT:
            if isinstance(spec.arg, TensorArgument):
                copy = graph.placeholder(node.name)
                copy.meta = dict(node.meta)
                env[node] = copy
                inputs[position] = copy.name
                names[copy.name] = owners[position]
            else:
                env[node] = spec.arg.value if isinstance(spec.arg, ConstantArgument) else None
            position += 1
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            env[node] = _get_attr(graph, f"{MODEL}.{spec.target}", node)
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            name = f"constant_{len(constants)}"
            constants[name] = exported.constants[str(spec.target)]
            env[node] = _get_attr(graph, name, node)
        else:
            raise CaptureError(f"{type(model).__name__}: input {spec.arg.name} of kind {spec.kind.name} cannot be captured")
    for node in exported.graph.nodes:
        if node.op == "output":
            results = fx.node.map_arg(node.args[0], lambda n: env[n])
            graph.output(tuple(results))
        elif node.op == "get_attr":
            raise CaptureError(
                f"{type(model).__name__}: the forward contains a traced sub-graph ({node.target}); "
                "autocast, no_grad and control flow inside a model's forward are not supported yet"
            )
        elif node.op != "placeholder":
            env[node] = graph.node_copy(node, lambda n: env[n])
    assert exported.call_spec.out_spec is not None
    return Captured(model, graph, inputs, names, exported.call_spec.out_spec, constants)


def _get_attr(graph: fx.Graph, target: str, like: fx.Node) -> fx.Node:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fx warns that the graph has no owner yet
        node = graph.get_attr(target)
    node.meta = dict(like.meta)
    return node


_ASSERTIONS = frozenset(
    {
        aten._assert_tensor_metadata.default,
        aten._assert_scalar.default,
        aten._assert_async.msg,
        aten.sym_constrain_range.default,
        aten.sym_constrain_range_for_size.default,
    }
)
_CASTS = frozenset({aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten._to_copy.default, aten.type_as.default})
_DROPOUT = frozenset({aten.dropout.default, aten.feature_dropout.default})


def _clean(graph: fx.Graph) -> None:
    """Remove checks, dropout and casts that change nothing, then what nobody uses."""
    for node in list(graph.nodes):
        if node.target in _ASSERTIONS:
            graph.erase_node(node)
        elif (node.target in _DROPOUT and node.args[2] is False) or (node.target in _CASTS and _changes_nothing(node)):
            source = node.args[0]
            assert isinstance(source, fx.Node)
            node.replace_all_uses_with(source)
            graph.erase_node(node)
    remove_dead(graph)
    graph.lint()


def _changes_nothing(node: fx.Node) -> bool:
    before, after = value(node.all_input_nodes[0]), value(node)
    return (
        isinstance(before, Tensor)
        and (before.dtype, before.device, before.layout) == (after.dtype, after.device, after.layout)
        and node.kwargs.get("memory_format") is None
        and not node.kwargs.get("copy", False)
    )


def remove_dead(graph: fx.Graph) -> None:
    """Erase nodes without users. Only a write to state counts as an effect: attention and dropout do not."""
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("output", "placeholder") and node.target is not aten.copy_.default:
            graph.erase_node(node)
