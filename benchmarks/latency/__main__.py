"""Time of full, estimated and whole generations at an equal number of full steps: `python -m benchmarks.latency --model dit-s`.

Every variant runs the same steps in full (`--nfc` of `--steps`, at equal gaps), so the times compare ways to run, not decisions. All take
turns in one process, a generation each, after one warm-up generation; a step is timed on the host (with a synchronization on CUDA) and
filed under the phase it took. Medians with the 10th and 90th percentile; a ratio is a ratio of medians. Rivals (`latency/rivals`)
that cannot be told which steps are full run as many. Compiled graphs, graph breaks, recompiles and seconds are Dynamo's own counts, by
difference; the seconds are of compiling, with whatever torch had in its caches on disk. Host reads, counted in one more generation
without torch.compile, are calls that wait for a value that depends on the arguments or weights; on a CPU, where a read costs nothing,
there are more of them: hoisted steps look at the timestep that lies on the host. Peak memory is what a CUDA device held at most beyond
what was there when a generation began; on a CPU it is not measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

import rfc_fx
from benchmarks.latency import roofline
from benchmarks.latency.methods import KNOWN, equal_gaps, full_steps
from benchmarks.latency.options import CHOSEN, checked
from benchmarks.latency.record import record, shown, written
from benchmarks.latency.rivals.db_cache import cache_dit_version, installed
from benchmarks.latency.rivals.rival import Rival
from benchmarks.latency.rivals.table import RECOMPILE_LIMIT, rivals
from benchmarks.latency.timing import TimedVariant, keep_all_compilation_metrics
from benchmarks.latency.variants import timed, variants
from benchmarks.latency.workloads import WORKLOADS, calls_of
from rfc_fx.tools.summary_json import versions


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
) -> None:
    """Time full, estimated and whole generations of a model, and write them as JSON, Markdown and pictures."""
    names, precision, where = checked(model, methods, dtype, device)
    workload, plan = WORKLOADS[model], equal_gaps(steps, nfc)
    net = workload.model().to(where, precision)
    calls = calls_of(workload, net, samples, steps, where, precision)
    keep_all_compilation_metrics()
    planned, refused = full_steps(plan, steps), dict[str, str]()
    others: list[TimedVariant] = []
    if with_rivals or (with_rivals is None and installed()):
        torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
        others, refused = rivals(net, calls, planned)
    ways = variants(net, names, plan, calls, refused, per_sample=per_sample) + others
    refused |= timed(ways, calls, where, rounds)
    for variant in ways:
        if isinstance(variant.cache, Rival):
            variant.notes = variant.cache.verdict(planned, steps)
    settings = {
        "model": model,
        "what": workload.what,
        "guidance": workload.guidance,
        "samples": samples,
        "steps": steps,
        "nfc": nfc,
        "full_steps": planned,
        "rounds": rounds,
        "device": device,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "graphs_compiled_while_counting": sum(variant.counting.graphs for variant in ways),
        "recompile_limit": torch._dynamo.config.recompile_limit,
        "refused": refused,
        "versions": versions() | {"cache_dit": cache_dit_version()},
        "protocol": __doc__,
    }
    rows = record(ways, steps, nfc)
    if with_roofline:
        settings["machine"] = roofline.machine(where, precision)
        for variant in ways:
            if isinstance(variant.cache, rfc_fx.CachedModel):
                rows[variant.name]["programs"] = roofline.programs(variant.cache, calls)
    written(out / f"{model}-{samples}", rows, settings)
    shown(rows, settings)


if __name__ == "__main__":
    typer.run(main)
