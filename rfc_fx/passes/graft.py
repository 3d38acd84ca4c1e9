"""Graft: a predictor's operations become part of the guarded graph, as the estimate of the site that it stands in for (DisCa).

The model is captured once more as a skipped step runs it, the predictor in the place of its blocks. What of that graph is in the guarded
graph already (the embedding, conditioning) is found by its value number; only the rest is copied. What follows the blocks has to be there:
so ESTIMATE is proven to be the model as it ran with the predictor, operation by operation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn

from rfc.eager.predictor import skipping
from rfc.predictor import Predictor, PredictorError
from rfc_fx.capture.export import MODEL, Captured, capture
from rfc_fx.errors import PredictorMismatchError
from rfc_fx.ir.ops import closure, recall, select, shape, value
from rfc_fx.passes.guard import Guarded
from rfc_fx.passes.outline import CodeLater, graph_module
from rfc_fx.passes.pair_complex import pair_complex
from rfc_fx.sites.residual import Site

PAST = "past_stream"
"""The argument of a skipped step that the cache comes in by."""


@dataclass(frozen=True)
class Skipped:
    """The model as a skipped step runs it; its arguments but for the cache are those of the model's own graph."""

    captured: Captured
    predictor: nn.Module

    @property
    def results(self) -> list[fx.Node]:
        """The forecast of the stream behind the blocks, then what the model returns."""
        (output,) = (node for node in self.captured.graph.nodes if node.op == "output")
        return list(output.args[0])


class _Skipping(nn.Module):
    """A model whose forward is a skipped step."""

    def __init__(self, model: nn.Module, predictor: Predictor) -> None:
        super().__init__()
        self.model, self.predictor = model, predictor

    def forward(self, past_stream: Tensor, **arguments: Any) -> tuple[Tensor, Any]:
        found: list[Tensor] = []
        with skipping(self.model, self.predictor, lambda: past_stream, found.append):
            output = self.model(**arguments)
        return found[0], output


def capture_skipped(captured: Captured, predictor: Predictor, arguments: Mapping[str, Any], sites: list[Site]) -> Skipped:
    """Capture a skipped step; PredictorMismatchError where the predictor cannot stand in for what the sites are."""
    name = type(captured.model).__name__
    if len(sites) != 1:
        raise PredictorMismatchError(
            f"DisCa: {name} has {len(sites)} streams to cache ({', '.join(site.name for site in sites[:3])}), a predictor forecasts one; "
            "use a method without a predictor (rfc.TaylorSeerLite)"
        )
    like = value(sites[0].output)
    cache = torch.zeros(like.shape, dtype=like.dtype, device=like.device)
    try:
        found = pair_complex(capture(_Skipping(captured.model, predictor), {PAST: cache, **arguments}))
    except PredictorError as error:
        raise PredictorMismatchError(str(error)) from error
    forecast = next(node for node in found.graph.nodes if node.op == "output").args[0][0]
    if shape(forecast) != shape(sites[0].output):
        raise PredictorMismatchError(
            f"DisCa: {name}: the predictor gives a stream of shape {shape(forecast)}, what leaves the blocks has {shape(sites[0].output)}; "
            "it cannot stand in for them"
        )
    return Skipped(found, predictor)


def graft(guarded: Guarded, skipped: Skipped) -> Guarded:
    """Put a skipped step into the guarded graph: its forecast becomes the estimate of the one site.

    PredictorMismatchError unless the guarded graph goes on behind its guard as the skipped step does behind the forecast.
    """
    captured = guarded.outlined.captured
    work = _Graft(captured, skipped)
    env: dict[fx.Node, fx.Node] = {}
    for node in guarded.module.graph.nodes:
        if node.target is select:
            forecast = work.forecast(f"{node.kwargs['site']}.O")
            env[node] = guard = work.graph.node_copy(node, env.__getitem__)
            guard.kwargs = {**guard.kwargs, "forecast": forecast}
        else:
            env[node] = work.graph.node_copy(node, env.__getitem__)
        if node.op == "output":
            work.check(guard, list(env[node].args[0]))  # type: ignore[arg-type]
        elif not (node.op == "placeholder" and node.name == "phase"):
            work.note(env[node])
    captured = replace(captured, constants=captured.constants | work.constants)
    return replace(
        guarded,
        outlined=replace(guarded.outlined, captured=captured),
        module=graph_module(captured, work.graph, captured.constants, guarded.outlined.regions, "Guarded", CodeLater),
        sites=[site.moved(env) for site in guarded.sites],
        watched=guarded.watched.moved(env),
    )


class _Graft:
    """Value numbers of the guarded graph and of the skipped step: `note` every node, `forecast` at the site, `check` at the end."""

    def __init__(self, captured: Captured, skipped: Skipped) -> None:
        self.graph, self.captured, self.skipped = fx.Graph(), captured, skipped
        self._positions = {name: position for position, name in skipped.captured.inputs.items()}
        self.constants: dict[str, Tensor] = {}
        """Constants of the skipped step that the model's graph has not."""
        self._first: dict[str, fx.Node] = {}
        self._same: dict[fx.Node, fx.Node] = {}
        """Node of the guarded graph -> the first of equal value."""
        self._now: dict[fx.Node, fx.Node] = {}
        """Node of the skipped step -> its place in the guarded graph."""

    def note(self, node: fx.Node) -> None:
        """Take in a node of the guarded graph; a guard, which reads the phase, has a value of its own."""
        is_known = all(source in self._same for source in node.all_input_nodes)
        self._same[node] = self._first.setdefault(self._key(node, self._same), node) if is_known else node

    def forecast(self, slot: str) -> fx.Node:
        """Copy what the forecast is made from; returns the forecast."""
        forecast = self.skipped.results[0]
        needed = closure([forecast])
        for node in self.skipped.captured.graph.nodes:
            if node in needed:
                self._now[node] = self._found(node) or self._copy(node, slot)
        return self._now[forecast]

    def check(self, guard: fx.Node, outputs: list[Any]) -> None:
        """PredictorMismatchError unless the guarded graph goes on behind its guard as the skipped step does behind the forecast."""
        forecast, *results = self.skipped.results
        self._now[forecast] = self._same.get(guard, guard)
        for node in self.skipped.captured.graph.nodes:
            if node not in self._now and node.op != "output" and (found := self._found(node)) is not None:
                self._now[node] = found
        for result, output in zip(results, outputs, strict=True):
            if isinstance(output, fx.Node) and self._now.get(result) is not self._same[output]:
                raise PredictorMismatchError(
                    f"DisCa: {type(self.captured.model).__name__}: what follows the blocks is computed otherwise when a predictor stands "
                    "in for them, so a skipped step would not be the model's; use a method without a predictor (rfc.TaylorSeerLite)"
                )

    def _found(self, node: fx.Node) -> fx.Node | None:
        """What has the value already; None where nothing has."""
        if any(source not in self._now for source in node.all_input_nodes) or (node.op == "placeholder" and self._place(node) is None):
            return None
        return self._first.get(self._key(node, self._now))

    def _copy(self, node: fx.Node, slot: str) -> fx.Node:
        if node.op == "placeholder":
            made = self.graph.call_function(recall, (), {"slot": slot})
            made.meta = {"val": value(node)}
            self._same[made] = made
            return made
        made = self.graph.node_copy(node, self._now.__getitem__)
        if node.op == "get_attr":
            made.target = self._target(node)
        self._same[made] = self._first.setdefault(self._key(made, self._same), made)
        return made

    def _place(self, node: fx.Node) -> str | None:
        """The placeholder of the model's graph that is the same argument; None for the cache."""
        position = self._positions[node.name]
        return None if position == 0 else self.captured.inputs[position - 1]

    def _target(self, node: fx.Node) -> str:
        """What the guarded graph calls a weight or constant of the skipped step."""
        target, constants = str(node.target), self.skipped.captured.constants
        if target not in constants:
            return target.removeprefix(f"{MODEL}.")  # the skipped step's model holds the model, and the predictor beside it
        known = self.captured.constants | self.constants
        found = next((name for name, tensor in known.items() if _equal(tensor, constants[target])), None)
        if found is None:
            found = f"constant_{len(known)}"
            self.constants[found] = constants[target]
        return found

    def _key(self, node: fx.Node, numbers: Mapping[fx.Node, fx.Node]) -> str:
        is_own = numbers is self._same
        if node.op == "placeholder":
            return f"placeholder {node.name if is_own else self._place(node)}"
        if node.op == "get_attr":
            target = str(node.target) if is_own else self._target(node)
            if target in self.captured.constants or target in self.constants:
                return f"constant {target}"
            owner = {MODEL: self.captured.model, "predictor": self.skipped.predictor}
            root, _, path = target.partition(".")
            return f"weight {id(attrgetter(path)(owner[root]))}"
        args = fx.node.map_arg((node.args, node.kwargs), lambda source: _Named(numbers[source].name))
        return f"{node.op} {node.target} {args}"


class _Named(str):
    """The name of a node, printed unlike any constant."""

    def __repr__(self) -> str:
        return f"%{self}"


def _equal(a: Tensor, b: Tensor) -> bool:
    if a is b:
        return True
    alike = a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and not a.is_meta
    return alike and bool(torch.equal(a, b))
