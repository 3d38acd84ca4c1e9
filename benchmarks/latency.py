"""Time of full, estimated and whole generations at an equal number of full steps: `python -m benchmarks.latency --model dit-s`.

Every variant runs the same steps in full (`--nfc` of `--steps`, at equal gaps), so the times compare ways to run, not decisions. All take
turns in one process, a generation each, after one warm-up generation; a step is timed on the host (with a synchronization on CUDA) and
filed under the phase it took. Medians with the 10th and 90th percentile; a ratio is a ratio of medians.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass, field
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
from benchmarks.readme import between_marks
from benchmarks.workloads import WORKLOADS, Calls
from rfc_fx.record import versions

ESTIMATORS: dict[str, rfc.Estimator] = {
    "FORA": rfc.Reuse(),
    "Taylor m=1": rfc.Taylor(order=1),
    "RFE m=1": rfc.RFE(order=1),
    "RFE m=1, sketch 16": rfc.RFE(order=1, sketch=16),
    "RFE m=1, sketch 16, int8": rfc.Stored(estimator=rfc.RFE(order=1, sketch=16), differences=torch.int8),
    "RFE m=2": rfc.RFE(order=2),
}
"""What estimated steps may be."""

CHOSEN = ("Taylor m=1", "RFE m=1", "RFE m=1, sketch 16, int8")


@dataclass
class Variant:
    """One way to run a generation, and its times."""

    name: str
    call: Any
    cache: Any = None
    """What records the phases; None for the model without caching."""
    steps_ms: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    generations_ms: list[float] = field(default_factory=list)
    first_s: float = 0.0
    """Seconds of the warm-up generation, compilation included."""

    @torch.no_grad()
    def run(self, calls: Calls, device: torch.device, *, count: bool) -> None:
        """One generation; every step timed for itself."""
        if self.cache is not None:
            self.cache.reset()
        times: list[tuple[str, float]] = []
        begin = time.perf_counter()
        for arguments in calls:
            start = time.perf_counter()
            self.call(**arguments)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append((self.cache.stats.phases[-1] if self.cache is not None else "FULL", (time.perf_counter() - start) * 1e3))
        if not count:
            self.first_s = time.perf_counter() - begin
            return
        self.generations_ms.append(sum(elapsed for _, elapsed in times))
        for phase, elapsed in times:
            self.steps_ms[phase].append(elapsed)


def schedule(steps: int, nfc: int) -> rfc.RCS:
    """A data-driven schedule (PREFIX, its error and the decision are part of every step) that makes exactly `nfc` of `steps` full."""
    for warmup in range(2, nfc + 1):
        for interval in range(1, steps + 1):
            if warmup + (steps - warmup) // interval == nfc:
                return rfc.RCS(tau=float("inf"), warmup=warmup, max_skip=interval - 1)
    raise typer.BadParameter(f"no equal gaps give {nfc} full steps of {steps}")


def variants(model: Any, names: list[str], plan: rfc.RCS, calls: Calls, *, per_sample: bool = False) -> list[Variant]:
    """Full computation, and for each estimator the eager twin (where its state is the paper's) and the compiled graph, hoisted and not."""
    made = [Variant("full, eager", model), Variant("full, compiled", torch.compile(model, fullgraph=True))]
    timesteps = torch.stack([call["timestep"].flatten()[0] for call in calls])
    for name in names:
        method = rfc.Method(estimator=ESTIMATORS[name], schedule=plan)
        if isinstance(ESTIMATORS[name], rfc.Taylor | rfc.Reuse) or ESTIMATORS[name] == rfc.RFE(order=ESTIMATORS[name].orders):
            twin = rfc.eager.cached(model, method)
            made.append(Variant(f"{name}, eager twin", twin, twin))
            plain = rfc_fx.transform(model, method=method)
            made.append(Variant(f"{name}, compiled", torch.compile(plain, fullgraph=True), plain))
        hoisted = rfc_fx.transform(model, method=method, hoist=True)
        hoisted.prepare(timesteps)
        made.append(Variant(f"{name}, hoisted, compiled", torch.compile(hoisted, fullgraph=True), hoisted))
        if per_sample:
            alone = rfc_fx.transform(model, method=method, decision="per_sample")
            made.append(Variant(f"{name}, per sample, compiled", torch.compile(alone, fullgraph=True), alone))
    return made


def figures(values: list[float]) -> dict[str, float]:
    """Median and spread in milliseconds."""
    tenths = statistics.quantiles(values, n=10) if len(values) > 1 else [values[0]] * 9
    return {"median_ms": statistics.median(values), "p10_ms": tenths[0], "p90_ms": tenths[-1], "samples": len(values)}


def record(made: list[Variant], steps: int, nfc: int) -> dict[str, Any]:
    """Times by variant, and what they are against compiled full computation."""
    full = next(variant for variant in made if variant.name == "full, compiled")
    whole, step = statistics.median(full.generations_ms), statistics.median(full.steps_ms["FULL"])
    rows: dict[str, Any] = {}
    for variant in made:
        generation = statistics.median(variant.generations_ms)
        rows[variant.name] = {
            "generation": figures(variant.generations_ms),
            **{phase: figures(values) for phase, values in variant.steps_ms.items()},
            "first_generation_with_compilation_s": variant.first_s,
            "speedup_vs_compiled_full": whole / generation,
        }
        if variant.cache is not None:
            rows[variant.name] |= {
                "nfc": variant.cache.stats.nfc,
                "share_of_bound": whole / generation / (steps / nfc),
                "estimate_share_of_compiled_full": statistics.median(variant.steps_ms["ESTIMATE"]) / step,
            }
        if isinstance(variant.cache, rfc_fx.CachedModel):
            plan = variant.cache.plan()
            rows[variant.name] |= {"state_bytes": plan.state_bytes, "estimate_flops_share": plan.estimate_share}
    return rows


def markdown(rows: dict[str, Any], settings: dict[str, Any]) -> str:
    """The rows as a table."""
    samples = "1 sample" if settings["samples"] == 1 else f"{settings['samples']} samples"
    lines = [
        f"{settings['what']}; {samples} with guidance, {settings['nfc']} of {settings['steps']} steps full, "
        f"{settings['device']} ({settings['threads']} threads), {settings['dtype']}, torch {settings['versions']['torch']}, "
        f"{settings['rounds']} interleaved generations each",
        "",
        "| variant | FULL ms | ESTIMATE ms | of compiled full | generation ms (p10-p90) | vs compiled full | of the bound | state MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        cells = [name, *(f"{row[phase]['median_ms']:.1f}" if phase in row else "-" for phase in ("FULL", "ESTIMATE"))]
        cells.append(f"{row['estimate_share_of_compiled_full']:.1%}" if "nfc" in row else "-")
        generation = row["generation"]
        cells.append(f"{generation['median_ms']:.0f} ({generation['p10_ms']:.0f}-{generation['p90_ms']:.0f})")
        cells.append(f"{row['speedup_vs_compiled_full']:.2f}x")
        cells.append(f"{row['share_of_bound']:.0%}" if "nfc" in row else "-")
        cells.append(f"{row['state_bytes'] / 2**20:.1f}" if "state_bytes" in row else "-")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def in_readme(text: str, out: Path) -> str:
    """README with the tables of a folder's results between its marks."""
    records = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
    return between_marks(text, "latency", "\n".join(markdown(record["variants"], record["settings"]) for record in records))


def main(
    model: Annotated[str, typer.Option(help=f"one of {', '.join(WORKLOADS)}")] = "digits",
    methods: Annotated[str, typer.Option(help=f"of {'; '.join(ESTIMATORS)}; separated by semicolons")] = "; ".join(CHOSEN),
    samples: Annotated[int, typer.Option(help="samples a batch; guidance doubles it", min=1)] = 1,
    steps: Annotated[int, typer.Option(min=4)] = 50,
    nfc: Annotated[int, typer.Option(help="steps computed in full", min=3)] = 14,
    rounds: Annotated[int, typer.Option(help="generations of every variant", min=1)] = 3,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16")] = "float32",
    out: Annotated[Path, typer.Option(help="folder for MODEL-SAMPLES.json and .md")] = Path("out/latency"),
    per_sample: Annotated[bool, typer.Option("--per-sample", help="also time decision='per_sample'")] = False,
    readme: Annotated[Path | None, typer.Option(help="time nothing; write the tables of --out into this README")] = None,
) -> None:
    """Time full, estimated and whole generations of a model, and write them as JSON and Markdown."""
    if readme is not None:
        readme.write_text(in_readme(readme.read_text(), out))
        return
    if model not in WORKLOADS:
        raise typer.BadParameter(f"unknown model {model!r}; known: {', '.join(WORKLOADS)}")
    names = [name.strip() for name in methods.split(";")]
    if unknown := [name for name in names if name not in ESTIMATORS]:
        raise typer.BadParameter(f"unknown methods {', '.join(unknown)}; known: {'; '.join(ESTIMATORS)}")
    kind = getattr(torch, dtype, None)
    if kind not in (torch.float32, torch.bfloat16, torch.float16):
        raise typer.BadParameter(f"unknown dtype {dtype!r}; known: float32, bfloat16, float16")
    workload, where = WORKLOADS[model], torch.device(device)
    net = workload.model().to(where, kind)
    calls = [
        {name: t.to(where, kind if t.is_floating_point() else t.dtype) for name, t in call.items()}
        for call in workload.calls(net, samples, steps)
    ]
    made = variants(net, names, schedule(steps, nfc), calls, per_sample=per_sample)
    for variant in track(made, "warm-up and compilation"):
        variant.run(calls[: min(steps, 8)], where, count=False)
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for _ in track(range(rounds), "rounds"):
        for variant in made:
            variant.run(calls, where, count=True)
    settings = {
        "model": model,
        "what": workload.what,
        "samples": samples,
        "steps": steps,
        "nfc": nfc,
        "rounds": rounds,
        "device": device,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "graphs_compiled_while_counting": torch._dynamo.utils.counters["stats"]["unique_graphs"] - compiled,
        "versions": versions(),
        "protocol": __doc__,
    }
    rows = record(made, steps, nfc)
    out.mkdir(parents=True, exist_ok=True)
    table = markdown(rows, settings)
    for suffix, text in (("json", json.dumps({"settings": settings, "variants": rows}, indent=1) + "\n"), ("md", table)):
        part = out / f".{model}-{samples}.{suffix}"
        part.write_text(text)
        os.replace(part, out / f"{model}-{samples}.{suffix}")
    shown = Table("variant", "FULL ms", "ESTIMATE ms", "generation ms", "vs compiled full", title=workload.what)
    for name, row in rows.items():
        cells = [f"{row[phase]['median_ms']:.1f}" if phase in row else "-" for phase in ("FULL", "ESTIMATE", "generation")]
        shown.add_row(name, *cells, f"{row['speedup_vs_compiled_full']:.2f}x")
    Console().print(shown)


if __name__ == "__main__":
    typer.run(main)
