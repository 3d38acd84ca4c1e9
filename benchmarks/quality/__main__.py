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

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import rfc_fx
from benchmarks.capturing import captured_once
from benchmarks.quality import plots as quality_plots
from benchmarks.quality import teacher_forced
from benchmarks.quality.closed_loop import Drawn, Loop
from benchmarks.quality.judging import Cell, Judge, Reference
from benchmarks.quality.methods import ENTRIES, FULL, METHODS, Entry, chosen
from benchmarks.quality.methods import QUICK as QUICK_METHODS
from benchmarks.quality.readme import in_readme
from benchmarks.quality.record import Store, key, read_arrays
from benchmarks.quality.report import markdown
from benchmarks.quality.workloads import QUICK, SAMPLERS, WORKLOADS, Bench, Sampler, classifier, judged
from rfc_fx.tools.calibrate import named
from rfc_fx.tools.summary_json import versions

ORDER = [entry.name for entry in ENTRIES]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be run."""

    samplers: list[Sampler]
    entries: list[Entry]
    samples: int
    groups: int
    batch: int
    calibration_batches: int
    closed: bool
    forced: bool
    quick: bool

    @property
    def cells(self) -> int:
        """Of the closed loop, full computation counted."""
        return len(self.samplers) + sum(len(sampler.judged_at(entry.kind)) for sampler in self.samplers for entry in self.entries)


def settings(bench: Bench, plan: Plan, judge: Judge, *, compiles: bool) -> dict[str, Any]:
    """Everything that decides what was measured."""
    return {
        "model": bench.workload.name,
        "what": bench.workload.what,
        "real": bench.workload.real_is,
        "real_samples": judge.real_count,
        "guidance": bench.workload.guidance,
        "samplers": {s.name: {"what": s.what, "steps": s.steps, "budgets": list(s.budgets), "shown": list(s.shown)} for s in plan.samplers},
        "samples": plan.samples,
        "groups": plan.groups,
        "batch": plan.batch,
        "calibration_samples": plan.calibration_batches * plan.batch,
        "compiled": compiles,
        "device": str(bench.device),
        "dtype": str(next(bench.model.parameters()).dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "protocol": (__doc__ or "").partition("\n\n")[2],
    }


def closed_loop(loop: Loop, judge: Judge, plan: Plan, store: Store, done: Callable[[], None]) -> None:
    """All cells that the store has not; it is written after every one."""
    references: dict[str, Reference] = {}

    def kept(drawn: Drawn, sampler: Sampler, budget: int, name: str, more: dict[str, Any]) -> None:
        cell = Cell(drawn, references[sampler.name], judge, loop.lot.labels, plan.groups)
        shown = name == FULL or budget in sampler.shown
        errors = None if name == FULL else cell.errors
        store.keep(sampler.name, budget, name, cell.figures() | more, errors, drawn.samples if shown else None)
        done()

    for sampler in plan.samplers:
        drawn = loop.full(sampler)
        references[sampler.name] = Reference.of(drawn, judge)
        kept(drawn, sampler, sampler.steps, FULL, {})
    by_name = {sampler.name: sampler for sampler in plan.samplers}
    for cell in store.cells.values():
        if cell.get("threshold") is not None and cell["method"] in METHODS and cell["sampler"] in by_name:
            loop.remember(METHODS[cell["method"]], by_name[cell["sampler"]], cell["budget"], cell["threshold"])
    for entry in plan.entries:
        for sampler in plan.samplers:
            for budget in sampler.judged_at(entry.kind):
                if key(sampler.name, budget, entry.name) in store.cells:
                    done()
                    continue
                try:
                    method, found = loop.method(entry, sampler, budget)
                    loop.told(f"{entry.name}, {sampler.name}, NFC {budget}")
                    more: dict[str, Any] = {}
                    if found is not None:
                        more = {"threshold": found.threshold, "calibrated_nfc": found.value, "measured": found.measured}
                    if entry.forecasts:
                        more = {"forecast": named(method.estimator)}
                    kept(loop.draw(method, sampler), sampler, budget, entry.name, more)
                except rfc_fx.RFCError as error:
                    store.refused[entry.name] = str(error).partition("\n")[0]
                store.write(ORDER)


def written(store: Store) -> list[Path]:
    """The record, the pictures and the report."""
    record = store.write(ORDER)
    made = quality_plots.draw(record, store.arrays, store.out)
    report = store.out / f"{store.name}.md"
    report.write_text(markdown(record))
    return [report, *made]


def redrawn(out: Path, model: str) -> list[Path]:
    """The pictures and the report of a record that lies there."""
    record = json.loads((out / f"{model}.json").read_text())
    made = quality_plots.draw(record, read_arrays(out / f"{model}.npz"), out)
    report = out / f"{model}.md"
    report.write_text(markdown(record))
    return [report, *made]


def planned(
    samplers: str, nfc: str, methods: str, parts: str, samples: int, groups: int, batch: int, calibration_batches: int, *, quick: bool
) -> Plan:
    """The options, checked; BadParameter for names that nothing has."""
    for text, known in ((samplers, SAMPLERS), (parts, ("closed", "forced"))):
        if unknown := [name for name in _list(text) if name not in known]:
            raise typer.BadParameter(f"{', '.join(unknown)}: expected of {'; '.join(known)}")
    wanted = [int(budget) for budget in _list(nfc)]
    of = [QUICK] if quick else [SAMPLERS[name] for name in _list(samplers)]
    if wanted:
        of = [sampler.at(wanted) for sampler in of]
    try:
        entries = chosen(_list(methods) or (QUICK_METHODS if quick else METHODS))
    except KeyError as error:
        raise typer.BadParameter(f"{error.args[0]}: expected of {'; '.join(METHODS)}") from None
    if quick:
        samples, groups, batch, calibration_batches = 12, 3, 4, 1
    return Plan(
        samplers=[sampler for sampler in of if sampler.budgets],
        entries=entries,
        samples=samples,
        groups=groups,
        batch=batch,
        calibration_batches=calibration_batches,
        closed="closed" in parts,
        forced="forced" in parts,
        quick=quick,
    )


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(";") if part.strip()]


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
    readme: Annotated[Path | None, typer.Option(help="run nothing; write the tables of --out into this README")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="few steps, samples and methods: says that it runs, nothing else")] = False,
) -> None:
    """Draw, judge and compare; write the record, the pictures and the report."""
    if model not in WORKLOADS:
        raise typer.BadParameter(f"{model}: expected one of {', '.join(WORKLOADS)}")
    console = Console()
    if readme is not None:
        readme.write_text(in_readme(readme.read_text(), out))
        return
    if report:
        for path in redrawn(out, model):
            console.print(str(path), highlight=False)
        return
    plan = planned(samplers, nfc, methods, parts, samples, groups, batch, calibration_batches, quick=quick)
    torch.manual_seed(0)
    bench = Bench.of(WORKLOADS[model], device)
    judge = Judge(bench, classifier(model))
    told = settings(bench, plan, judge, compiles=compiles)
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
    for path in written(store):
        console.print(str(path), highlight=False)


if __name__ == "__main__":
    typer.run(main)
