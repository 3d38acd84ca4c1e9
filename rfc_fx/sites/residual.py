"""Residual adds: where a branch joins the stream, found by structure alone, with the words that sites are described in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import fx

from rfc.granularity import block_of as block_of
from rfc_fx.ir.ops import CASTS, VIEWS, aten, is_heavy, shape

_ADDS = frozenset({aten.add.Tensor, aten.add_.Tensor})


@dataclass(frozen=True)
class Site:
    """A residual branch: `output` is estimated from its past and from `I`.

    With `base`, the remembered O is `output - base` (a block's residual); without, O is `output` itself. With `origin`, the input is
    `I - origin`: what a probe, the blocks between, added to the stream.
    """

    name: str
    I: fx.Node
    output: fx.Node
    base: fx.Node | None = None
    origin: fx.Node | None = None
    joined: fx.Node | None = None
    """Where the stream takes the output in: the residual add; None where the output is the stream itself."""

    def moved(self, env: Mapping[fx.Node, fx.Node]) -> Site:
        """The site in a copy of its graph; `env` maps the nodes, and may lack `joined` where that is part of a region."""
        base, origin = (None if node is None else env[node] for node in (self.base, self.origin))
        joined = None if self.joined is None else env.get(self.joined)
        return Site(self.name, env[self.I], env[self.output], base, origin, joined)

    @property
    def stream(self) -> fx.Node:
        """The stream after the site."""
        return self.output if self.joined is None else self.joined


class Rejected(NamedTuple):
    """A branch that is not a site, and why."""

    where: str
    why: str


class SiteAnalysis(NamedTuple):
    """The sites of a graph in execution order, and the branches that were passed over."""

    sites: list[Site]
    rejected: list[Rejected]
    granularity: str = "module"


class Residual(NamedTuple):
    add: fx.Node
    x: fx.Node
    """The stream, behind casts."""
    root: fx.Node
    """The point of the stream that v was computed from: x, or an earlier one where branches are parallel."""
    v: fx.Node


_FILLED = frozenset(
    {aten.zeros_like.default, aten.ones_like.default, aten.empty_like.default, aten.full_like.default, aten.new_zeros.default}
    | {aten.new_ones.default, aten.new_empty.default, aten.new_full.default}
)
"""Operations that take no more than the shape from their argument."""


class Ancestry:
    """Ancestors of every node as bit sets."""

    def __init__(self, graph: fx.Graph) -> None:
        self.index = {node: i for i, node in enumerate(graph.nodes)}
        self.bits: dict[fx.Node, int] = {}
        for node in graph.nodes:
            mine = 0
            for source in () if node.target in _FILLED else node.all_input_nodes:
                mine |= self.bits[source] | (1 << self.index[source])
            self.bits[node] = mine

    def before(self, early: fx.Node, late: fx.Node) -> bool:
        """Whether `early` is an ancestor of `late`."""
        return bool(self.bits[late] >> self.index[early] & 1)


def residual_adds(graph: fx.Graph, ancestry: Ancestry) -> Iterator[Residual]:
    """The adds of a branch to the stream that it was computed from, in order."""
    heavy_bits = sum(1 << ancestry.index[node] for node in graph.nodes if is_heavy(node))
    after: dict[fx.Node, int] = {node: 0 for node in graph.nodes}  # descendants, filled backwards
    for node in reversed(list(graph.nodes)):
        for source in node.all_input_nodes:
            after[source] |= after[node] | (1 << ancestry.index[node])
    residuals: dict[fx.Node, Residual] = {}
    for node in graph.nodes:
        if node.target not in _ADDS or len(shape(node)) < 2 or node.kwargs.get("alpha", 1) != 1:
            continue
        a, b = node.args[:2]
        if not (isinstance(a, fx.Node) and isinstance(b, fx.Node) and shape(a) == shape(b) == shape(node)):
            continue
        for x, v in ((a, b), (b, a)):
            start = _behind_casts(x)
            root: fx.Node | None = start
            while root is not None:
                between = after[root] & (ancestry.bits[v] | 1 << ancestry.index[v]) & heavy_bits
                if between and ancestry.before(root, v):
                    residuals[node] = Residual(node, start, root, v)
                    yield residuals[node]
                    break
                root = residuals[root].x if root in residuals else None
            if node in residuals:
                break


def _behind_casts(node: fx.Node) -> fx.Node:
    while (node.target in CASTS or (node.target in VIEWS and shape(node) == shape(node.args[0]))) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def module_path(node: fx.Node) -> str:
    """Path of the module whose forward made a node, e.g. `transformer_blocks.0.attn1.to_out.0`."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] for entry in stack.values()]
    return str(paths[-1]) if paths else ""


def block_path(node: fx.Node) -> str:
    return block_of(module_path(node))
