"""What is checked of one class: captured, exact, nothing heavy left in ESTIMATE, all granularities, hoisting, frames, FLOPs."""

from __future__ import annotations

import traceback
import warnings
from typing import Any, get_args

import torch
import torch._dynamo.testing
import torch.utils._pytree as pytree
from torch import fx

import rfc
import rfc_fx
from benchmarks.capturing import captured_once
from benchmarks.coverage.classes.spec import Spec, prediction
from benchmarks.coverage.rows import ClassCoverage, public
from rfc.granularity import GranularityName, block_of
from rfc.phase import ESTIMATE, FULL
from rfc_fx.passes.verify import heavy_outside_sites
from rfc_fx.sites.residual import module_path
from rfc_fx.tools.load import one_line

STEPS = 6


GRANULARITIES: tuple[GranularityName, ...] = get_args(GranularityName)


RUNNABLE = 1_200_000
"""Numbers of a latent at which a forward at the published width still takes no more than minutes on a CPU."""


def difference(a: Any, b: Any) -> float:
    """Largest absolute difference of two outputs."""
    return max(float((x - y).abs().max()) for x, y in zip(prediction(a), prediction(b), strict=True))


@captured_once()
def check(
    spec: Spec,
    *,
    meta: bool = True,
    compiles: bool = True,
    hoists: bool = True,
    granularities: tuple[GranularityName, ...] = GRANULARITIES,
    verbose: bool = False,
) -> ClassCoverage:
    """Run every check on one class; failures are in `errors`, one line each, with their tracebacks on the console if `verbose`."""
    row = ClassCoverage(spec.name)

    def attempt(what: str, function: Any) -> bool:
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                function()
        except Exception as error:
            row.errors.append(f"{what}: {type(error).__name__}: {public(one_line(error))}")
            if verbose:
                traceback.print_exc()
            return False
        return True

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = spec.model()
        arguments = spec.arguments(model)

    models: dict[str, rfc_fx.CachedModel] = {}
    skips = rfc.RFC(tau=float("inf"), warmup=2)

    def transform() -> None:
        models["module"] = rfc_fx.transform(model, rfc.RFC(tau=0.0), example_inputs=arguments)
        row.captured = True
        compiled = models["module"].compiled
        row.sites = [site.name for site in compiled.analysis.sites]
        row.rejected = [(where, why) for where, why in compiled.analysis.rejected]
        row.heavy_left = list(
            dict.fromkeys(module_path(node) for node in between_sites(models["module"], heavy_on_the_latent(models["module"])))
        )

    def full() -> None:
        cached = models["module"]
        row.full_difference = max(difference(cached(**call), model(**call)) for call in calls(spec, arguments, 3))
        if row.full_difference != 0:
            raise AssertionError(f"an all-full step differs from the model by {row.full_difference:.1e}")

    def estimate() -> None:
        cached = rfc_fx.transform(model, rfc.Method(estimator=rfc.RFE(order=2), schedule=rfc.Listed(full_steps=[0, 1])))
        expected = [cached(**arguments) for _ in range(2)][-1]
        row.estimate_difference = difference(cached(**arguments), expected)
        assert cached.stats.phases == [FULL.name, FULL.name, ESTIMATE.name], cached.stats.phases
        if row.estimate_difference > 1e-5:
            raise AssertionError(f"an estimate with unchanged inputs differs from full by {row.estimate_difference:.1e}")

    def granularity(name: GranularityName) -> Any:
        def run() -> None:
            cached = models.get(name) or rfc_fx.transform(model, skips, config=rfc_fx.Config(granularity=name))
            cached.method = skips
            with cached.generation():
                outputs = [prediction(cached(**call))[0] for call in calls(spec, arguments, 4)]
            assert cached.stats.phases == [FULL.name, FULL.name, ESTIMATE.name, ESTIMATE.name], cached.stats.phases
            assert all(bool(output.isfinite().all()) for output in outputs), "not finite"
            row.state_bytes[name] = cached.plan().state_bytes

        return run

    def hoisted() -> None:
        plain, ahead = (rfc_fx.transform(model, skips, config=rfc_fx.Config(hoist=hoist)) for hoist in (False, True))
        with ahead.generation(), plain.generation():
            worst = max(difference(ahead(**call), plain(**call)) for call in calls(spec, arguments, 4))
        assert worst == 0, f"with hoist=True the outputs differ by {worst:.1e}"

    def compiled() -> None:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
        cached, plain = rfc_fx.transform(model, skips), models["module"]
        step = torch.compile(cached, fullgraph=True, backend=counter)
        worst = 0.0
        for _ in range(2):
            with cached.generation(), plain.generation():
                worst = max(worst, *(difference(step(**call), plain(**call)) for call in calls(spec, arguments, STEPS)))
        row.frames, row.breaks = counter.frame_count, sum(torch._dynamo.utils.counters["graph_break"].values())
        torch._dynamo.reset()
        assert row.frames == 3, f"{row.frames} frames"
        assert row.breaks == 0, f"{row.breaks} graph breaks"
        assert worst <= 1e-5, f"compiled differs by {worst:.1e}"

    def share() -> None:
        large = spec.model("real", device="meta")
        arguments = spec.arguments(large, "real", device="meta")
        try:
            plan = rfc_fx.transform(large, rfc.TaylorSeer(order=1), example_inputs=arguments).plan()
        except rfc_fx.CaptureError as error:  # masks that Python reads have no values on the meta device, and autocast does not know it
            size = sum(leaf.numel() for leaf in pytree.tree_leaves(arguments[spec.latent]) if isinstance(leaf, torch.Tensor))
            if size > RUNNABLE:
                raise AssertionError(
                    f"not counted: the forward cannot be traced on the meta device, and a latent of {size} numbers is too large to run it"
                ) from error
            large = spec.model("real")
            plan = rfc_fx.transform(large, rfc.TaylorSeer(order=1), example_inputs=spec.arguments(large, "real")).plan()
        row.estimate_share = plan.estimate_share

    if attempt("capture", transform):
        attempt("full", full)
        attempt("estimate", estimate)
        for name in granularities:
            attempt(f"granularity {name}", granularity(name))
        if hoists:
            attempt("hoist", hoisted)
        if compiles:
            attempt("compile", compiled)
        if meta:
            attempt("share", share)
        if row.heavy_left:
            row.errors.append(f"heavy operations left in ESTIMATE's blocks: {', '.join(row.heavy_left)}")
    return row


def heavy_on_the_latent(cached: rfc_fx.CachedModel) -> list[fx.Node]:
    """Heavy operations of ESTIMATE whose result depends on the latent: embeddings and the output head, if all blocks are sites."""
    latents = set(cached.compiled.captured.latents)
    moved = _descendants(cached.guarded.module.graph, latents)
    program = cached.programs[ESTIMATE.name]
    sources = [node for node in program.graph.nodes if node.op == "placeholder"]
    names = {
        node.name
        for node, (kind, name) in zip(sources, program.arguments, strict=True)
        if kind == "state" or (kind == "carry" and name in moved) or (kind == "input" and name in latents)
    }
    mine = _descendants(program.graph, names)
    return [node for node in heavy_outside_sites(program.graph) if node.name in mine]


def between_sites(cached: rfc_fx.CachedModel, nodes: list[fx.Node]) -> list[fx.Node]:
    """Those of ESTIMATE's nodes that lie in a block with sites, or between one site and another."""
    graph = cached.guarded.module.graph
    sites = cached.guarded.sites
    after = _descendants(graph, {site.output.name for site in sites})
    blocks = {block_of(site.name) for site in sites} - {""}

    def between(name: str) -> bool:
        return name in after and bool({site.output.name for site in sites} & _descendants(graph, {name}))

    return [node for node in nodes if block_of(module_path(node)) in blocks or between(node.name)]


def _descendants(graph: fx.Graph, names: set[str]) -> set[str]:
    reached = set(names)
    for node in graph.nodes:
        if any(source.name in reached for source in node.all_input_nodes):
            reached.add(node.name)
    return reached


def calls(spec: Spec, arguments: dict[str, Any], steps: int) -> list[dict[str, Any]]:
    """A short generation."""
    return [spec.moved(arguments, step, steps) for step in range(steps)]
