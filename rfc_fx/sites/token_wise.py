"""Tokens: which sites work on each token for itself, and from which attention the scores of their tokens come. By structure alone."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch
from torch import fx

from rfc.granularity import block_of
from rfc.token_selection import Place, Tokens, layers
from rfc_fx.errors import NoSiteError
from rfc_fx.ir.ops import CASTS, VIEWS, aten, is_view, shape
from rfc_fx.sites.coarse import without_text
from rfc_fx.sites.residual import Rejected, Site

ATTENTION = aten.scaled_dot_product_attention.default


class Work(NamedTuple):
    """What a site's output is made of from its input, as single operations in order: those of its region, or of the graph itself."""

    nodes: list[fx.Node]
    sources: set[fx.Node]
    """What stands for I."""
    output: fx.Node
    call: fx.Node | None
    """The call of the region."""

    def given(self, placeholder: fx.Node) -> fx.Node:
        """What a placeholder of the region is called with."""
        assert self.call is not None
        places = [node for node in placeholder.graph.nodes if node.op == "placeholder"]
        node = self.call.args[places.index(placeholder)]
        assert isinstance(node, fx.Node)
        return node


class Attention(NamedTuple):
    """An attention that scores the tokens of a site."""

    node: fx.Node
    call: fx.Node | None
    """The call of the region that it lies in."""
    own: slice
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
    found: dict[str, TokenSite] = {}
    reused: list[Rejected] = []
    for site in values.values():
        made = _token_site(site, values, order, watched, tokens)
        if isinstance(made, TokenSite):
            found[site.name] = made
        else:
            reused.append(Rejected(site.name, made))
    if not found:
        listing = "\n".join(f"  {where}: {why}" for where, why in reused)
        raise NoSiteError(f"no site works on each token for itself, so a PARTIAL step would compute nothing:\n{listing}")
    return found, reused


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
    axes = _token_axes(work, count)
    if isinstance(axes, str):
        return axes
    attention = None
    if tokens.score != "random":
        before = [one for one in _on_stream(site, values) if block_of(one.name) == block_of(site.name)]
        attention = next((one for one in map(attention_of, before) if one is not None), None)
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
    output, call, place = site.output, None, None
    if output.target is operator.getitem and isinstance(source := output.args[0], fx.Node) and source.op == "call_module":
        call, place = source, output.args[1]
    elif output.op == "call_module":
        call = output
    nodes: Sequence[fx.Node] = list(output.graph.nodes)
    sources = {site.I}
    if call is not None:
        assert call.graph.owning_module is not None
        region = call.graph.owning_module.get_submodule(str(call.target))
        assert isinstance(region, fx.GraphModule)
        nodes = list(region.graph.nodes)
        places = [node for node in nodes if node.op == "placeholder"]
        sources = {node for node, given in zip(places, call.args, strict=True) if given is site.I}
        results: Any = next(node for node in nodes if node.op == "output").args[0]
        output = results if place is None else results[place]
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
    return [one for node, one in values.items() if node in seen]


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
    first = _first_own(v, {*work.nodes, *work.sources}, shape(site.I)[1])
    return None if first is None else Attention(node, work.call, slice(first, first + shape(site.I)[1]))


def _first_own(v: Any, own: set[fx.Node], count: int) -> int | None:
    """Which of the rows of v is the site's first token: v is made from its input alone, or joined from several along the tokens."""
    node = v
    while isinstance(node, fx.Node) and node in own and (is_view(node) or node.target in CASTS):
        node = node.args[0]
    if node not in own:
        return None
    if node.target is not aten.cat.default:
        return 0 if shape(v)[-2] == count else None
    parts, axis = node.args[0], node.args[1] if len(node.args) > 1 else 0
    mine = [part for part in parts if part in own]
    if len(mine) != 1 or shape(mine[0])[axis] != count:
        return None
    return sum(shape(part)[axis] for part in parts[: parts.index(mine[0])])


SIZED = frozenset({aten.view.default, aten.reshape.default, aten._unsafe_view.default})
"""Operations that name the shape of their result."""


_NORMALIZED = frozenset({aten.layer_norm.default, aten.rms_norm.default})


_SPLIT = frozenset({aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default})


_REDUCED = frozenset({aten.mean.dim, aten.sum.dim_IntList, aten.amax.default})


def _token_axes(work: Work, count: int) -> dict[fx.Node, int] | str:
    """The axis of the tokens in every result of the work; why not, where an operation mixes tokens or is not known not to."""
    if (meeting := next((node for node in work.nodes if node.target is ATTENTION), None)) is not None:
        return f"{meeting.name} is attention, in which every token meets others"
    axes = dict.fromkeys(work.sources, 1)
    for node in work.nodes:
        axis = _axis_after(node, axes)
        if axis is None:
            return f"{node.name} ({node.target}) is not known to work on each token for itself"
        axes[node] = axis
    return axes if axes.get(work.output) == 1 else f"{work.output.name} has its tokens in another axis than the input"


def _axis_after(node: fx.Node, axes: Mapping[fx.Node, int]) -> int | None:
    """Where the tokens are in a result, given where they are in its operands; None where they do not stay apart."""
    target, first = node.target, node.args[0]
    tags = getattr(target, "tags", ())
    if torch.Tag.pointwise in tags or target in CASTS:
        return _axis_of_pointwise(node, axes)
    if target is aten.cat.default:
        return _axis_of_cat(node, axes)
    if not isinstance(first, fx.Node) or first not in axes or any(one in axes for one in node.all_input_nodes if one is not first):
        return None
    axis, rank = axes[first], len(shape(first))
    if target is operator.getitem:
        return axis
    if target is aten.linear.default or (target is aten.matmul.default and len(shape(node.args[1])) == 2):
        return axis if axis < rank - 1 else None
    if target in _NORMALIZED:
        return axis if axis < rank - len(node.args[1]) else None  # type: ignore[arg-type]
    if target in _SPLIT:
        return axis if _axis(node, 2, rank) != axis else None
    if target is aten.slice.Tensor:
        return axis if _axis(node, 1, rank) != axis else None
    if target in _REDUCED:
        return _axis_of_reduction(node, axis, rank)
    if target in SIZED or target in VIEWS:
        return _axis_of_view(shape(first), axis, shape(node))
    return _axis_of_permutation(node, axis, rank)


def _axis(node: fx.Node, place: int, rank: int) -> int:
    given = node.args[place] if len(node.args) > place else node.kwargs.get("dim", 0)
    assert isinstance(given, int)
    return given % rank


def _axis_of_pointwise(node: fx.Node, axes: Mapping[fx.Node, int]) -> int | None:
    """Operands are lined up at their last axes; none from elsewhere may have an entry for each token."""
    ends = {len(shape(one)) - axes[one] for one in node.all_input_nodes if one in axes}
    end = ends.pop()
    others = [shape(one) for one in node.all_input_nodes if one not in axes]
    if ends or any(len(other) >= end and other[-end] != 1 for other in others):
        return None
    return len(shape(node)) - end


def _axis_of_cat(node: fx.Node, axes: Mapping[fx.Node, int]) -> int | None:
    parts = node.args[0]
    assert isinstance(parts, list | tuple)
    places = {axes.get(part, -1) for part in parts}  # type: ignore[arg-type]
    place = places.pop()
    return None if places or place < 0 or _axis(node, 1, len(shape(node))) == place else place


def _axis_of_reduction(node: fx.Node, axis: int, rank: int) -> int | None:
    given = node.args[1] if len(node.args) > 1 else None
    if not isinstance(given, list | tuple) or not given:
        return None
    reduced = {length % rank for length in given if isinstance(length, int)}
    keeps = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
    if axis in reduced:
        return None
    return axis if keeps else axis - sum(one < axis for one in reduced)


def _axis_of_view(before: Sequence[int], axis: int, after: Sequence[int]) -> int | None:
    """The axis with as many elements before it and as many in it."""
    ahead = prod(before[:axis])
    places = [i for i, length in enumerate(after) if length == before[axis] and prod(after[:i]) == ahead]
    return places[-1] if places else None


def _axis_of_permutation(node: fx.Node, axis: int, rank: int) -> int | None:
    if node.target is aten.transpose.int:
        pair = (_axis(node, 1, rank), _axis(node, 2, rank))
        return pair[1 - pair.index(axis)] if axis in pair else axis
    if node.target is aten.permute.default and isinstance(dims := node.args[1], Iterable):
        return [dim % rank for dim in dims].index(axis)  # type: ignore[operator]
    return None
