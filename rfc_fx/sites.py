"""Find the sites: residual branches, by structure alone.

An add is a *residual add* `x + v` when v was computed from the stream that x carries and something heavy lies between.
The branch is what one meets going back from v without passing another residual add or anything x was made from.
O is the last heavy result of the branch, I what its first heavy operations read. No name of a model or module is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, fx

from rfc_fx.capture import Captured
from rfc_fx.errors import NoSiteError
from rfc_fx.ops import CASTS, VIEWS, aten, is_heavy, is_view, shape, value

Granularity = Literal["module", "block", "stack"]

_ADDS = frozenset({aten.add.Tensor, aten.add_.Tensor})


@dataclass(frozen=True)
class Site:
    """A residual branch: `output` is estimated from its past and from `I`.

    With `base`, the remembered O is `output - base` (a block's residual); without, O is `output` itself.
    """

    name: str
    I: fx.Node
    output: fx.Node
    base: fx.Node | None = None


class Rejected(NamedTuple):
    """A branch that is not a site, and why."""

    where: str
    why: str


class Found(NamedTuple):
    """The sites of a graph in execution order, and the branches that were passed over."""

    sites: list[Site]
    rejected: list[Rejected]
    granularity: Granularity = "module"


class _Residual(NamedTuple):
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


class _Ancestry:
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


def find_sites(captured: Captured, granularity: Granularity = "module", *, needs_input: bool = True) -> Found:
    """Return the sites of the graph, one per residual branch and stream, block and stream, or for the whole stack.

    `needs_input`: whether the estimator reads I; if not, what feeds only the I of others is not needed.
    Raises NoSiteError listing every rejected branch when there is none.
    """
    graph = captured.graph
    ancestry = _Ancestry(graph)
    rejected: list[Rejected] = []
    residuals = []
    latents = [node for node in graph.nodes if node.op == "placeholder" and node.name in captured.latents]
    for residual in _residual_adds(graph, ancestry):
        if any(ancestry.before(latent, residual.add) for latent in latents):
            residuals.append(residual)
        else:
            rejected.append(Rejected(module_path(residual.add), "does not depend on the latent"))
    for inner, outer in _nested(residuals, latents, ancestry):
        residuals.remove(inner)
        rejected.append(Rejected(module_path(inner.add), f"lies inside the branch that ends at {outer.add.name}"))
    while empty := [residual for residual in residuals if not any(map(is_heavy, _branch(residual, residuals, ancestry)))]:
        residuals = [residual for residual in residuals if residual not in empty]
        rejected += [Rejected(module_path(r.add), "no heavy operation between the stream and the add") for r in empty]
    by_add: dict[fx.Node, Site] = {}
    for residual in (*residuals, *_transitions(residuals, ancestry)):
        found = _site(residual, residuals, ancestry)
        if isinstance(found, Rejected):
            rejected.append(found)
        elif any(found.output is site.output for site in by_add.values()):
            rejected.append(Rejected(found.name, "its output is another site's output"))
        else:
            by_add[residual.add] = replace(found, name=_unused(found, {site.name for site in by_add.values()}))
    sites = list(by_add.values())
    if granularity == "block":
        sites = list(_blocks(residuals, by_add))
    elif granularity == "stack":
        sites = list(_stack(residuals, by_add, captured, ancestry))
    sites.sort(key=lambda site: ancestry.index[site.output])
    needed = needed_sites(graph, sites, needs_input)
    rejected += [Rejected(site.name, "no estimated step needs its output") for site in sites if site not in needed]
    sites = [site for site in sites if site in needed]
    if not sites:
        listing = "\n".join(f"  {where}: {why}" for where, why in rejected) or "  the graph has no residual add"
        raise NoSiteError(
            f"{type(captured.model).__name__}: no site found in {len(ancestry.index)} nodes, so nothing could be cached:\n{listing}"
        )
    return Found(sites, rejected, granularity)


def needed_sites(graph: fx.Graph, sites: Sequence[Site], needs_input: bool) -> list[Site]:
    """The sites whose estimate reaches the model's output when every site is estimated.

    Joint attention makes the difference: once it is skipped, a text stream that only feeds attention feeds nothing.
    """
    at = {site.output: site for site in sites}
    seen: set[fx.Node] = set()
    pending = [node for node in graph.nodes if node.op == "output"]
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            pending.extend(reads(at[node], needs_input) if node in at else node.all_input_nodes)
    return [site for site in sites if site.output in seen]


def reads(site: Site, needs_input: bool = True) -> list[fx.Node]:
    """What an estimate of the site is made from, besides its state."""
    return [site.I] * needs_input + ([] if site.base is None else [site.base])


def watched(sites: Sequence[Site], captured: Captured) -> Site:
    """The first site whose input depends on the latent: what a data-driven schedule watches (methods: first module only)."""
    ancestry = _Ancestry(captured.graph)
    latents = [node for node in captured.graph.nodes if node.op == "placeholder" and node.name in captured.latents]
    outputs = [site.output for site in sites]
    for site in sorted(sites, key=lambda s: ancestry.index[s.I]):
        if any(site.I is latent or ancestry.before(latent, site.I) for latent in latents) and not any(
            ancestry.before(o, site.I) for o in outputs
        ):
            return site
    raise NoSiteError(f"{type(captured.model).__name__}: no site depends on the latent {', '.join(captured.latents)}")


def _residual_adds(graph: fx.Graph, ancestry: _Ancestry) -> Iterator[_Residual]:
    heavy_bits = sum(1 << ancestry.index[node] for node in graph.nodes if is_heavy(node))
    after: dict[fx.Node, int] = {node: 0 for node in graph.nodes}  # descendants, filled backwards
    for node in reversed(list(graph.nodes)):
        for source in node.all_input_nodes:
            after[source] |= after[node] | (1 << ancestry.index[node])
    known: dict[fx.Node, _Residual] = {}
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
                    known[node] = _Residual(node, start, root, v)
                    yield known[node]
                    break
                root = known[root].x if root in known else None
            if node in known:
                break


def _nested(residuals: Sequence[_Residual], latents: Sequence[fx.Node], ancestry: _Ancestry) -> list[tuple[_Residual, _Residual]]:
    """Residual adds inside a branch of the same block, behind its first heavy operation: the last step of a feed-forward, say."""
    heavy = [node for node in ancestry.index if is_heavy(node)]

    def upto(early: fx.Node, late: fx.Node) -> bool:
        return early is late or ancestry.before(early, late)

    def inside(inner: _Residual, outer: _Residual) -> bool:
        if outer is inner or not _block(outer.add) or _block(outer.add) != _block(inner.add):
            return False
        if not upto(inner.add, outer.v) or upto(inner.add, outer.root) or not any(upto(latent, outer.root) for latent in latents):
            return False
        return any(ancestry.before(outer.root, h) and upto(h, inner.root) for h in heavy)

    pairs = ((inner, next((outer for outer in residuals if inside(inner, outer)), None)) for inner in residuals)
    return [(inner, outer) for inner, outer in pairs if outer is not None]


def _transitions(residuals: Sequence[_Residual], ancestry: _Ancestry) -> Iterator[_Residual]:
    """Where a stream ends and its next part is heavy work on it: a U-shaped skip that is joined and projected, with no add around it.

    As residuals whose add, and v, is the first node of the next part.
    """
    adds = [residual.add for residual in residuals]
    for start in dict.fromkeys(residual.x for residual in residuals if residual.x not in adds):
        before = [add for add in adds if ancestry.before(add, start)]
        if before:
            last = max(before, key=ancestry.index.__getitem__)
            step = _Residual(start, last, last, start)
            if any(map(is_heavy, _branch(step, residuals, ancestry))):
                yield step


def _behind_casts(node: fx.Node) -> fx.Node:
    while (node.target in CASTS or (node.target in VIEWS and shape(node) == shape(node.args[0]))) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def _streams(residual: _Residual, residuals: Sequence[_Residual]) -> set[fx.Node]:
    streams = {r.add for r in residuals} | {r.x for r in residuals}
    return streams - {residual.v} if residual.v is residual.add else streams


def _branch(residual: _Residual, residuals: Sequence[_Residual], ancestry: _Ancestry) -> set[fx.Node]:
    """What v is made from, back to the streams and to what the root is made from."""
    streams = _streams(residual, residuals)
    region: set[fx.Node] = set()
    pending = [residual.v]
    while pending:
        node = pending.pop()
        if node in region or node in streams or node is residual.root or ancestry.before(node, residual.root):
            continue
        region.add(node)
        pending.extend(node.all_input_nodes)
    return region


def _site(residual: _Residual, residuals: Sequence[_Residual], ancestry: _Ancestry) -> Site | Rejected:
    """Delimit one branch: its region, the heavy operations in it that the stream feeds, and from them I and O."""
    streams = _streams(residual, residuals)
    region = _branch(residual, residuals, ancestry)
    order = sorted(region, key=ancestry.index.__getitem__)
    fed: dict[fx.Node, set[fx.Node]] = {}  # node -> the streams it was computed from, inside the region
    for node in order:
        sources = {s for s in node.all_input_nodes if s in streams or s is residual.root}
        sources |= {s for i in node.all_input_nodes for s in fed.get(i, ())}
        if sources:
            fed[node] = sources
    heavy = [node for node in order if node in fed and is_heavy(node)]
    where = module_path(residual.add)
    if not heavy:
        return Rejected(where, "no heavy operation between the stream and the add")
    first = [h for h in heavy if not any(ancestry.before(other, h) for other in heavy)]
    inputs = [a for h in first for a in h.all_input_nodes if a in fed or a in streams or a is residual.root]
    inputs = sorted(dict.fromkeys(inputs), key=ancestry.index.__getitem__)
    own = [a for a in inputs if a is residual.root or residual.root in fed.get(a, ())] or [
        a for a in inputs if a is residual.x or residual.x in fed.get(a, ())
    ]
    if not (own or inputs):
        return Rejected(where, f"nothing that its first heavy operation {first[0].name} reads comes from a stream")
    candidates = own or inputs  # not its own: a hint from a control stream, a feed-forward around attention
    O = _last_heavy(residual.v, heavy, ancestry, region)
    I = next((candidate for candidate in candidates if shape(candidate)[:1] == shape(O)[:1]), candidates[0])
    I = _with_samples_of(O, I)
    O = _with_rank_of(I, O, residual.v)
    name = _common(module_path(first[0]), module_path(O)) or O.name
    if len(shape(I)) != len(shape(O)):
        return Rejected(name, f"input {shape(I)} and output {shape(O)} differ in rank")
    if shape(I)[:1] != shape(O)[:1]:
        return Rejected(name, f"input {shape(I)} and output {shape(O)} differ in their first axis, the samples")
    if not (_is_float(I) and _is_float(O)):
        return Rejected(name, "input or output is not a floating-point tensor")
    return Site(name, I, O)


def _last_heavy(v: fx.Node, heavy: Sequence[fx.Node], ancestry: _Ancestry, region: set[fx.Node]) -> fx.Node:
    """Go back from v as long as only one operand carries heavy results; stop at a heavy operation or at a fork."""
    node = v
    while not is_heavy(node):
        carrying = [i for i in node.all_input_nodes if i in region and (i in heavy or any(ancestry.before(h, i) for h in heavy))]
        if len(carrying) != 1 or not isinstance(value(carrying[0]), Tensor):
            break
        node = carrying[0]
    return node


def _with_samples_of(O: fx.Node, I: fx.Node) -> fx.Node:
    """Go back from I through reshapes to as many samples as O has: convolutions of a video work on (samples x frames, ...)."""
    node = I
    while shape(node)[:1] != shape(O)[:1] and is_view(node) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node if shape(node)[:1] == shape(O)[:1] else I


def _with_rank_of(I: fx.Node, O: fx.Node, v: fx.Node) -> fx.Node:
    """Go forward from O past reshapes to a result of the rank of I: experts of a mixture work on (samples x tokens, channels)."""
    node = O
    while len(shape(node)) != len(shape(I)) and node is not v and len(node.users) == 1:
        node = next(iter(node.users))
    return node if len(shape(node)) == len(shape(I)) and _is_float(node) else O


def _is_float(node: fx.Node) -> bool:
    tensor = value(node)
    return isinstance(tensor, Tensor) and tensor.is_floating_point()


# ---- coarser sites: the residual of a whole block, or of all blocks ------------------------------------------------


def _blocks(residuals: Sequence[_Residual], by_add: dict[fx.Node, Site]) -> Iterator[Site]:
    """One site per block and stream: from the stream before the block's first residual add to the one after its last; transitions stay."""
    adds = {residual.add for residual in residuals}
    yield from (site for add, site in by_add.items() if add not in adds)
    chains: list[list[_Residual]] = []
    for residual in residuals:
        if residual.add not in by_add:
            continue
        for chain in chains:
            if chain[-1].add is residual.x and _block(residual.add) == _block(chain[-1].add):
                chain.append(residual)
                break
        else:
            chains.append([residual])
    names: set[str] = set()
    for chain in chains:
        first, last = chain[0], chain[-1]
        name = _block(first.add) or by_add[first.add].name
        name = name if name not in names else f"{name}:{by_add[first.add].name.rsplit('.', 1)[-1]}"
        names.add(name)
        yield Site(name, _in_layout_of(last.add, by_add[first.add].I, first.x), last.add, base=first.x)


def _stack(residuals: Sequence[_Residual], by_add: dict[fx.Node, Site], captured: Captured, ancestry: _Ancestry) -> Iterator[Site]:
    """One site for everything between the latent's first residual add and the last residual add."""
    known = [residual for residual in residuals if residual.add in by_add]
    if not known:
        return
    start = watched(list(by_add.values()), captured)
    base = next(residual.x for residual in known if by_add[residual.add] is start)
    end = known[-1].add
    while shape(end) != shape(base) and len(end.users) == 1:  # cut the text tokens off, where streams were joined
        after = next(iter(end.users))
        if not (is_view(after) or after.target in CASTS) or not shape(after):
            break
        end = after
    alike = [residual.add for residual in known if shape(residual.add) == shape(base)]
    if shape(end) != shape(base) and alike:  # the last branch works on pixels, or on another stream: the stack ends before it
        end = alike[-1]
        yield from (site for add, site in by_add.items() if ancestry.index[add] > ancestry.index[end])
    yield Site("stack", _in_layout_of(end, start.I, base), end, base=base if shape(end) == shape(base) else None)


def _in_layout_of(output: fx.Node, *candidates: fx.Node) -> fx.Node:
    """The first candidate for I with as many samples in its first axis as the output: some streams are (tokens, samples, channels)."""
    return next((I for I in candidates if shape(I)[:1] == shape(output)[:1]), candidates[0])


# ---- names ---------------------------------------------------------------------------------------------------------


def module_path(node: fx.Node) -> str:
    """Path of the module whose forward made a node, e.g. `transformer_blocks.0.attn1.to_out.0`."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] for entry in stack.values()]
    return str(paths[-1]) if paths else ""


def block_of(path: str) -> str:
    """Path up to the first index: `blocks.3.attn` lies in `blocks.3`; "" outside of all blocks."""
    parts = path.split(".")
    index = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return "" if index is None else ".".join(parts[: index + 1])


def _block(node: fx.Node) -> str:
    return block_of(module_path(node))


def _common(a: str, b: str) -> str:
    parts = []
    for left, right in zip(a.split("."), b.split("."), strict=False):
        if left != right:
            break
        parts.append(left)
    return ".".join(parts) or b


def _unused(site: Site, taken: set[str]) -> str:
    """A name no other site has: joint attention has one site per stream, told apart by their last module."""
    if site.name not in taken:
        return site.name
    longer = module_path(site.output)
    return longer if longer not in taken else f"{longer}#{site.output.name}"


def dtype_of(node: fx.Node) -> torch.dtype:
    """Dtype of a node's tensor."""
    return value(node).dtype  # type: ignore[no-any-return]
