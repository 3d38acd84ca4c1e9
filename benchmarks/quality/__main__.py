"""Which caching method is best at an equal number of full computations (NFC): `python -m benchmarks.quality --model digits`.

Every method draws the samples that full computation draws, from the same noise, labels and sampler. Methods that need no data run their
full steps at equal gaps, Chebyshev and those called "placed" at points closer together at both ends, LogSNR and those at its steps by the
sampler's noise levels ("calibrated": moved to where the error on other seeds is smallest); where data decides, the threshold is bisected
until the mean NFC on other seeds is the wanted one, and the NFC told is the one reached on the judged seeds. A batch has one schedule.
"relative L2" is ||x - x_0|| / ||x_0|| of a sample against full computation of the same seed, geometric mean; PSNR and SSIM (Gaussian
window of 11 pixels, or what fits) are means over samples, range 2. FD and sFD are Frechet distances to real pictures in features and in
spatial features of a small classifier; FD2FC and sFD2FC are those to the samples of full computation. Intervals are 95 % bootstrap
percentiles over samples, paired where two methods are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.capturing import captured_once
from benchmarks.quality import teacher_forced
from benchmarks.quality.closed_loop import Loop
from benchmarks.quality.judging import Judge
from benchmarks.quality.plan import planned
from benchmarks.quality.record import Store
from benchmarks.quality.run import closed_loop, redraw, settings, write
from benchmarks.quality.workloads import SAMPLERS, WORKLOADS, Bench, classifier, judged


def main(
    model: Annotated[str, typer.Option(help=f"one of {', '.join(WORKLOADS)}")] = "digits",
    methods: Annotated[str, typer.Option(help="names separated by semicolons; default: all that the table has")] = "",
    samplers: Annotated[str, typer.Option(help=f"of {'; '.join(SAMPLERS)}; separated by semicolons")] = "; ".join(SAMPLERS),
    nfc: Annotated[str, typer.Option(help="budgets separated by semicolons; default: all of each sampler")] = "",
    parts: Annotated[str, typer.Option(help="closed; forced: the closed loop, teacher forcing")] = "closed; forced",
    samples: Annotated[int, typer.Option(help="judged samples for each method and budget", min=2)] = 300,
    groups: Annotated[int, typer.Option(help="groups of seeds", min=1)] = 3,
    batch: Annotated[int, typer.Option(help="samples a batch; guidance doubles it", min=1)] = 25,
    calibration_batches: Annotated[int, typer.Option(help="batches that thresholds are found with", min=1)] = 2,
    compiles: Annotated[bool, typer.Option("--compile/--no-compile", help="torch.compile, with hoisting")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    out: Annotated[Path, typer.Option(help="folder for MODEL.json, .csv, .npz, .md and pictures")] = Path("out/quality"),
    resume: Annotated[bool, typer.Option("--resume", help="keep the cells that --out has; run the others")] = False,
    report: Annotated[bool, typer.Option("--report", help="run nothing; write report and pictures of --out again")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="few steps, samples and methods: says that it runs, nothing else")] = False,
) -> None:
    """Draw, judge and compare; write the record, the pictures and the report."""
    if model not in WORKLOADS:
        raise typer.BadParameter(f"{model}: expected one of {', '.join(WORKLOADS)}")
    console = Console()
    if report:
        for path in redraw(out, model):
            console.print(str(path), highlight=False)
        return
    plan = planned(samplers, nfc, methods, parts, samples, groups, batch, calibration_batches, quick=quick)
    torch.manual_seed(0)
    bench = Bench.of(WORKLOADS[model], device)
    judge = Judge(bench, classifier(model))
    told = settings(bench, plan, judge, compiles=compiles, protocol=(__doc__ or "").partition("\n\n")[2])
    store = Store.resumed(out, told) if resume else Store(out, told)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with captured_once(), Progress(*columns, console=console) as bar:
        task = bar.add_task("loading", total=plan.cells * plan.closed + plan.forced)
        say: Callable[[str], None] = lambda what: bar.update(task, description=what)  # noqa: E731
        if plan.closed:
            lot = judged(plan.samples, plan.groups, plan.batch)
            loop = Loop(bench, lot, compiles=compiles, calibrated_on=plan.calibration_batches, told=say)
            closed_loop(loop, judge, plan, store, lambda: bar.advance(task))
        if plan.forced and store.forced is None:
            some = {name: teacher_forced.ESTIMATORS[name] for name in teacher_forced.SHOWN}
            fewer: dict[str, Any] = {"batches": 1, "batch": 2, "intervals": (3,), "estimators": some} if quick else {}
            store.forced = teacher_forced.measured(bench, plan.samplers[0], told=say, **fewer)
        bar.update(task, completed=plan.cells * plan.closed + plan.forced)
    for path in write(store):
        console.print(str(path), highlight=False)


if __name__ == "__main__":
    typer.run(main)
