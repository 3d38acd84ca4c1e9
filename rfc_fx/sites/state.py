"""State of the sites: which slots a method keeps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import fx

from rfc.arguments import timestep_among
from rfc.method import Method
from rfc.phase import is_partial, phase_named
from rfc.state import SlotSpec
from rfc.token_selection import check_tokens
from rfc_fx.errors import NoSiteError
from rfc_fx.ir.ops import select, spec_of
from rfc_fx.sites.residual import Rejected, Site
from rfc_fx.sites.token_wise import TokenSite, last_stream, token_sites

SCHEDULE = "schedule"
"""Owner of the slots that a data-driven schedule keeps, beside the sites."""


LAST = "last"
"""Owner of the slot with the stream that left the last block, for phases that begin behind it (REUSE)."""


def state_slots(sites: Sequence[Site], watched: Site, method: Method) -> dict[str, SlotSpec]:
    """The state tensors of the sites, of their tokens, of the last block, and of the schedule at the site it watches."""
    slots: dict[str, SlotSpec] = {}
    tokens, token_wise = method.tokens, tokens_of_sites(sites, watched, method)[0]
    for site in sites:
        I, O = spec_of(site.I), spec_of(site.output)
        slots |= {f"{site.name}.{name}": spec for name, spec in method.estimator.slots(I, O).items()}
        if site.name in token_wise and tokens is not None:
            slots |= {f"{site.name}.tokens.{name}": spec for name, spec in tokens.slots(*I.shape[:2]).items()}
    if any(phase_named(name).reads_last for name in method.schedule.branches):
        slots[f"{LAST}.x"] = spec_of(last_stream(site_values(sites), watched))
    slots |= {f"{SCHEDULE}.{name}": spec for name, spec in schedule_slots(watched, method).items()}
    return slots


def schedule_slots(watched: Site, method: Method) -> dict[str, SlotSpec]:
    """What the schedule keeps of the site that it watches."""
    seen = {name: spec_of(node) for name, node in signals(watched, method).items()}
    if method.schedule.reads_output:
        seen["output"] = spec_of(watched.output)
    return method.schedule.slots(seen)


def site_values(sites: Iterable[Site]) -> dict[fx.Node, Site]:
    """What stands for each site's output in what follows: its guard, where it has one."""
    return {next((user for user in site.output.users if user.target is select), site.output): site for site in sites}


def tokens_of_sites(sites: Sequence[Site], watched: Site, method: Method) -> tuple[dict[str, TokenSite], list[Rejected]]:
    """Those of `token_sites`; none where no phase computes tokens."""
    tokens, phases = method.tokens, method.schedule.branches
    check_tokens(method.estimator, phases, tokens)
    if tokens is None or not any(map(is_partial, phases)):
        return {}, []
    return token_sites(site_values(sites), watched, tokens)


def signals(watched: Site, method: Method) -> dict[str, fx.Node]:
    """What the schedule watches at that site; NoSiteError where the site has no stream of its own shape, or the model no timestep."""
    nodes: dict[str, fx.Node] = {}
    for name in method.schedule.watches:
        if name == "timestep":
            nodes[name] = _timestep(watched.I.graph, method)
            continue
        node = watched.I if name == "I" else watched.base
        if node is None:
            raise NoSiteError(
                f"{type(method.schedule).__name__} watches the stream before {watched.name}, which has another shape than what leaves it; "
                "choose another granularity"
            )
        nodes[name] = node
    return nodes


def _timestep(graph: fx.Graph, method: Method) -> fx.Node:
    inputs: dict[str, fx.Node] = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    if (name := timestep_among(inputs)) is None:
        raise NoSiteError(f"{type(method.schedule).__name__} reads the timestep, and the model has no such argument; choose another method")
    return inputs[name]
