"""Spread: what of a graph differs from rank to rank where a sequence lies on several, and the laws about it."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from enum import IntEnum
from typing import Any

from torch import fx

from rfc.method import Method
from rfc_fx.capture.export import Captured
from rfc_fx.capture.parallel import Parallel
from rfc_fx.errors import CaptureError
from rfc_fx.ir.ops import aten, is_view, shape


class Spread(IntEnum):
    """How a value lies over the ranks of a group."""

    REPLICATED = 0
    """Equal on all."""
    SHARDED = 1
    """Each rank holds its own tokens."""
    SCATTERED = 2
    """Each rank holds all tokens of its own heads (between the all-to-alls of an attention)."""


SUMS = frozenset(
    {"sum", "mean", "amax", "amin", "max", "min", "var", "std", "var_mean", "linalg_vector_norm", "norm", "any", "all", "prod", "argmax"}
    | {"argmin", "logsumexp", "median", "topk", "sort", "cumsum", "softmax", "_softmax", "log_softmax", "group_norm", "native_group_norm"}
    | {"batch_norm", "instance_norm"}
)
"""Operations that reduce, or order, along axes."""

LIKE = frozenset({"reshape_as", "view_as", "expand_as", "type_as"})
"""Operations that read the values of their first operand, and the form of the second alone."""

PRODUCTS = frozenset({"bmm", "matmul", "baddbmm", "einsum", "mm"})


def name_of(node: fx.Node) -> str:
    """The operation's name, without namespace and overload: "all_reduce"."""
    packet = getattr(node.target, "overloadpacket", None)
    return "" if packet is None else str(packet.__name__)


def is_collective(node: fx.Node) -> bool:
    """Whether a node communicates."""
    return getattr(node.target, "namespace", "") in ("_c10d_functional", "c10d") and name_of(node) != "wait_tensor"


def is_split(node: fx.Node, parallel: Parallel) -> bool:
    """Whether a node is this rank's part of what its model's hooks have split."""
    source = node.args[0] if node.target is operator.getitem else None
    if not isinstance(source, fx.Node) or name_of(source) not in ("chunk", "split", "tensor_split", "split_with_sizes"):
        return False
    whole = source.args[0]
    axes = len(shape(whole))
    axis = _argument(source, "dim", 0)
    is_planned = isinstance(axis, int) and any(axis % max(1, axes) == d % max(1, axes) and n in (None, axes) for d, n in parallel.splits)
    parts = {user.args[1] for user in source.users if user.users}
    return is_planned and parts == {parallel.rank} == {node.args[1]} and _pieces(source) == parallel.size


def _pieces(source: fx.Node) -> int:
    held = source.meta.get("val")
    return len(held) if isinstance(held, list | tuple) else 0


def spreads(graph: fx.Graph, parallel: Parallel, start: Mapping[fx.Node, Spread]) -> dict[fx.Node, Spread]:
    """How each node's value lies over the ranks; `start`: of placeholders that are not replicated, and of nodes that are known."""
    found: dict[fx.Node, Spread] = {}
    for node in graph.nodes:
        read = node.all_input_nodes[:1] if name_of(node) in LIKE else node.all_input_nodes
        sources = [found[source] for source in read]
        most = max(sources, default=Spread.REPLICATED)
        name = name_of(node) if is_collective(node) else ""
        if node in start:
            found[node] = start[node]
        elif is_split(node, parallel):
            found[node] = Spread.SHARDED
        elif name == "all_to_all_single":
            found[node] = {Spread.SHARDED: Spread.SCATTERED, Spread.SCATTERED: Spread.SHARDED}.get(most, most)
        elif name.startswith("all_gather"):
            found[node] = most if most is Spread.SCATTERED else Spread.REPLICATED
        elif name.startswith("all_reduce"):
            found[node] = Spread.REPLICATED
        elif node.op == "call_module":
            found[node] = Spread.SHARDED if most else Spread.REPLICATED  # a region begins and ends on the stream
        else:
            found[node] = most
    return found


def refuse_silent_attention(captured: Captured) -> None:
    """CaptureError where a model's own operations would see one rank's tokens and take them for all: the hooks split, nothing communicates.

    So do attention that does not go through diffusers' dispatcher, linear attention, convolutions over tokens and pooling.
    """
    parallel = captured.parallel
    if parallel is None:
        return
    found = spreads(captured.graph, parallel, {})
    for node in captured.graph.nodes:
        if (why := _sees_its_own_tokens(node, found)) and not (parallel.ring > 1 and _goes_round(node, found, parallel.ring)):
            where = next((path for path, _ in reversed(list(node.meta.get("nn_module_stack", {}).values()))), "")
            raise CaptureError(
                f"{type(captured.model).__name__}{f'.{where}' if where else ''}: {why}, and takes the tokens of this rank for all of them: "
                "it does not communicate with the other ranks, so the picture would come apart at the seams; context parallel needs "
                "attention that goes through the dispatcher of diffusers (_parallel_config), as in FLUX, Qwen-Image and Wan"
            )
    if Spread.SHARDED in found.values() and not any(is_collective(node) and _is_worked_on(node) for node in captured.graph.nodes):
        raise CaptureError(
            f"{type(captured.model).__name__}: its sequence is split over {parallel.size} ranks, and no operation before the last gather "
            "communicates: every rank would see its own tokens alone; use a model whose attention goes through diffusers' dispatcher"
        )


def refuse_methods(captured: Captured, method: Method) -> None:
    """CaptureError for a method whose own work mixes tokens, where a rank holds some of them."""
    if captured.parallel is None:
        return
    name = type(captured.model).__name__
    if method.tokens is not None:
        raise CaptureError(
            f"{name}: {method} chooses the tokens that are computed among all of them, and its sequence lies on {captured.parallel.size} "
            "ranks, each of which would choose among its own; use a method that estimates whole sites, such as rfc.RFC or rfc.LogSNR"
        )
    if captured.predictor is not None:
        raise CaptureError(
            f"{name}: the predictor of {method} attends to all tokens, and the sequence lies on {captured.parallel.size} ranks; "
            "use a method without a predictor, such as rfc.RFC or rfc.LogSNR"
        )


def _sees_its_own_tokens(node: fx.Node, found: Mapping[fx.Node, Spread]) -> str:
    """What is wrong with a node that mixes the tokens of one rank; empty where nothing is."""
    name = name_of(node)
    operands = [source for source in node.args if isinstance(source, fx.Node)]
    if name == "einsum" and isinstance(node.args[1], list | tuple):
        operands = [source for source in node.args[1] if isinstance(source, fx.Node)]
    shards = [source for source in operands if found.get(source) is Spread.SHARDED]
    if "attention" in name and any(source in shards for source in operands[1:3]):
        return "its attention reads keys of one rank"
    if name in PRODUCTS and len(shards) > 1:
        return f"a product ({name}) mixes tokens"
    if name.startswith("conv") and operands[0] in shards and any(length > 1 for length in shape(operands[1])[2:]):
        return f"a convolution ({name}) mixes tokens"
    if reduces_tokens(node, found) and not is_completed(node):
        return f"a reduction ({name}) over tokens"
    return ""


def _goes_round(node: fx.Node, found: Mapping[fx.Node, Spread], ranks: int) -> bool:
    """Whether an attention to a rank's own keys is the first part of a ring: the same query reads the keys of the other ranks, gathered."""
    query = _behind_views(node.args[0])
    parts = [other for other in node.graph.nodes if name_of(other) == name_of(node) and _behind_views(other.args[0]) is query]
    return "attention" in name_of(node) and [found.get(part.args[1]) for part in parts].count(Spread.REPLICATED) == ranks - 1


def _behind_views(node: Any) -> Any:
    while isinstance(node, fx.Node) and (is_view(node) or name_of(node) in ("contiguous", "clone")):
        node = node.args[0]
    return node


def _is_worked_on(node: fx.Node) -> bool:
    """Whether a product, an attention or a layer comes after a node."""
    seen, pending = {node}, list(node.users)
    while pending:
        user = pending.pop()
        if user in seen:
            continue
        seen.add(user)
        if user.target is aten.linear.default or "attention" in name_of(user) or name_of(user) in PRODUCTS:
            return True
        pending.extend(user.users)
    return False


def reduces_tokens(node: fx.Node, found: Mapping[fx.Node, Spread]) -> bool:
    """Whether a node reduces a rank's tokens: along any axis but the last of a value that is sharded."""
    source = node.args[0] if node.args else None
    if name_of(node) not in SUMS or not isinstance(source, fx.Node) or found.get(source) is not Spread.SHARDED:
        return False
    if len([value for value in node.args if isinstance(value, fx.Node)]) > 1 and name_of(node) in ("max", "min"):
        return False  # of two tensors, element by element
    rank = len(source.meta["slot"].shape if "slot" in source.meta else shape(source))
    if "group_norm" in name_of(node) or "instance_norm" in name_of(node) or "batch_norm" in name_of(node):
        return True
    default = -1 if name_of(node) in ("topk", "sort") else None
    axes = _argument(node, "dim", default)
    if axes is None or axes == []:
        return rank > 1
    listed = axes if isinstance(axes, list | tuple) else [axes]
    return any(axis % rank != rank - 1 for axis in listed)


def is_completed(node: fx.Node) -> bool:
    """Whether a reduction is read by an all-reduce alone, behind views, casts and concatenations."""
    readers = list(node.users)
    return bool(readers) and all(
        name_of(user).startswith("all_reduce")
        if is_collective(user)
        else (is_view(user) or name_of(user) in ("cat", "stack", "to", "_to_copy", "clone")) and is_completed(user)
        for user in readers
    )


def _argument(node: fx.Node, name: str, default: Any) -> Any:
    """An argument of an operation by the name that its schema has for it."""
    if name in node.kwargs:
        return node.kwargs[name]
    arguments = getattr(getattr(node.target, "_schema", None), "arguments", ())
    for index, argument in enumerate(arguments):
        if argument.name == name:
            return node.args[index] if index < len(node.args) else (argument.default_value if argument.has_default_value() else default)
    return default


def collectives(nodes: Iterable[fx.Node]) -> Iterator[fx.Node]:
    """The nodes that communicate, those of called graphs included, in their order."""
    for node in nodes:
        owner = node.graph.owning_module
        if node.op == "call_module" and owner is not None:
            called = owner.get_submodule(str(node.target))
            if isinstance(called, fx.GraphModule):
                yield from collectives(called.graph.nodes)
        elif is_collective(node):
            yield node
