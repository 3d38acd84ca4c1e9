"""Outline: the work of each site becomes one call, so that a graph of a thousand nodes reads like the model."""

from __future__ import annotations

import heapq
import operator
from collections.abc import Container, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from rfc_fx.capture.export import MODEL, PREDICTOR, Captured
from rfc_fx.ir.ops import aten, closure, remove_dead
from rfc_fx.sites.find import reads
from rfc_fx.sites.residual import Site


@dataclass(frozen=True)
class Outlined:
    """A graph in which each region of work that estimation skips is one call_module; sites point into the new graph."""

    captured: Captured
    graph: fx.Graph
    sites: list[Site]
    regions: dict[str, fx.GraphModule]


class CodeLater(fx.GraphModule):
    """A graph module whose code is generated with that of a program that calls it, or else by its first call.

    Passes read the guarded graph and nothing runs it; a region has code from the program that computes it: half the code is never needed.
    """

    is_made = True

    def __init__(self, root: nn.Module, graph: fx.Graph, class_name: str) -> None:
        self.__dict__["is_made"] = False
        super().__init__(root, graph, class_name)
        self.is_made = True

    def recompile(self) -> Any:
        """Generate the code, but not on the way through `__init__`."""
        return super().recompile() if self.is_made else None

    def forward(self, *inputs: Any) -> Any:
        """Generate the code, which takes this method's place, and run it."""
        self.recompile()
        return type(self).forward(self, *inputs)


def graph_module(
    captured: Captured,
    graph: fx.Graph,
    constants: Mapping[str, Tensor],
    regions: Mapping[str, nn.Module],
    name: str,
    made_as: type[fx.GraphModule] = fx.GraphModule,
) -> fx.GraphModule:
    """Make a graph executable with the model attached live: weights that change or move are seen, none is copied."""
    root = nn.Module()
    live = {MODEL: captured.model} | ({} if captured.predictor is None else {PREDICTOR: captured.predictor})
    for held, owner in live.items():
        root.add_module(held, owner)
    for target, tensor in constants.items():
        root.register_buffer(target, tensor, persistent=False)
    for target, region in regions.items():
        root.add_module(target, region)
    module = made_as(root, graph, class_name=name)
    for held, owner in live.items():
        if hasattr(module, held):  # fx made empty copies of the containers on the way to each weight
            module.add_module(held, owner)
    return module


def outline(captured: Captured, sites: Sequence[Site]) -> Outlined:
    """Move the nodes that only sites' outputs need, and that the streams feed, into one submodule per site.

    Sites that share work (the two streams of a joint attention) share one submodule with two results. What does not
    depend on a stream (rotary tables, text keys and values) stays outside, where it can be hoisted.
    """
    graph = captured.graph
    order = {node: i for i, node in enumerate(graph.nodes)}
    clusters = _clusters(graph, sites, order)
    while True:
        schedule, cyclic = in_order(order, [nodes for nodes, _ in clusters])
        if not cyclic:
            break
        clusters = [cluster for i, cluster in enumerate(clusters) if i not in cyclic]  # these stay inline

    new = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    regions: dict[str, fx.GraphModule] = {}
    for item in schedule:
        if isinstance(item, fx.Node):
            env[item] = new.node_copy(item, lambda n: env[n])
            continue
        nodes, members = clusters[item]
        name = _identifier(members[0].name, regions)
        region, inputs = _region(captured, nodes, [site.output for site in members], order, name)
        regions[name] = region
        call = new.create_node("call_module", name, tuple(env[i] for i in inputs), name=name)
        call.meta = {"nn_module_stack": members[0].output.meta.get("nn_module_stack", {})}
        if len(members) == 1:
            call.meta["val"] = members[0].output.meta["val"]
            env[members[0].output] = call
        else:
            call.meta["val"] = tuple(site.output.meta["val"] for site in members)
            for i, site in enumerate(members):
                part = new.call_function(operator.getitem, (call, i))
                part.meta = {"val": site.output.meta["val"]}
                env[site.output] = part
    remove_dead(new)
    return Outlined(captured, new, [site.moved(env) for site in sites], regions)


_Cluster = tuple[list[fx.Node], list[Site]]


def _clusters(graph: fx.Graph, sites: Sequence[Site], order: dict[fx.Node, int]) -> list[_Cluster]:
    """Regions of skipped work, merged where sites share some."""
    cut = {site.output: site for site in sites}
    alive: set[fx.Node] = set()
    pending = [n for n in graph.nodes if n.op == "output"] + [n for site in sites for n in reads(site)]
    while pending:
        node = pending.pop()
        if node not in alive:
            alive.add(node)
            if node not in cut:
                pending.extend(node.all_input_nodes)
    streams = {node for site in sites for node in reads(site)}
    fed: set[fx.Node] = set()
    for node in graph.nodes:
        if (node not in alive or node in cut) and any(i in fed or i in streams or i in cut for i in node.all_input_nodes):
            fed.add(node)

    clusters: list[tuple[set[fx.Node], list[Site]]] = []
    for site in sites:
        mine = _work(site, fed, cut)
        members = [site]
        for shared in [c for c in clusters if c[0] & mine]:
            clusters.remove(shared)
            mine |= shared[0]
            members = shared[1] + members
        clusters.append((mine, members))
    return [(sorted(nodes, key=order.__getitem__), members) for nodes, members in clusters if nodes]


def _work(site: Site, fed: AbstractSet[fx.Node], outputs: Container[fx.Node]) -> set[fx.Node]:
    """What the site's output is made from, as far as a stream or another site feeds it."""
    return closure([site.output], lambda node: node in fed and (node not in outputs or node is site.output))


def in_order(order: dict[fx.Node, int], clusters: Sequence[Sequence[fx.Node]]) -> tuple[list[fx.Node | int], set[int]]:
    """Order single nodes and clusters (by their index) so that everything comes after what it reads, as near the old order as possible.

    A write comes after the reads that stood before it. The second result is the clusters that cannot be placed: they read what reads them.
    """
    item_of: dict[fx.Node, fx.Node | int] = {node: node for node in order}
    item_of |= {node: i for i, nodes in enumerate(clusters) for node in nodes}
    rank = {item: order[item] if isinstance(item, fx.Node) else order[clusters[item][-1]] for item in item_of.values()}
    waiting: dict[fx.Node | int, set[fx.Node | int]] = {item: set() for item in rank}
    users: dict[fx.Node | int, set[fx.Node | int]] = {item: set() for item in rank}
    for node in order:
        sources = node.all_input_nodes
        if node.target is aten.copy_.default:
            sources = sources + [user for user in sources[0].users if order[user] < order[node]]
        for source in sources:
            if item_of[source] != item_of[node]:
                waiting[item_of[node]].add(item_of[source])
                users[item_of[source]].add(item_of[node])
    ready = [(rank[item], i, item) for i, item in enumerate(rank) if not waiting[item]]
    heapq.heapify(ready)
    tick = len(rank)
    done: list[fx.Node | int] = []
    while ready:
        _, _, item = heapq.heappop(ready)
        done.append(item)
        for user in users[item]:
            waiting[user].discard(item)
            if not waiting[user]:
                tick += 1
                heapq.heappush(ready, (rank[user], tick, user))
    placed = set(done)
    return done, {item for item in rank if isinstance(item, int) and item not in placed}


def _region(
    captured: Captured, nodes: Sequence[fx.Node], outputs: Sequence[fx.Node], order: dict[fx.Node, int], name: str
) -> tuple[fx.GraphModule, list[fx.Node]]:
    inside = set(nodes)
    sources = [i for node in nodes for i in node.all_input_nodes if i not in inside]
    inputs = [i for i in sorted(dict.fromkeys(sources), key=order.__getitem__) if i.op != "get_attr"]
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for source in inputs:
        env[source] = graph.placeholder(source.name)
        env[source].meta = dict(source.meta)
    for source in dict.fromkeys(sources):
        if source.op == "get_attr":
            env[source] = graph.node_copy(source)
    for node in nodes:
        env[node] = graph.node_copy(node, lambda n: env[n])
    results = tuple(env[o] for o in outputs)
    graph.output(results[0] if len(results) == 1 else results)
    used = {str(n.target) for n in graph.nodes if n.op == "get_attr"}
    constants = {target: tensor for target, tensor in captured.constants.items() if target in used}
    return graph_module(captured, graph, constants, {}, name, CodeLater), inputs


def _identifier(site: str, taken: Mapping[str, object]) -> str:
    """A Python name for a site's region, not yet taken."""
    name = "".join(c if c.isalnum() else "_" for c in site).strip("_") or "region"
    name = f"full_{name}"
    return name if name not in taken else f"{name}_{len(taken)}"
