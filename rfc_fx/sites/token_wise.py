"""Token-wise: which sites work on each token for itself, and from which attention the scores of their tokens come. By structure alone."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import fx

from rfc.granularity import block_of
from rfc.token_selection import Place, Tokens, layers
from rfc_fx.errors import NoSiteError
from rfc_fx.ir.ops import CASTS, aten, is_view, shape
from rfc_fx.sites.coarse import without_text
from rfc_fx.sites.residual import Rejected, Site
from rfc_fx.sites.token_axes import ATTENTION, Work, token_axes


class Attention(NamedTuple):
    """An attention that scores the tokens of a site."""

    node: fx.Node
    call: fx.Node | None
    """The call of the region that it lies in."""
    tokens: slice
    """Which of its keys are the site's tokens."""

    @property
    def operands(self) -> list[fx.Node]:
        """q, k, v and, where there is one, the mask."""
        mask = self.node.args[3] if len(self.node.args) > 3 else self.node.kwargs.get("attn_mask")
        return [node for node in (*self.node.args[:3], mask) if isinstance(node, fx.Node)]

    @property
    def scale(self) -> float | None:
        return self.node.kwargs.get("scale")  # type: ignore[return-value]


@dataclass(frozen=True)
class TokenSite:
    """A site of which a PARTIAL step computes some tokens."""

    name: str
    place: Place
    work: Work
    axes: dict[fx.Node, int]
    """The axis of the tokens in each of the work's results."""
    attention: Attention | None


def token_sites(values: Mapping[fx.Node, Site], watched: Site, tokens: Tokens) -> tuple[dict[str, TokenSite], list[Rejected]]:
    """The sites that work on each token for itself, in order, and why the others are reused.

    `values`: the node that stands for each site's output in what follows. Raises NoSiteError where no site does.
    """
    order = layers(site.name for site in values.values())
    sites: dict[str, TokenSite] = {}
    reused: list[Rejected] = []
    for site in values.values():
        analysed = _token_site(site, values, order, watched, tokens)
        if isinstance(analysed, TokenSite):
            sites[site.name] = analysed
        else:
            reused.append(Rejected(site.name, analysed))
    if not sites:
        listing = "\n".join(f"  {where}: {why}" for where, why in reused)
        raise NoSiteError(
            "no site works on each token for itself, so a PARTIAL step would compute nothing; "
            f"choose granularity='module', or a method without tokens:\n{listing}"
        )
    return sites, reused


def _token_site(
    site: Site, values: Mapping[fx.Node, Site], order: Mapping[str, tuple[int, int]], watched: Site, tokens: Tokens
) -> TokenSite | str:
    if len(shape(site.I)) != 3 or shape(site.I)[:2] != shape(site.output)[:2]:
        return f"input {shape(site.I)} and output {shape(site.output)} are not rows of the same tokens"
    if site.base is not None:
        return "its output is what a whole block adds to the stream"
    if site.name not in order:
        return "lies in no block"
    count = shape(site.I)[1]
    work = work_of(site)
    axes = token_axes(work, count)
    if isinstance(axes, str):
        return axes
    attention = None
    if tokens.score != "random":
        before = [earlier for earlier in _on_stream(site, values) if block_of(earlier.name) == block_of(site.name)]
        attention = next((node for node in map(attention_of, before) if node is not None), None)
        if attention is None:
            return f"no attention of its {count} tokens to themselves before it in {block_of(site.name)} could score them"
    grid = tokens.grid_of(count) if count == shape(watched.I)[1] else None
    return TokenSite(site.name, Place(*order[site.name], count, grid), work, axes, attention)


def last_stream(values: Mapping[fx.Node, Site], watched: Site) -> fx.Node:
    """The latent's stream as it leaves the last block."""
    node, last = list(values.items())[-1]
    return without_text(node if last.joined is None else last.joined, watched.I)


def work_of(site: Site) -> Work:
    """The operations between a site's input and output."""
    output, call, index = site.output, None, None
    if output.target is operator.getitem and isinstance(source := output.args[0], fx.Node) and source.op == "call_module":
        call, index = source, output.args[1]
    elif output.op == "call_module":
        call = output
    nodes: Sequence[fx.Node] = list(output.graph.nodes)
    sources = {site.I}
    if call is not None:
        assert call.graph.owning_module is not None
        region = call.graph.owning_module.get_submodule(str(call.target))
        assert isinstance(region, fx.GraphModule)
        nodes = list(region.graph.nodes)
        placeholders = [node for node in nodes if node.op == "placeholder"]
        sources = {node for node, argument in zip(placeholders, call.args, strict=True) if argument is site.I}
        results: Any = next(node for node in nodes if node.op == "output").args[0]
        output = results if index is None else results[index]
    above = {output}
    for node in reversed(nodes):
        if node in above and node not in sources:
            above.update(node.all_input_nodes)
    below = set(sources)
    for node in nodes:
        if node in above and any(source in below for source in node.all_input_nodes):
            below.add(node)
    return Work([node for node in nodes if node in below and node not in sources], sources, output, call)


def _on_stream(site: Site, values: Mapping[fx.Node, Site]) -> list[Site]:
    """The sites whose output is part of what the site's input is made from, without the work of others between, in order."""
    seen: set[fx.Node] = set()
    pending = [site.I]
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            pending.extend(() if node in values else node.all_input_nodes)
    return [earlier for node, earlier in values.items() if node in seen]


def attention_of(site: Site) -> Attention | None:
    """The first attention in a site's work, where its keys are the site's tokens, alone or among those of other streams."""
    work = work_of(site)
    node = next((node for node in work.nodes if node.target is ATTENTION), None)
    if node is None or len(shape(site.I)) != 3:
        return None
    q, k, v = node.args[:3]
    is_causal = node.args[5] if len(node.args) > 5 else node.kwargs.get("is_causal", False)
    if is_causal or len(shape(q)) != 4 or shape(q)[:2] != shape(k)[:2]:
        return None
    first = _first_token(v, {*work.nodes, *work.sources}, shape(site.I)[1])
    return None if first is None else Attention(node, work.call, slice(first, first + shape(site.I)[1]))


def _first_token(v: Any, work: set[fx.Node], count: int) -> int | None:
    """Which of the rows of v is the site's first token: v is made from its input alone, or joined from several along the tokens."""
    node = v
    while isinstance(node, fx.Node) and node in work and (is_view(node) or node.target in CASTS):
        node = node.args[0]
    if node not in work:
        return None
    if node.target is not aten.cat.default:
        return 0 if shape(v)[-2] == count else None
    parts, axis = node.args[0], node.args[1] if len(node.args) > 1 else 0
    joined = [part for part in parts if part in work]
    if len(joined) != 1 or shape(joined[0])[axis] != count:
        return None
    return sum(shape(part)[axis] for part in parts[: parts.index(joined[0])])
