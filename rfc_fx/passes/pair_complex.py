"""Pair complex: complex numbers become pairs of reals in a captured graph.

Code generators and engines have no complex types; z = re + i im is two tensors, each of the shape that z has.
"""

from __future__ import annotations

import logging
import operator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from rfc_fx.capture.clean import VIEWS_OF_ONE_LAYOUT
from rfc_fx.capture.export import Captured
from rfc_fx.errors import CaptureError
from rfc_fx.ir.ops import aten, remove_dead, value
from rfc_fx.passes.complex_operation import Pair, Traced, is_complex, kind, on_pairs, parts_of
from rfc_fx.sites.residual import module_path

log = logging.getLogger("rfc_fx")


def pair_complex(captured: Captured) -> Captured:
    """The graph with a pair of reals for every complex value; inputs are read as `view_as_real` gives them.

    Raises CaptureError where the model returns complex numbers.
    """
    if not any(is_complex(node) for node in captured.graph.nodes):
        return captured
    return _Pairing(captured).result()


@dataclass
class _Pairing:
    captured: Captured
    graph: fx.Graph = field(default_factory=fx.Graph)
    constants: dict[str, Tensor] = field(default_factory=dict)
    env: dict[fx.Node, Any] = field(default_factory=dict)
    """Nodes of the old graph -> a node, a Pair, or a sequence of them."""
    traces: dict[str, Traced | None] = field(default_factory=dict)

    @cached_property
    def mode(self) -> FakeTensorMode:
        """That of the graph's own fake tensors."""
        tensors = (leaf for node in self.captured.graph.nodes for leaf in pytree.tree_leaves(value(node)))
        return next(tensor.fake_mode for tensor in tensors if isinstance(tensor, FakeTensor))

    def result(self) -> Captured:
        for node in self.captured.graph.nodes:
            touched = is_complex(node) or any(is_complex(source) for source in node.all_input_nodes)
            if not touched:
                self.env[node] = self.graph.node_copy(node, self.env.__getitem__)
            elif node.op == "placeholder":
                copy = self.graph.node_copy(node)
                copy.meta["val"] = torch.view_as_real(value(node).resolve_conj())
                self.env[node] = self._parts(copy, node)
            elif node.op == "get_attr":
                self.env[node] = self._held(node)
            elif node.op == "output":
                raise self._returned(node)
            elif node.target is operator.getitem:
                source, place = node.args
                self.env[node] = self.env[source][place]
            else:
                self.env[node] = self._rewritten(node)
        remove_dead(self.graph)
        self.graph.lint()
        return replace(self.captured, graph=self.graph, constants=self.captured.constants | self.constants)

    def _returned(self, output: fx.Node) -> CaptureError:
        places = [i for i, node in enumerate(pytree.tree_leaves(output.args[0])) if isinstance(node, fx.Node) and is_complex(node)]
        return CaptureError(
            f"{type(self.captured.model).__name__}: forward returns complex numbers (result {', '.join(map(str, places))}), "
            "which programs do not hold; return torch.view_as_real of them"
        )

    def _held(self, node: fx.Node) -> Pair:
        """A constant as two constants; of a weight these are views, which see its new values."""
        target = str(node.target)
        constant = self.captured.constants.get(target)
        tensor = self._weight(target) if constant is None else constant
        parts = torch.view_as_real(tensor.detach().resolve_conj()).unbind(-1)
        parts = parts if constant is None else tuple(part.contiguous() for part in parts)
        fakes = torch.view_as_real(value(node).resolve_conj()).unbind(-1)
        made = []
        for name, part, fake in zip(("re", "im"), parts, fakes, strict=True):
            held = f"{target.replace('.', '_')}_{name}"
            self.constants[held] = part
            made.append(self.graph.create_node("get_attr", held))
            made[-1].meta = {**node.meta, "val": fake if constant is None else fake.contiguous()}
        return Pair(*made)

    def _weight(self, target: str) -> Tensor:
        tensor: Any = operator.attrgetter(target.partition(".")[2])(self.captured.model)
        assert isinstance(tensor, Tensor)
        return tensor

    def _rewritten(self, node: fx.Node) -> Any:
        leaves, spec = pytree.tree_flatten((node.args, node.kwargs))
        given = [self.env[leaf] if isinstance(leaf, fx.Node) else leaf for leaf in leaves]
        key = f"{node.target} {spec} {[kind(one) for one in given]}"
        if key not in self.traces:
            self.traces[key] = on_pairs(node, given, spec, self.mode)
        traced = self.traces[key]
        if traced is None:
            log.info("%s: %s (%s) keeps its complex numbers", type(self.captured.model).__name__, node.target, module_path(node))
            return self._as_it_stands(node, leaves, spec)
        operands = iter([part for one in given for part in parts_of(one)])
        inner: dict[fx.Node, fx.Node] = {}
        for new in traced.graph.nodes:
            if new.op == "placeholder":
                inner[new] = next(operands)
            elif new.target in (aten.detach.default, aten.alias.default):
                inner[new] = inner[new.args[0]]
            elif new.op != "output":
                inner[new] = self.graph.node_copy(new, inner.__getitem__)
                inner[new].meta = {**node.meta, "val": value(new)}
                if new.target in VIEWS_OF_ONE_LAYOUT:
                    inner[new].target = aten.reshape.default
        return _paired([inner[new] for new in traced.results], traced)

    def _as_it_stands(self, node: fx.Node, leaves: list[Any], spec: pytree.TreeSpec) -> Any:
        """An operation without a decomposition, between the parts before and after it."""

        def call(target: Any, args: tuple[Any, ...], val: Any, kwargs: Any = None) -> fx.Node:
            made = self.graph.call_function(target, args, kwargs)
            made.meta = {**node.meta, "val": val}
            return made

        def whole(leaf: Any) -> Any:
            one = self.env[leaf] if isinstance(leaf, fx.Node) else leaf
            return call(aten.complex.default, (one.re, one.im), value(leaf)) if isinstance(one, Pair) else one

        def taken_apart(made: fx.Node, val: Any) -> Any:
            if not (isinstance(val, Tensor) and val.is_complex()):
                return made
            return self._parts(call(aten.view_as_real.default, (made,), torch.view_as_real(val)), node)

        args, kwargs = pytree.tree_unflatten([whole(leaf) for leaf in leaves], spec)
        made, val = call(node.target, args, value(node), kwargs), value(node)
        if isinstance(val, Tensor):
            return taken_apart(made, val)
        return [taken_apart(call(operator.getitem, (made, i), part), part) for i, part in enumerate(val)]

    def _parts(self, pairs: fx.Node, like: fx.Node) -> Pair:
        """Both parts of what has them in its last axis."""
        made = [self.graph.call_function(aten.select.int, (pairs, -1, i)) for i in range(2)]
        for i, part in enumerate(made):
            part.meta = {**like.meta, "val": value(pairs).select(-1, i)}
        return Pair(*made)


def _paired(results: list[fx.Node], traced: Traced) -> Any:
    rest = iter(results)
    return pytree.tree_unflatten([Pair(next(rest), next(rest)) if pair else next(rest) for pair in traced.pairs], traced.spec)
