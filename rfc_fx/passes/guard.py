"""Guard: every site becomes select(phase, full, estimate). This graph is what all programs are made from."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor, fx

import rfc
from rfc.method import Method
from rfc.phase import phase_named
from rfc.state import Clock, SlotSpec
from rfc_fx.ir.ops import aten, recall, select, value
from rfc_fx.passes.outline import CodeLater, Outlined, graph_module
from rfc_fx.sites.residual import Rejected, Site
from rfc_fx.sites.state import site_values, state_slots, tokens_of_sites
from rfc_fx.sites.token_wise import TokenSite, last_stream


@dataclass(frozen=True)
class Guarded:
    """The guarded graph, its sites (pointing at what each select reads) and the state they need."""

    outlined: Outlined
    module: fx.GraphModule
    sites: list[Site]
    watched: Site
    method: Method
    slots: dict[str, SlotSpec]
    """`<site>.<slot>` -> shape and dtype, in order; `schedule.<slot>` for a data-driven schedule."""
    tokens: dict[str, TokenSite]
    """The sites of which PARTIAL steps compute some tokens, by name."""
    reused: list[Rejected]
    """The sites that PARTIAL steps reuse, and why."""

    @cached_property
    def last(self) -> fx.Node:
        """The latent's stream as it leaves the last block."""
        return last_stream(site_values(self.sites), self.watched)

    def site_slots(self, owner: str) -> list[str]:
        """Names of one owner's slots, without the owner."""
        return [name.removeprefix(f"{owner}.") for name in self.slots if name.rpartition(".")[0] == owner]


def guard(outlined: Outlined, watched: Site, method: Method) -> Guarded:
    """Insert a select after every site's output and list the state that the method needs."""
    graph = fx.Graph()
    phase = graph.placeholder("phase")
    env: dict[fx.Node, fx.Node] = {}
    by_output = {site.output: site for site in outlined.sites}
    inputs: dict[tuple[fx.Node, fx.Node | None], fx.Node] = {}
    full: dict[str, fx.Node] = {}
    for node in outlined.graph.nodes:
        env[node] = graph.node_copy(node, env.__getitem__)
        if node in by_output:
            site = by_output[node]
            if (site.I, site.origin) not in inputs:
                inputs[site.I, site.origin] = _input(graph, env[site.I], None if site.origin is None else env[site.origin])
            full[site.name] = env[node]
            base = None if site.base is None else env[site.base]
            I = inputs[site.I, site.origin]
            env[node] = graph.call_function(select, (phase, full[site.name]), {"I": I, "base": base, "site": site.name})
            env[node].meta = {"val": node.meta["val"]}
    sites = [replace(site.moved(env), I=inputs[site.I, site.origin], output=full[site.name], origin=None) for site in outlined.sites]
    first = next(site for site in sites if site.name == watched.name)
    captured = outlined.captured
    module = graph_module(captured, graph, captured.constants, outlined.regions, "Guarded", CodeLater)
    tokens, reused = tokens_of_sites(sites, first, method)
    return Guarded(outlined, module, sites, first, method, state_slots(sites, first, method), tokens, reused)


def _input(graph: fx.Graph, I: fx.Node, origin: fx.Node | None) -> fx.Node:
    """I, or what the blocks from `origin` to I added to the stream."""
    if origin is None:
        return I
    moved = graph.call_function(aten.sub.Tensor, (I, origin))
    moved.meta = {**I.meta, "val": value(I).contiguous()}
    return moved


class Reference(fx.Interpreter):
    """Runs the guarded graph node by node: what every program made from it has to equal.

    Computes the full branch in every phase and keeps its result only in FULL; slow on purpose, free of cleverness.
    """

    def __init__(self, guarded: Guarded, state: MutableMapping[str, Tensor], clock: Clock) -> None:
        super().__init__(guarded.module)
        self.guarded, self.state, self.clock = guarded, state, clock

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Interpret select and recall; everything else as it stands."""
        if target is recall:
            return self.state[kwargs["slot"]]
        if target is not select:
            return super().call_function(target, args, kwargs)
        phase, full = args
        I, base, site = kwargs["I"], kwargs["base"], kwargs["site"]
        names = self.guarded.site_slots(site)
        estimator: rfc.Estimator = self.guarded.method.estimator
        own = {name: self.state[f"{site}.{name}"] for name in names}
        if phase_named(phase).computes_sites:
            O = full if base is None else full - base
            new = estimator.refresh(own, I, O, self.clock)
            self.state.update({f"{site}.{name}": tensor for name, tensor in new.items()})
            if not estimator.corrects:
                return full
            return full + estimator.correction(own, I, O, self.clock).to(full.dtype)
        if "forecast" in kwargs:
            return kwargs["forecast"]
        estimate = estimator.estimate(own, I, self.clock)
        return estimate if base is None else (base + estimate).to(full.dtype)
