"""Coverage: what `rfc_fx.transform` makes of every denoising transformer of diffusers: `python -m benchmarks.coverage`.

Each class is built small (2 blocks of each kind, random weights) and goes through the same checks; ESTIMATE's share of FULL's
FLOPs is counted at the published width, on the meta device. No number here is a time.
"""

from __future__ import annotations

import traceback
import warnings
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

import torch
import torch._dynamo.testing
from torch import fx

import rfc
import rfc_fx
from benchmarks.classes.spec import Spec, prediction
from rfc_fx.load import one_line
from rfc_fx.sites import Granularity, module_path
from rfc_fx.verify import heavy_outside_sites

STEPS = 6


@dataclass
class Row:
    """What was seen of one class."""

    name: str
    captured: bool = False
    sites: list[str] = field(default_factory=list)
    rejected: list[tuple[str, str]] = field(default_factory=list)
    heavy_left: list[str] = field(default_factory=list)
    """Heavy operations inside the repeated blocks that ESTIMATE still runs."""
    full_difference: float | None = None
    """Largest absolute difference of an all-full step and the model."""
    estimate_difference: float | None = None
    """Largest absolute difference of FULL, FULL, ESTIMATE with unchanged inputs and FULL."""
    frames: int | None = None
    breaks: int | None = None
    state_bytes: dict[str, int] = field(default_factory=dict)
    """By granularity."""
    estimate_share: float | None = None
    """FLOPs of ESTIMATE over FULL's at the published width with 2 blocks of each kind."""
    errors: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Every column as it should be."""
        return not self.errors


def difference(a: Any, b: Any) -> float:
    """Largest absolute difference of two outputs."""
    return max(float((x - y).abs().max()) for x, y in zip(prediction(a), prediction(b), strict=True))


def check(spec: Spec, *, meta: bool = True, compiles: bool = True) -> Row:
    """Run every check on one class; what fails is in `errors`, one line each."""
    row = Row(spec.name)

    def attempt(what: str, function: Any) -> bool:
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                function()
        except Exception as error:
            row.errors.append(f"{what}: {type(error).__name__}: {one_line(error)}")
            if VERBOSE:
                traceback.print_exc()
            return False
        return True

    model = spec.model()
    arguments = spec.arguments(model)

    def capture() -> None:
        plan = rfc_fx.transform(model, arguments, method=rfc.RFC(tau=0.3))
        row.captured = True
        found = plan.compiled.found
        row.sites = [site.name for site in found.sites]
        row.rejected = [(where, why) for where, why in found.rejected]
        inside = [path for path in map(module_path, heavy_on_the_latent(plan)) if any(part.isdigit() for part in path.split("."))]
        row.heavy_left = list(dict.fromkeys(inside))

    def full() -> None:
        cached = rfc_fx.transform(model, method=rfc.RFC(tau=0.0))
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

    def granularity(name: Granularity) -> Any:
        def run() -> None:
            cached = rfc_fx.transform(model, method=rfc.RFC(tau=float("inf"), warmup=2), granularity=name)
            outputs = [prediction(cached(**call))[0] for call in calls(spec, arguments, 4)]
            assert cached.stats.phases == ["FULL", "FULL", "ESTIMATE", "ESTIMATE"], cached.stats.phases
            assert all(bool(output.isfinite().all()) for output in outputs), "not finite"
            row.state_bytes[name] = cached.plan().state_bytes

        return run

    def compiled() -> None:
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
        cached, plain = (rfc_fx.transform(model, method=rfc.RFC(tau=float("inf"), warmup=2)) for _ in range(2))
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
        plan = rfc_fx.transform(large, spec.arguments(large, "real", device="meta"), method=rfc.TaylorSeer(order=1)).plan()
        row.estimate_share = plan.estimate_share

    if attempt("capture", capture):
        attempt("full", full)
        attempt("estimate", estimate)
        for name in get_args(Granularity):
            attempt(f"granularity {name}", granularity(name))
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
    latent = cached.compiled.captured.latent
    moved = _descendants(cached.guarded.module.graph, {latent})
    program = cached.programs["ESTIMATE"]
    sources = [node for node in program.graph.nodes if node.op == "placeholder"]
    names = {
        node.name
        for node, (kind, name) in zip(sources, program.arguments, strict=True)
        if kind == "state" or (kind == "carry" and name in moved) or (kind == "input" and name == latent)
    }
    mine = _descendants(program.graph, names)
    return [node for node in heavy_outside_sites(program.graph) if node.name in mine]


def _descendants(graph: fx.Graph, names: set[str]) -> set[str]:
    found = set(names)
    for node in graph.nodes:
        if any(source.name in found for source in node.all_input_nodes):
            found.add(node.name)
    return found


def calls(spec: Spec, arguments: dict[str, Any], steps: int) -> list[dict[str, Any]]:
    """A short generation."""
    return [spec.moved(arguments, step, steps) for step in range(steps)]


def main() -> None:
    """Check the classes named on the command line, or all."""
    global VERBOSE
    import sys

    names = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    VERBOSE = "--verbose" in sys.argv
    specs = {spec.name: spec for spec in all_specs()}
    for name in names or specs:
        row = check(specs[name], meta="--no-meta" not in sys.argv, compiles="--no-compile" not in sys.argv)
        for key, item in asdict(row).items():
            print(f"{key}: {item}")
        print(flush=True)


def all_specs() -> list[Spec]:
    """Every class."""
    import importlib

    found: list[Spec] = []
    for name in ("image", "text_to_image", "audio_and_other", "video", "wan_family"):
        try:
            found += importlib.import_module(f"benchmarks.classes.{name}").SPECS
        except (ImportError, SyntaxError) as error:
            print(f"benchmarks.classes.{name}: {error}")
    return found


if __name__ == "__main__":
    main()
