"""Find the sites: residual branches, by structure alone.

An add is a *residual add* `x + v` when v was computed from the stream that x carries and something heavy lies between.
The branch is what one meets going back from v without passing another residual add or anything x was made from.
O is the last heavy result of the branch, I what its first heavy operations read. No name of a model or module is used.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import replace

from torch import fx

from rfc.granularity import block_of, parse_granularity
from rfc_fx.capture.export import LATENT_NAMES, Captured
from rfc_fx.errors import NoSiteError
from rfc_fx.ir.ops import is_heavy
from rfc_fx.sites import coarse
from rfc_fx.sites.branch import branch_of, site_of
from rfc_fx.sites.residual import Ancestry, Rejected, Residual, Site, SiteAnalysis, block_path, module_path, residual_adds


def find_sites(
    captured: Captured, granularity: str = "module", *, needs_input: bool = True, probe: int = 0, verifies: bool = False
) -> SiteAnalysis:
    """Return the sites of the graph, one per residual branch and stream, block and stream, range of blocks, or for the whole stack.

    `needs_input`: whether the estimator reads I; if it does not, sites that only feed other sites' inputs are dropped. `probe`: I is what
    so many leading blocks add to the stream. `verifies`: the last block is computed beside its estimate, so what it reads is needed.
    Raises NoSiteError listing every rejected branch when there is none, ValueError for an unknown granularity.
    """
    grain = parse_granularity(granularity)
    graph = captured.graph
    ancestry = Ancestry(graph)
    rejected: list[Rejected] = []
    residuals = []
    latents = [node for node in graph.nodes if node.op == "placeholder" and node.name in captured.latents]
    for residual in residual_adds(graph, ancestry):
        if any(ancestry.before(latent, residual.add) for latent in latents):
            residuals.append(residual)
        else:
            rejected.append(Rejected(module_path(residual.add), "does not depend on the latent"))
    for inner, outer in _nested(residuals, latents, ancestry):
        residuals.remove(inner)
        rejected.append(Rejected(module_path(inner.add), f"lies inside the branch that ends at {outer.add.name}"))
    while empty := [residual for residual in residuals if not any(map(is_heavy, branch_of(residual, residuals, ancestry)))]:
        residuals = [residual for residual in residuals if residual not in empty]
        rejected += [Rejected(module_path(r.add), "no heavy operation between the stream and the add") for r in empty]
    by_add: dict[fx.Node, Site] = {}
    for residual in (*residuals, *_transitions(residuals, ancestry)):
        site = site_of(residual, residuals, ancestry)
        if isinstance(site, Rejected):
            rejected.append(site)
        elif any(site.output is other.output for other in by_add.values()):
            rejected.append(Rejected(site.name, "its output is another site's output"))
        else:
            joined = None if residual.v is residual.add else residual.add
            by_add[residual.add] = replace(site, joined=joined, name=_unused(site, {other.name for other in by_add.values()}))
    sites = list(by_add.values())
    stream = coarse.Stream(residuals, by_add, latents, ancestry, type(captured.model).__name__)
    if grain.kind == "block":
        sites = list(coarse.blocks(stream))
    elif grain.kind == "blocks":
        sites = list(coarse.block_range(stream, grain))
    elif grain.kind in ("stack", "output") and sites:
        sites = list(coarse.stack(stream, watched(sites, captured), with_base=grain.kind == "stack"))
    elif grain.kind == "prediction" and sites:
        sites = list(coarse.predictions(stream, watched(sites, captured), graph))
    sites = coarse.probed(sites, stream, probe)
    sites.sort(key=lambda site: ancestry.index[site.output])
    needed = needed_sites(graph, sites, needs_input, last_sites(sites) if verifies else [])
    rejected += [Rejected(site.name, NOT_NEEDED) for site in sites if site not in needed]
    sites = [site for site in sites if site in needed]
    if not sites:
        listing = "\n".join(f"  {where}: {why}" for where, why in rejected) or "  the graph has no residual add"
        raise NoSiteError(
            f"{type(captured.model).__name__}: no site found in {len(ancestry.index)} nodes, so nothing could be cached:\n{listing}"
        )
    return SiteAnalysis(sites, rejected, granularity)


NOT_NEEDED = "no estimated step needs its output"


def last_sites(sites: Sequence[Site]) -> list[Site]:
    """The sites of the last block."""
    return [site for site in sites if block_of(site.name) == block_of(sites[-1].name)]


def needed_sites(
    graph: fx.Graph, sites: Sequence[Site], needs_input: bool, verified: Sequence[Site] = (), token_wise: Container[str] = ()
) -> list[Site]:
    """The sites whose estimate reaches the model's output when every site is estimated, or when `verified` are computed from estimates.

    Joint attention makes the difference: once it is skipped, a text stream that only feeds attention feeds nothing. Sites named
    `token_wise` read their input whatever the estimator does.
    """
    at = {site.output: site for site in sites}
    affected = {site.output for site in verified}
    for node in graph.nodes:
        if any(source in affected for source in node.all_input_nodes):
            affected.add(node)
    seen: set[tuple[fx.Node, bool]] = set()
    pending = [(node, is_computed) for node in graph.nodes if node.op == "output" for is_computed in (False, True)]
    while pending:
        node, is_computed = pending.pop()
        is_computed &= node in affected
        if (node, is_computed) not in seen:
            seen.add((node, is_computed))
            sources = node.all_input_nodes if is_computed or node not in at else reads(at[node], needs_input or at[node].name in token_wise)
            pending.extend((source, is_computed) for source in sources)
    return [site for site in sites if (site.output, False) in seen]


def reads(site: Site, needs_input: bool = True) -> list[fx.Node]:
    """What an estimate of the site is made from, besides its state."""
    inputs = [site.I, *([] if site.origin is None else [site.origin])]
    return inputs * needs_input + ([] if site.base is None else [site.base])


def watched(sites: Sequence[Site], captured: Captured) -> Site:
    """The first site whose input depends on the latent: what a data-driven schedule watches (methods: first module only)."""
    ancestry = Ancestry(captured.graph)
    latents = [node for node in captured.graph.nodes if node.op == "placeholder" and node.name in captured.latents]
    outputs = [site.output for site in sites]
    for site in sorted(sites, key=lambda s: ancestry.index[s.I]):
        if any(site.I is latent or ancestry.before(latent, site.I) for latent in latents) and not any(
            ancestry.before(o, site.I) for o in outputs
        ):
            return site
    raise NoSiteError(
        f"{type(captured.model).__name__}: none of the {len(sites)} sites depends on the latent {', '.join(captured.latents)}; "
        f"pass what the sampler moves as {LATENT_NAMES[0]}, or choose another granularity"
    )


def _nested(residuals: Sequence[Residual], latents: Sequence[fx.Node], ancestry: Ancestry) -> list[tuple[Residual, Residual]]:
    """Residual adds inside a branch of the same block, behind its first heavy operation: the last step of a feed-forward, say."""
    heavy = [node for node in ancestry.index if is_heavy(node)]

    def upto(early: fx.Node, late: fx.Node) -> bool:
        return early is late or ancestry.before(early, late)

    def inside(inner: Residual, outer: Residual) -> bool:
        if outer is inner or not block_path(outer.add) or block_path(outer.add) != block_path(inner.add):
            return False
        if not upto(inner.add, outer.v) or upto(inner.add, outer.root) or not any(upto(latent, outer.root) for latent in latents):
            return False
        return any(ancestry.before(outer.root, h) and upto(h, inner.root) for h in heavy)

    pairs = ((inner, next((outer for outer in residuals if inside(inner, outer)), None)) for inner in residuals)
    return [(inner, outer) for inner, outer in pairs if outer is not None]


def _transitions(residuals: Sequence[Residual], ancestry: Ancestry) -> Iterator[Residual]:
    """Where a stream ends and its next part is heavy work on it: a U-shaped skip that is joined and projected, with no add around it.

    As residuals whose add, and v, is the first node of the next part.
    """
    adds = [residual.add for residual in residuals]
    for start in dict.fromkeys(residual.x for residual in residuals if residual.x not in adds):
        before = [add for add in adds if ancestry.before(add, start)]
        if before:
            last = max(before, key=ancestry.index.__getitem__)
            step = Residual(start, last, last, start)
            if any(map(is_heavy, branch_of(step, residuals, ancestry))):
                yield step


def _unused(site: Site, taken: set[str]) -> str:
    """A name no other site has: joint attention has one site per stream, told apart by their last module."""
    if site.name not in taken:
        return site.name
    longer = module_path(site.output)
    return longer if longer not in taken else f"{longer}#{site.output.name}"
