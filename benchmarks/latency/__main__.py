"""Time of full, estimated and whole generations at an equal number of full steps: `python -m benchmarks.latency --model dit-s`.

Every variant runs the same steps in full (`--nfc` of `--steps`, at equal gaps), so the times compare ways to run, not decisions. All take
turns in one process, a generation each, after one warm-up generation; a step is timed on the host (with a synchronization on CUDA) and
filed under the phase it took. Medians with the 10th and 90th percentile; a ratio is a ratio of medians. Rivals (`benchmarks/rivals.py`)
that cannot be told which steps are full run as many. Compiled graphs, graph breaks, recompiles and seconds are Dynamo's own counts, by
difference; the seconds are of compiling, with whatever torch had in its caches on disk. Host reads, counted in one more generation
without torch.compile, are calls that wait for a value that depends on the arguments or weights; on a CPU, where a read costs nothing,
there are more of them: hoisted steps look at the timestep that lies on the host. Peak memory is what a CUDA device held at most beyond
what was there when a generation began; on a CPU it is not measured.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

import rfc
import rfc.eager
import rfc_fx
from benchmarks.latency import plots as plots
from benchmarks.latency import rivals as rivals
from benchmarks.latency import roofline as roofline
from benchmarks.latency.methods import ESTIMATORS, KNOWN, WHOLE, full_steps
from benchmarks.latency.tables import markdown as markdown
from benchmarks.latency.timing import Variant as Variant
from benchmarks.latency.timing import figures as figures
from benchmarks.latency.timing import keep_all_compilation_metrics
from benchmarks.latency.workloads import WORKLOADS, Calls
from benchmarks.readme import between_marks
from rfc_fx.tools.summary_json import versions

CHOSEN = ("Taylor m=1", "Taylor m=1, bfloat16", "RFE m=1", "RFE m=1, sketch 16, bfloat16", "RFE m=1, sketch 16, int8")


def schedule(steps: int, nfc: int) -> rfc.RCS:
    """A data-driven schedule (PREFIX, its error and the decision are part of every step) that makes exactly `nfc` of `steps` full."""
    for warmup in range(2, nfc + 1):
        for interval in range(1, steps + 1):
            if warmup + (steps - warmup) // interval == nfc:
                return rfc.RCS(tau=float("inf"), warmup=warmup, max_skip=interval - 1)
    raise typer.BadParameter(f"no equal gaps give {nfc} full steps of {steps}")


def variants(
    model: Any, names: list[str], plan: rfc.RCS, calls: Calls, refused: dict[str, str], *, per_sample: bool = False
) -> list[Variant]:
    """Full computation, and for each estimator the eager twin (where its state is the paper's) and the compiled graph, hoisted and not.

    A step of most is decided by data (RCS, whose PREFIX is part of the step); "fixed steps" are listed beforehand. What is more than an
    estimator has a schedule of its own (`benchmarks.latency.methods`), and may be `refused` by a model.
    """
    made = [Variant("full, eager", model), Variant("full, compiled", torch.compile(model, fullgraph=True))]
    timesteps = torch.stack([call["timestep"].flatten()[0] for call in calls])
    for name in names:
        if name in WHOLE:
            whole = WHOLE[name](plan, len(calls))
            try:
                hoisted = rfc_fx.transform(model, calls[0], method=whole, hoist=True)
            except rfc_fx.RFCError as error:
                refused[name] = str(error).partition("\n")[0]
                continue
            twin = rfc.eager.cached(model, whole)
            hoisted.prepare(timesteps)
            made.append(Variant(f"{name}, eager twin", twin, twin))
            made.append(Variant(f"{name}, hoisted, compiled", torch.compile(hoisted, fullgraph=True), hoisted))
            continue
        method = rfc.Method(estimator=ESTIMATORS[name], schedule=plan)
        if isinstance(ESTIMATORS[name], rfc.Taylor | rfc.Reuse) or ESTIMATORS[name] == rfc.RFE(order=ESTIMATORS[name].orders):
            twin = rfc.eager.cached(model, method)
            made.append(Variant(f"{name}, eager twin", twin, twin))
            plain = rfc_fx.transform(model, method=method)
            made.append(Variant(f"{name}, compiled", torch.compile(plain, fullgraph=True), plain))
        deciding = {"hoisted": method}
        if not ESTIMATORS[name].needs_input:  # the steps need no data where the method needs none
            steps = full_steps(plan, len(calls))
            deciding["hoisted, fixed steps"] = rfc.Method(estimator=ESTIMATORS[name], schedule=rfc.Listed(full_steps=steps))
        for how, of in deciding.items():
            hoisted = rfc_fx.transform(model, method=of, hoist=True)
            hoisted.prepare(timesteps)
            made.append(Variant(f"{name}, {how}, compiled", torch.compile(hoisted, fullgraph=True), hoisted))
        if per_sample:
            alone = rfc_fx.transform(model, method=method, decision="per_sample")
            made.append(Variant(f"{name}, per sample, compiled", torch.compile(alone, fullgraph=True), alone))
    return made


def record(made: list[Variant], steps: int, nfc: int) -> dict[str, Any]:
    """Times by variant, and what they are against compiled full computation."""
    full = next(variant for variant in made if variant.name == "full, compiled")
    whole, step = statistics.median(full.generations_ms), statistics.median(full.steps_ms["FULL"])
    rows: dict[str, Any] = {}
    for variant in made:
        generation = statistics.median(variant.generations_ms)
        rows[variant.name] = {
            "generation": figures(variant.generations_ms),
            **{phase: figures(values) for phase, values in variant.steps_ms.items() if values},
            "first_generation_with_compilation_s": variant.first_s,
            "speedup_vs_compiled_full": whole / generation,
            **_cached(variant, whole / generation, step, steps),
            **_state(variant),
            **_compilation(variant),
            **({"peak_bytes": variant.peak_bytes} if variant.peak_bytes is not None else {}),
            **({"notes": variant.notes} if variant.notes else {}),
        }
    return rows


def _cached(variant: Variant, speedup: float, full_ms: float, steps: int) -> dict[str, Any]:
    """What only a model behind a cache has."""
    if variant.cache is None:
        return {}
    stats = variant.cache.stats
    row: dict[str, Any] = {"nfc": stats.nfc, "full_steps": [step for step, phase in enumerate(stats.phases) if phase == "FULL"]}
    row["share_of_bound"] = speedup / (steps / stats.nfc)
    if variant.steps_ms.get("ESTIMATE"):
        row["estimate_share_of_compiled_full"] = statistics.median(variant.steps_ms["ESTIMATE"]) / full_ms
    if variant.reads is not None:
        row["host_reads"] = variant.reads
    return row


def _state(variant: Variant) -> dict[str, Any]:
    if isinstance(variant.cache, rfc_fx.CachedModel):
        plan = variant.cache.plan()
        return {
            "state_bytes": plan.state_bytes,
            "estimate_flops_share": plan.estimate_share,
            "capture_s": variant.cache.compiled.seconds,
        }
    return {"state_bytes": variant.cache.state_bytes()} if isinstance(variant.cache, rivals.Rival) else {}


def _compilation(variant: Variant) -> dict[str, Any]:
    if not variant.compiles:
        return {}
    both = variant.warming + variant.counting
    return {
        "graphs": both.graphs,
        "graph_breaks": both.graph_breaks,
        "recompiles": both.recompiles,
        "frames_given_up": both.frames_given_up,
        "recompiles_while_counting": variant.counting.recompiles,
        "compile_s": both.seconds,
    }


def in_readme(text: str, out: Path) -> str:
    """README with the tables of a folder's results between its marks."""
    records = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
    return between_marks(text, "latency", "\n".join(markdown(record["variants"], record["settings"]) for record in records))


def timed(made: list[Variant], calls: Calls, where: torch.device, rounds: int) -> dict[str, str]:
    """Warm up, time in turns and audit; what a rival stumbles over is returned, and it is taken off the list."""
    refused: dict[str, str] = {}
    counted = partial(Variant.run, calls=calls, device=where, count=True)
    turns: list[tuple[str, Callable[[Variant], None]]] = [
        ("warm-up and compilation", partial(Variant.warm_up, calls=calls, device=where)),
        *((f"round {number + 1} of {rounds}", counted) for number in range(rounds)),
        ("audit", partial(Variant.audit, calls=calls)),
    ]
    for what, turn in turns:
        for variant in track(list(made), what):
            try:
                turn(variant)
            except Exception as error:
                if not isinstance(variant.cache, rivals.Rival):
                    raise
                refused[variant.name] = rivals.reason(error)
                made.remove(variant)
    return refused


def checked(
    model: str, methods: str, dtype: str, device: str, known: Collection[str] = KNOWN
) -> tuple[list[str], torch.dtype, torch.device]:
    """(names of methods, dtype, device); raises BadParameter for what is unknown."""
    if model not in WORKLOADS:
        raise typer.BadParameter(f"unknown model {model!r}; known: {', '.join(WORKLOADS)}")
    names = [name.strip() for name in methods.split(";")] if methods != "all" else list(known)
    if unknown := [name for name in names if name not in known]:
        raise typer.BadParameter(f"unknown methods {', '.join(unknown)}; known: {'; '.join(known)}")
    kind = getattr(torch, dtype, None)
    if kind not in (torch.float32, torch.bfloat16, torch.float16):
        raise typer.BadParameter(f"unknown dtype {dtype!r}; known: float32, bfloat16, float16")
    return names, kind, torch.device(device)


def main(
    model: Annotated[str, typer.Option(help=f"one of {', '.join(WORKLOADS)}")] = "digits",
    methods: Annotated[str, typer.Option(help=f"all, or of {'; '.join(KNOWN)}; separated by semicolons")] = "; ".join(CHOSEN),
    samples: Annotated[int, typer.Option(help="samples a batch; guidance doubles it", min=1)] = 1,
    steps: Annotated[int, typer.Option(min=4)] = 50,
    nfc: Annotated[int, typer.Option(help="steps computed in full", min=3)] = 14,
    rounds: Annotated[int, typer.Option(help="generations of every variant", min=1)] = 3,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16")] = "float32",
    out: Annotated[Path, typer.Option(help="folder for MODEL-SAMPLES.json, .md and .png")] = Path("out/latency"),
    per_sample: Annotated[bool, typer.Option("--per-sample", help="also time decision='per_sample'")] = False,
    with_rivals: Annotated[
        bool | None,
        typer.Option("--rivals/--no-rivals", help="also time cache-dit and diffusers' hooks; default: if cache-dit is installed"),
    ] = None,
    with_roofline: Annotated[
        bool, typer.Option("--roofline/--no-roofline", help="also count the bytes of every program: each is compiled once more")
    ] = False,
    readme: Annotated[Path | None, typer.Option(help="time nothing; write the tables of --out into this README")] = None,
) -> None:
    """Time full, estimated and whole generations of a model, and write them as JSON, Markdown and pictures."""
    if readme is not None:
        readme.write_text(in_readme(readme.read_text(), out))
        return
    names, kind, where = checked(model, methods, dtype, device)
    workload, plan = WORKLOADS[model], schedule(steps, nfc)
    net = workload.model().to(where, kind)
    calls = [
        {name: t.to(where, kind if t.is_floating_point() else t.dtype) for name, t in call.items()}
        for call in workload.calls(net, samples, steps)
    ]
    keep_all_compilation_metrics()
    wanted, refused = full_steps(plan, steps), dict[str, str]()
    others: list[Variant] = []
    if with_rivals or (with_rivals is None and rivals.installed()):
        torch._dynamo.config.recompile_limit = rivals.RECOMPILE_LIMIT
        others, refused = rivals.rivals(net, calls, wanted)
    made = variants(net, names, plan, calls, refused, per_sample=per_sample) + others
    refused |= timed(made, calls, where, rounds)
    for variant in made:
        if isinstance(variant.cache, rivals.Rival):
            variant.notes = variant.cache.verdict(wanted, steps)
    settings = {
        "model": model,
        "what": workload.what,
        "guidance": workload.guidance,
        "samples": samples,
        "steps": steps,
        "nfc": nfc,
        "full_steps": wanted,
        "rounds": rounds,
        "device": device,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "graphs_compiled_while_counting": sum(variant.counting.graphs for variant in made),
        "recompile_limit": torch._dynamo.config.recompile_limit,
        "refused": refused,
        "versions": versions() | {"cache_dit": rivals.cache_dit_version()},
        "protocol": __doc__,
    }
    rows = record(made, steps, nfc)
    if with_roofline:
        settings["machine"] = roofline.machine(where, kind)
        for variant in made:
            if isinstance(variant.cache, rfc_fx.CachedModel):
                rows[variant.name]["programs"] = roofline.programs(variant.cache, calls)
    written(out / f"{model}-{samples}", rows, settings)
    shown(rows, settings)


def written(where: Path, rows: dict[str, Any], settings: dict[str, Any]) -> None:
    """MODEL-SAMPLES as .json, .md and .png, each whole or not at all; -roofline.png where programs were counted."""
    where.parent.mkdir(parents=True, exist_ok=True)
    kept = {"settings": settings, "variants": rows}
    for suffix, text in (("json", json.dumps(kept, indent=1) + "\n"), ("md", markdown(rows, settings))):
        part = where.with_name(f".{where.name}.{suffix}")
        part.write_text(text)
        os.replace(part, where.with_name(f"{where.name}.{suffix}"))
    plots.draw(where.with_name(f"{where.name}.json"))


def shown(rows: dict[str, Any], settings: dict[str, Any]) -> None:
    """The times on the console, and what did not run."""
    table = Table("variant", "FULL ms", "ESTIMATE ms", "generation ms", "vs compiled full", title=settings["what"])
    for name, row in rows.items():
        cells = [f"{row[phase]['median_ms']:.1f}" if phase in row else "-" for phase in ("FULL", "ESTIMATE", "generation")]
        table.add_row(name, *cells, f"{row['speedup_vs_compiled_full']:.2f}x")
    console = Console()
    console.print(table)
    notes = [f"{name}: {'; '.join(row['notes'])}" for name, row in rows.items() if "notes" in row]
    for line in (*notes, *(f"{name}: not run. {why}" for name, why in settings["refused"].items())):
        console.print(line, markup=False, highlight=False)


if __name__ == "__main__":
    typer.run(main)
