"""Branch: the nodes of one residual branch, and from them the input I and the output O of its site."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, fx

from rfc_fx.ir.ops import closure, is_heavy, is_view, shape, value
from rfc_fx.sites.residual import Ancestry, Rejected, Residual, Site, module_path


def _streams(residual: Residual, residuals: Sequence[Residual]) -> set[fx.Node]:
    streams = {r.add for r in residuals} | {r.x for r in residuals}
    return streams - {residual.v} if residual.v is residual.add else streams


def branch_of(residual: Residual, residuals: Sequence[Residual], ancestry: Ancestry) -> set[fx.Node]:
    """What v is made from, back to the streams and to what the root is made from."""
    streams = _streams(residual, residuals)
    stop = streams | {residual.root}
    return closure([residual.v], lambda node: node not in stop and not ancestry.before(node, residual.root))


def site_of(residual: Residual, residuals: Sequence[Residual], ancestry: Ancestry) -> Site | Rejected:
    """Delimit one branch: its region, the heavy operations in it that the stream feeds, and from them I and O."""
    streams = _streams(residual, residuals)
    region = branch_of(residual, residuals, ancestry)
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
    leading = [h for h in heavy if not any(ancestry.before(other, h) for other in heavy)]
    inputs = [a for h in leading for a in h.all_input_nodes if a in fed or a in streams or a is residual.root]
    inputs = sorted(dict.fromkeys(inputs), key=ancestry.index.__getitem__)
    stream_inputs = [a for a in inputs if a is residual.root or residual.root in fed.get(a, ())] or [
        a for a in inputs if a is residual.x or residual.x in fed.get(a, ())
    ]
    if not (stream_inputs or inputs):
        return Rejected(where, f"nothing that its first heavy operation {leading[0].name} reads comes from a stream")
    candidates = stream_inputs or inputs  # not its own: a hint from a control stream, a feed-forward around attention
    O = _last_heavy(residual.v, heavy, ancestry, region)
    I = next((candidate for candidate in candidates if shape(candidate)[:1] == shape(O)[:1]), candidates[0])
    I = _with_samples_of(O, I)
    O = _with_rank_of(I, O, residual.v)
    name = _common(module_path(leading[0]), module_path(O)) or O.name
    if len(shape(I)) != len(shape(O)):
        return Rejected(name, f"input {shape(I)} and output {shape(O)} differ in rank")
    if shape(I)[:1] != shape(O)[:1]:
        return Rejected(name, f"input {shape(I)} and output {shape(O)} differ in their first axis, the samples")
    if not (_is_float(I) and _is_float(O)):
        return Rejected(name, "input or output is not a floating-point tensor")
    return Site(name, I, O)


def _last_heavy(v: fx.Node, heavy: Sequence[fx.Node], ancestry: Ancestry, region: set[fx.Node]) -> fx.Node:
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


def _common(a: str, b: str) -> str:
    parts = []
    for part_a, part_b in zip(a.split("."), b.split("."), strict=False):
        if part_a != part_b:
            break
        parts.append(part_a)
    return ".".join(parts) or b
