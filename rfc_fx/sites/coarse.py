"""Coarser sites: the residual of a block, of a range of blocks or of all, and probes that the blocks before it give."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import fx

from rfc.granularity import Granularity
from rfc_fx.errors import NoSiteError
from rfc_fx.ir.ops import CASTS, aten, is_view, shape
from rfc_fx.sites.residual import Ancestry, Residual, Site, block_path


class Stream(NamedTuple):
    """What coarser sites are made from: the residual adds with a site of their own, in order."""

    residuals: Sequence[Residual]
    by_add: dict[fx.Node, Site]
    latents: Sequence[fx.Node]
    ancestry: Ancestry
    model: str
    """The model's class, for errors."""

    @property
    def site_adds(self) -> list[Residual]:
        return [residual for residual in self.residuals if residual.add in self.by_add]

    @property
    def names(self) -> list[str]:
        """The blocks in the order in which they run."""
        return list(dict.fromkeys(name for residual in self.site_adds if (name := block_path(residual.add))))

    def carries_latent(self, node: fx.Node) -> bool:
        return any(node is latent or self.ancestry.before(latent, node) for latent in self.latents)

    def before_block(self, number: int, like: fx.Node | None = None) -> fx.Node:
        """The latent's stream where that block begins; NoSiteError where there is none (of that shape)."""
        names = self.names
        if number < len(names):
            for residual in self.site_adds:
                begins = block_path(residual.add) == names[number] and self.carries_latent(residual.x)
                if begins and (like is None or shape(residual.x) == shape(like)):
                    return residual.x
        raise NoSiteError(
            f"{self.model}: no block number {number} begins with the latent's stream{'' if like is None else f' of shape {shape(like)}'}; "
            f"the model has {len(names)} blocks, numbered from 0: choose a smaller probe or another granularity"
        )


def probed(sites: Sequence[Site], stream: Stream, probe: int) -> list[Site]:
    """The sites with what the first `probe` blocks add to the stream as their input."""
    if not probe:
        return list(sites)
    start = stream.before_block(0)
    I = stream.before_block(probe, like=start)
    for site in sites:
        if stream.ancestry.before(site.output, I) or site.output is I:
            raise NoSiteError(
                f"{stream.model}: a probe of {probe} blocks lies inside {site.name}, which it is to measure; "
                f"choose blocks from {probe} on, or granularity='stack'"
            )
    return [replace(site, I=I, origin=start) for site in sites]


def blocks(stream: Stream) -> Iterator[Site]:
    """One site per block and stream: from the stream before the block's first residual add to the one after its last; transitions stay."""
    by_add = stream.by_add
    adds = {residual.add for residual in stream.residuals}
    yield from (site for add, site in by_add.items() if add not in adds)
    chains = _chains(stream.site_adds, across_blocks=False)
    names: set[str] = set()
    for chain in chains:
        first, last = chain[0], chain[-1]
        name = block_path(first.add) or by_add[first.add].name
        name = name if name not in names else f"{name}:{by_add[first.add].name.rsplit('.', 1)[-1]}"
        names.add(name)
        yield Site(name, _in_layout_of(last.add, by_add[first.add].I, first.x), last.add, base=first.x)


def _chains(residuals: Sequence[Residual], *, across_blocks: bool) -> list[list[Residual]]:
    """Residual adds that follow one another on one stream, within a block or across blocks."""
    chains: list[list[Residual]] = []
    for residual in residuals:
        for chain in chains:
            last = chain[-1].add
            follows = last is residual.x or (across_blocks and _joined_again(last, residual.x))
            if follows and (across_blocks or block_path(residual.add) == block_path(last)):
                chain.append(residual)
                break
        else:
            chains.append([residual])
    return chains


def _joined_again(stream: fx.Node, x: fx.Node) -> bool:
    """Whether x is that stream, cut into its text and image tokens and joined again between two blocks."""
    pending = [x]
    while pending:
        node = pending.pop()
        if node is not stream:
            if node.target is not aten.cat.default and not is_view(node):
                return False
            pending.extend(node.all_input_nodes)
    return shape(x) == shape(stream)


def stack(stream: Stream, start: Site, *, with_base: bool = True) -> Iterator[Site]:
    """One site for everything between the latent's first residual add (that of `start`) and the last; O is its residual or its output."""
    adds = stream.site_adds
    if not adds:
        return
    base = next(residual.x for residual in adds if stream.by_add[residual.add] is start)
    end = without_text(adds[-1].add, base)
    alike = [residual.add for residual in adds if shape(residual.add) == shape(base)]
    if shape(end) != shape(base) and alike:  # the last branch works on pixels, or on another stream: the stack ends before it
        end = alike[-1]
        yield from (site for add, site in stream.by_add.items() if stream.ancestry.index[add] > stream.ancestry.index[end])
    yield Site("stack", _in_layout_of(end, start.I, base), end, base=base if with_base and shape(end) == shape(base) else None)


def predictions(stream: Stream, start: Site, graph: fx.Graph) -> Iterator[Site]:
    """One site for each tensor that the model returns and that heavy work makes of the latent; I is that of `start`."""
    (output,) = (node for node in graph.nodes if node.op == "output")
    results = dict.fromkeys(node for node in output.all_input_nodes if stream.ancestry.before(start.output, node))
    for number, node in enumerate(results):
        yield Site("prediction" if not number else f"prediction:{number}", start.I, node)


def without_text(end: fx.Node, base: fx.Node) -> fx.Node:
    """Go forward to where the text tokens are cut off, where streams were joined."""
    while shape(end) != shape(base) and len(end.users) == 1:
        after = next(iter(end.users))
        if not (is_view(after) or after.target in CASTS) or not shape(after):
            break
        end = after
    return end


def block_range(stream: Stream, grain: Granularity) -> Iterator[Site]:
    """A site for each stream that leaves a range of blocks: what those blocks added to it. NoSiteError where the range is empty."""
    names = stream.names
    chosen_names = names[grain.blocks]
    if not chosen_names:
        raise NoSiteError(grain.no_blocks(stream.model, len(names)))
    chains = _chains([residual for residual in stream.site_adds if block_path(residual.add) in chosen_names], across_blocks=True)

    def leads(earlier: list[Residual], later: list[Residual]) -> bool:
        """Whether the end of the earlier chain is where the later one begins, or before it."""
        return earlier[-1].add is later[0].x or stream.ancestry.before(earlier[-1].add, later[0].x)

    entries = [chain[0].x for chain in chains if not any(leads(other, chain) for other in chains)]
    leaving = [chain for chain in chains if not any(leads(chain, other) for other in chains)]
    entries.sort(key=lambda x: not stream.carries_latent(x))
    sites: list[Site] = []
    while leaving:
        chain = leaving.pop(0)
        end, start = chain[-1].add, chain[0].x
        starts = [start] * (start in entries) + entries
        if chosen_names[-1] == names[-1] and not any(shape(x) == shape(end) for x in starts):
            end = without_text(end, starts[0])
        base = next((x for x in starts if shape(x) == shape(end) and stream.ancestry.before(x, end)), None)
        if base is None:  # streams were joined inside: what the blocks before did to each is a site of its own
            base = start
            before = [other for other in chains if leads(other, chain)]
            leaving += [last for last in before if not any(leads(last, other) for other in before)]
        first = stream.by_add[chain[0].add]
        sites.append(Site(f"{grain}:{first.name}" if sites else str(grain), _in_layout_of(end, first.I, start), end, base=base))
    yield from sites


def _in_layout_of(output: fx.Node, *candidates: fx.Node) -> fx.Node:
    """The first candidate for I with as many samples in its first axis as the output: some streams are (tokens, samples, channels)."""
    return next((I for I in candidates if shape(I)[:1] == shape(output)[:1]), candidates[0])
