"""Coverage: what `rfc_fx.transform` makes of every denoising transformer of diffusers: `python -m benchmarks.coverage`.

Each class is built small (2 blocks of each kind, random weights) and goes through the same checks; ESTIMATE's share of FULL's
FLOPs is counted at the published width, on the meta device where the class can be traced there. No number here is a time.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, get_args
from unittest import mock

import torch
import torch._dynamo.testing
import torch.utils._pytree as pytree
import typer
from torch import fx

import rfc
import rfc_fx
from benchmarks.coverage.classes.spec import Spec, prediction
from benchmarks.coverage.rows import Row, in_readme, markdown, public, read, write
from rfc.granularity import GranularityName, block_of
from rfc_fx.capture.export import capture
from rfc_fx.passes import build
from rfc_fx.passes.verify import heavy_outside_sites
from rfc_fx.runtime.calls import signature
from rfc_fx.sites.residual import module_path
from rfc_fx.tools.load import one_line

STEPS = 6


RUNNABLE = 1_200_000
"""Numbers of a latent at which a forward at the published width still takes no more than minutes on a CPU."""


def difference(a: Any, b: Any) -> float:
    """Largest absolute difference of two outputs."""
    return max(float((x - y).abs().max()) for x, y in zip(prediction(a), prediction(b), strict=True))


@contextmanager
def captured_once() -> Iterator[None]:
    """Transform a model as often as one likes for the price of one capture: no later stage changes the captured graph."""
    held: dict[Any, Any] = {}

    def once(model: torch.nn.Module, arguments: dict[str, Any]) -> Any:
        key = model, signature(arguments, model)[0]
        if key not in held:
            held[key] = capture(model, arguments)
        return held[key]

    with mock.patch.object(build, "capture", once):
        yield


@captured_once()
def check(spec: Spec, *, meta: bool = True, compiles: bool = True) -> Row:
    """Run every check on one class; what fails is in `errors`, one line each."""
    row = Row(spec.name)

    def attempt(what: str, function: Any) -> bool:
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                function()
        except Exception as error:
            row.errors.append(f"{what}: {type(error).__name__}: {public(one_line(error))}")
            if VERBOSE:
                traceback.print_exc()
            return False
        return True

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = spec.model()
        arguments = spec.arguments(model)

    made: dict[str, rfc_fx.CachedModel] = {}
    skips = rfc.RFC(tau=float("inf"), warmup=2)

    def transform() -> None:
        made["module"] = rfc_fx.transform(model, arguments, method=rfc.RFC(tau=0.0))
        row.captured = True
        found = made["module"].compiled.found
        row.sites = [site.name for site in found.sites]
        row.rejected = [(where, why) for where, why in found.rejected]
        row.heavy_left = list(
            dict.fromkeys(module_path(node) for node in between_sites(made["module"], heavy_on_the_latent(made["module"])))
        )

    def full() -> None:
        cached = made["module"]
        row.full_difference = max(difference(cached(**call), model(**call)) for call in calls(spec, arguments, 3))
        if row.full_difference != 0:
            raise AssertionError(f"an all-full step differs from the model by {row.full_difference:.1e}")

    def estimate() -> None:
        cached = rfc_fx.transform(model, method=rfc.Method(estimator=rfc.RFE(order=2), schedule=rfc.Listed(steps=[0, 1])))
        expected = [cached(**arguments) for _ in range(2)][-1]
        row.estimate_difference = difference(cached(**arguments), expected)
        assert cached.stats.phases == ["FULL", "FULL", "ESTIMATE"], cached.stats.phases
        if row.estimate_difference > 1e-5:
            raise AssertionError(f"an estimate with unchanged inputs differs from full by {row.estimate_difference:.1e}")

    def granularity(name: GranularityName) -> Any:
        def run() -> None:
            cached = made.get(name) or rfc_fx.transform(model, method=skips, granularity=name)
            cached.method = skips
            cached.reset()
            outputs = [prediction(cached(**call))[0] for call in calls(spec, arguments, 4)]
            assert cached.stats.phases == ["FULL", "FULL", "ESTIMATE", "ESTIMATE"], cached.stats.phases
            assert all(bool(output.isfinite().all()) for output in outputs), "not finite"
            row.state_bytes[name] = cached.plan().state_bytes

        return run

    def hoisted() -> None:
        plain, ahead = (rfc_fx.transform(model, method=skips, hoist=hoist) for hoist in (False, True))
        worst = max(difference(ahead(**call), plain(**call)) for call in calls(spec, arguments, 4))
        assert worst == 0, f"with hoist=True the outputs differ by {worst:.1e}"

    def compiled() -> None:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
        cached, plain = rfc_fx.transform(model, method=skips), made["module"]
        plain.reset()
        step = torch.compile(cached, fullgraph=True, backend=counter)
        worst = 0.0
        for _ in range(2):
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
            plan = rfc_fx.transform(large, arguments, method=rfc.TaylorSeer(order=1)).plan()
        except rfc_fx.CaptureError as error:  # masks that Python reads have no values on the meta device, and autocast does not know it
            size = sum(leaf.numel() for leaf in pytree.tree_leaves(arguments[spec.latent]) if isinstance(leaf, torch.Tensor))
            if size > RUNNABLE:
                raise AssertionError(
                    f"not counted: the forward cannot be traced on the meta device, and a latent of {size} numbers is too large to run it"
                ) from error
            large = spec.model("real")
            plan = rfc_fx.transform(large, spec.arguments(large, "real"), method=rfc.TaylorSeer(order=1)).plan()
        row.estimate_share = plan.estimate_share

    if attempt("capture", transform):
        attempt("full", full)
        attempt("estimate", estimate)
        for name in get_args(GranularityName):
            attempt(f"granularity {name}", granularity(name))
        attempt("hoist", hoisted)
        if compiles:
            attempt("compile", compiled)
        if meta:
            attempt("share", share)
        if row.heavy_left:
            row.errors.append(f"heavy operations left in ESTIMATE's blocks: {', '.join(row.heavy_left)}")
    return row


VERBOSE = False
"""Print the traceback of every error."""


def heavy_on_the_latent(cached: rfc_fx.CachedModel) -> list[fx.Node]:
    """Heavy operations of ESTIMATE whose result depends on the latent: embeddings and the output head, if all blocks are sites."""
    latents = set(cached.compiled.captured.latents)
    moved = _descendants(cached.guarded.module.graph, latents)
    program = cached.programs["ESTIMATE"]
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
    found = set(names)
    for node in graph.nodes:
        if any(source.name in found for source in node.all_input_nodes):
            found.add(node.name)
    return found


def calls(spec: Spec, arguments: dict[str, Any], steps: int) -> list[dict[str, Any]]:
    """A short generation."""
    return [spec.moved(arguments, step, steps) for step in range(steps)]


def all_specs() -> dict[str, Spec]:
    """Every class by name."""
    from benchmarks.coverage.classes import audio_and_other, image, text_to_image, video, wan_family

    specs = [spec for module in (image, text_to_image, video, wan_family, audio_and_other) for spec in module.SPECS]
    return {spec.name: spec for spec in specs}


def _check(name: str, meta: bool, compiles: bool) -> Row:
    torch.set_num_threads(1)
    return check(all_specs()[name], meta=meta, compiles=compiles)


def in_order(rows: list[Row]) -> list[Row]:
    """The rows in the order of the classes."""
    places = {name: i for i, name in enumerate(all_specs())}
    return sorted(rows, key=lambda row: places[row.name])


def main(
    names: Annotated[list[str] | None, typer.Argument(help="classes (default: all)")] = None,
    meta: Annotated[bool, typer.Option("--flops/--no-flops", help="count FLOPs at the published width")] = True,
    compile: Annotated[bool, typer.Option(help="count compiled frames and graph breaks")] = True,
    verbose: Annotated[bool, typer.Option(help="print tracebacks")] = False,
    jobs: Annotated[int, typer.Option(help="processes", min=1)] = 1,
    out: Annotated[Path | None, typer.Option(help="folder for coverage.json and coverage.md; rows of other classes there are kept")] = None,
    readme: Annotated[Path | None, typer.Option(help="check nothing; write the table of --out into this README")] = None,
) -> None:
    """Check the classes and print what was seen of each."""
    global VERBOSE
    VERBOSE = verbose
    if readme is not None:
        if out is None:
            raise typer.BadParameter("--readme needs --out, the folder of a run")
        readme.write_text(in_readme(readme.read_text(), read(out)))
        return
    chosen = names or list(all_specs())
    if unknown := sorted(set(chosen) - set(all_specs())):
        raise typer.BadParameter(f"unknown: {', '.join(unknown)}; known: {', '.join(all_specs())}")
    rows: list[Row] = []
    earlier = read(out, same_versions=True) if out is not None and (out / "coverage.json").exists() else []
    kept = [row for row in earlier if row.name not in chosen]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) if jobs > 1 else nullcontext() as pool:
        work = (_check, chosen, repeat(meta), repeat(compile))
        for row in pool.map(*work) if pool is not None else map(*work):
            rows.append(row)
            print(f"{row.name}: {'passed' if row.passed else '; '.join(row.errors)}", flush=True)
            if len(chosen) == 1:
                print("\n".join(f"{key}: {item}" for key, item in asdict(row).items()))
            if out is not None:
                out.mkdir(parents=True, exist_ok=True)
                write(out, in_order([*kept, *rows]))
    print(markdown(rows))


if __name__ == "__main__":
    typer.run(main)
