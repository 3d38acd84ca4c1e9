"""Token-wise: what a FULL step leaves for the choice of tokens, and a site's work on the chosen ones alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from rfc.estimators.base import Estimator
from rfc.state import Clock, SlotSpec
from rfc.token_selection import Operands, Score, Tokens, aged, renewed, take, token_score
from rfc_fx.ir.ops import aten, spec_of, value
from rfc_fx.ir.program import CLOCK_SPECS
from rfc_fx.passes.builder import Builder
from rfc_fx.sites.token_axes import SIZED, Work
from rfc_fx.sites.token_wise import Attention, TokenSite


def score(build: Builder, where: Callable[[fx.Node], fx.Node], attention: Attention, kind: Score) -> fx.Node:
    """The normalised score of the tokens that an attention works on; `where` its operations are in the program."""
    operands = [_contiguous(build, where(node)) for node in attention.operands]
    specs = [spec_of(node) for node in attention.operands]
    scale, tokens = attention.scale, attention.tokens

    def scored(*tensors: Tensor) -> Tensor:
        return token_score(kind, Operands(*tensors), scale, tokens)

    return build.inline(("score", kind, scale, tokens.start, tokens.stop), scored, specs, operands)[0]


def _contiguous(build: Builder, node: fx.Node) -> fx.Node:
    """The same in memory as functions are traced for."""
    if value(node).is_contiguous():
        return node
    result = build.graph.call_function(aten.contiguous.default, (node,))
    result.meta = {"val": value(node).contiguous()}
    return result


def no_age(build: Builder, I: fx.Node, spec: SlotSpec) -> fx.Node:
    """The age of every token after a full step."""
    return build.inline(("no age", spec), lambda I: I.new_zeros(spec.shape, dtype=spec.dtype), [spec_of(I)], [I])[0]


def grown_older(build: Builder, age: fx.Node, spec: SlotSpec) -> fx.Node:
    """The age of every token after a step that computed none."""
    return build.inline(("aged",), lambda age: aged(age), [spec], [age])[0]


def computed(
    build: Builder, site: TokenSite, count: int, tokens: Tokens, estimator: Estimator, I: fx.Node, slots: dict[str, SlotSpec]
) -> tuple[dict[str, fx.Node], fx.Node]:
    """Compute the `count` tokens with the highest scores: the site's new state, of these slots, and its new ages."""
    kept, old = build.state(f"{site.name}.tokens"), build.state(site.name)
    kept_specs = [build.guarded.slots[f"{site.name}.tokens.{name}"] for name in kept]
    samples = kept_specs[0].shape[0]
    chosen_spec = SlotSpec((samples, count), torch.int64)

    def choose(*tensors: Tensor) -> Tensor:
        *held, period, k, N, n = tensors
        return tokens.choose(dict(zip(kept, held, strict=True)), site.place, count, period, Clock(k, N, n))

    given = [*kept.values(), build.number("period"), *build.clock()]
    (chosen,) = build.inline(
        ("choose", tokens, site.place, count, tuple(kept)), choose, [*kept_specs, *CLOCK_SPECS[:1], *CLOCK_SPECS], given
    )
    (rows,) = build.inline(("take",), take, [spec_of(I), chosen_spec], [I, chosen])
    rows.meta["val"] = value(I)[:, :count].contiguous()
    O_rows = work_on(build, site.work, site.axes, rows, count)

    def renew(*tensors: Tensor) -> list[Tensor]:
        held, (chosen, rows, O_rows, age), clock = tensors[: len(slots)], tensors[len(slots) : -3], tensors[-3:]
        new = renewed(estimator, dict(zip(slots, held, strict=True)), chosen, rows, O_rows, Clock(*clock))
        return [*(new[name] for name in slots), aged(age, chosen)]

    specs = [*slots.values(), chosen_spec, spec_of(rows), spec_of(O_rows), kept_specs[list(kept).index("age")], *CLOCK_SPECS]
    inputs = [*old.values(), chosen, rows, _contiguous(build, O_rows), kept["age"], *build.clock()]
    *new, age = build.inline(("renew", estimator, tuple(slots)), renew, specs, inputs)
    return dict(zip(slots, new, strict=True)), age


def work_on(build: Builder, work: Work, axes: dict[fx.Node, int], rows: fx.Node, count: int) -> fx.Node:
    """Copy a site's work for `count` rows of its input in the place of all; what does not depend on the input is as it is."""
    env = dict.fromkeys(work.sources, rows)

    def operand(node: fx.Node) -> fx.Node:
        if node not in env:
            if work.call is None:
                env[node] = build.get(node)
            elif node.op == "placeholder":
                env[node] = build.get(work.argument(node))
            else:
                env[node] = build.graph.node_copy(node, operand)
        return env[node]

    for node in work.nodes:
        copy = build.graph.node_copy(node, operand)
        if node.target in SIZED:
            sizes = [count if axis == axes[node] else length for axis, length in enumerate(value(node).shape)]
            copy.target, copy.args = aten.reshape.default, (copy.args[0], sizes)
        copy.meta = {**node.meta, "val": _result(copy)}
        env[node] = copy
    return env[work.output]


def _result(node: fx.Node) -> Any:
    """What the operation gives for the shapes of its operands."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
    assert callable(node.target)
    with torch.no_grad():
        return node.target(*args, **kwargs)
