"""Guard against regressions: ratios and counts of the digits model against the committed ones: `python -m benchmarks.smoke`.

Compiled full computation, the eager twin and two estimators (hoisted, compiled) take turns, a generation each. Ratios of times are medians
of the rounds' own ratios, so that a machine's speed falls out; they only warn. Counts (bytes, FLOPs, sites, graphs) have no spread: one
that moved is an error. What Inductor made of the programs is compared where torch is the same.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

import rfc
import rfc.eager
import rfc_fx
from benchmarks.files import RESULTS, Record, write_json
from benchmarks.latency.compiling import first_runs
from benchmarks.latency.methods import equal_gaps
from benchmarks.latency.timing import TimedVariant
from benchmarks.latency.workloads import WORKLOADS, timesteps_of
from rfc.phase import ESTIMATE, FULL
from rfc_fx.tools.summary_json import versions

ESTIMATORS: dict[str, rfc.Estimator] = {"Taylor m=1": rfc.Taylor(order=1), "RFE m=1": rfc.RFE(order=1)}


COMPILED, TWIN = "full, compiled", "RFE m=1, eager twin"


STEPS, NFC = 14, 5


COMMITTED = RESULTS / "smoke.json"


OF_INDUCTOR = ("estimate_bytes_per_state_byte", "estimate_inductor_bytes", "graphs")
"""Counts that depend on torch's version as well."""


def variants(samples: int, backend: str) -> tuple[list[TimedVariant], list[dict[str, torch.Tensor]]]:
    """What takes turns, and the calls of a generation."""
    model, plan = WORKLOADS["digits"].model(), equal_gaps(STEPS, NFC)
    calls = WORKLOADS["digits"].calls(model, samples, STEPS)
    twin = rfc.eager.cached(model, rfc.Method(estimator=ESTIMATORS["RFE m=1"], schedule=plan))
    ways = [TimedVariant(COMPILED, torch.compile(model, fullgraph=True, backend=backend)), TimedVariant(TWIN, twin, twin)]
    for name, estimator in ESTIMATORS.items():
        cached = rfc_fx.transform(model, rfc.Method(estimator=estimator, schedule=plan), config=rfc_fx.Config(hoist=True))
        cached.prepare(timesteps_of(calls))
        ways.append(TimedVariant(name, torch.compile(cached, fullgraph=True, backend=backend), cached))
    return ways, calls


def counts(variant: TimedVariant, first: Any) -> Record:
    """What has no spread."""
    plan = variant.cache.plan()
    values = {
        "sites": len(plan.sites),
        "state_bytes": plan.state_bytes,
        "full_flops": plan.full_flops,
        "estimate_flops": plan.estimate_flops,
        "estimate_flops_share": plan.estimate_share,
        "graphs": first.frames,
    }
    if first.estimate_bytes is not None:
        values |= {
            "estimate_inductor_bytes": first.estimate_bytes,
            "estimate_bytes_per_state_byte": first.estimate_bytes / plan.state_bytes,
        }
    return values


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def ratios(rounds: list[dict[str, dict[str, float]]], name: str) -> Record:
    """An estimator's times over those of compiled full computation and of the twin, each within a round."""
    return {
        "estimate_share_of_full": spread([times[name][ESTIMATE.name] / times[COMPILED][FULL.name] for times in rounds]),
        "full_step_of_full": spread([times[name][FULL.name] / times[COMPILED][FULL.name] for times in rounds]),
        "generation_of_full": spread([times[name]["generation"] / times[COMPILED]["generation"] for times in rounds]),
        "generation_of_twin": spread([times[name]["generation"] / times[TWIN]["generation"] for times in rounds]),
    }


def one_round(ways: list[TimedVariant], calls: list[dict[str, torch.Tensor]], device: torch.device) -> dict[str, dict[str, float]]:
    """A generation of every variant: medians of its steps, and all of it."""
    times = {}
    for variant in ways:
        variant.steps_ms.clear()
        variant.run(calls, device, count=True)
        times[variant.name] = {phase: statistics.median(steps) for phase, steps in variant.steps_ms.items()}
        times[variant.name]["generation"] = variant.generations_ms[-1]
    return times


def measured(samples: int, rounds: int, backend: str) -> Record:
    """Counts and ratios of this tree on this machine."""
    device = torch.device("cpu")
    ways, calls = variants(samples, backend)
    first = {variant.name: first_runs(variant, calls, equal_gaps(STEPS, NFC).warmup, device) for variant in ways}
    taken = [one_round(ways, calls, device) for _ in range(rounds)]
    return {
        "settings": {"model": "digits", "samples": samples, "steps": STEPS, "nfc": NFC, "rounds": rounds, "backend": backend},
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "protocol": __doc__,
        "counts": {variant.name: counts(variant, first[variant.name]) for variant in ways if isinstance(variant.cache, rfc_fx.CachedModel)},
        "ratios": {name: ratios(taken, name) for name in ESTIMATORS},
    }


def compared(now: Record, committed: Record, factor: float) -> list[tuple[str, str, str, str]]:
    """(what, now, committed, verdict) for every count that moved and every ratio; a verdict that begins with "moved" is an error."""
    same_torch = now["versions"]["torch"].split("+")[0] == committed["versions"]["torch"].split("+")[0]
    same_work = all(now["settings"][key] == committed["settings"][key] for key in ("model", "samples", "steps", "nfc", "backend"))
    rows = [] if same_work else [("settings", str(now["settings"]), str(committed["settings"]), "moved: nothing can be compared")]
    for kind, judge in (("counts", None), ("ratios", factor)):
        for name in dict.fromkeys([*now[kind], *committed[kind]]):
            ours, theirs = now[kind].get(name, {}), committed[kind].get(name, {})
            for key in dict.fromkeys([*ours, *theirs]):
                a, b = ours.get(key), theirs.get(key)
                verdict = counted(key, a, b, same_torch=same_torch) if judge is None else timed(a, b, judge)
                if verdict:
                    rows.append((f"{name}: {key}", said(a), said(b), verdict))
    return rows


def counted(key: str, a: float | None, b: float | None, *, same_torch: bool) -> str:
    """What became of a count; "" where it stayed."""
    if a == b:
        return ""
    if key in OF_INDUCTOR and not same_torch:
        return "another torch"
    return "moved" if a is None or b is None else f"moved by {a - b:+g}"


def timed(a: dict[str, float] | None, b: dict[str, float] | None, factor: float) -> str:
    """Whether a ratio is within the spreads of both runs, beyond them, or beyond them by more than a factor."""
    if a is None or b is None:
        return "moved"
    if a["low"] <= b["high"] and b["low"] <= a["high"]:
        return "within the spread"
    change = a["median"] / b["median"]
    word = "slower" if change > 1 else "faster"
    beyond = f"beyond the spread, {change:.2f} of what it was"
    return f"warning: {word}, {beyond}" if max(change, 1 / change) > factor else beyond


def said(value: Any) -> str:
    """A count, or a ratio with its spread."""
    if isinstance(value, dict):
        return f"{value['median']:.3f} ({value['low']:.3f}-{value['high']:.3f})"
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def main(
    update: Annotated[bool, typer.Option("--update", help="write what was measured in place of the committed record")] = False,
    committed: Annotated[Path, typer.Option(help="the record to compare with")] = COMMITTED,
    rounds: Annotated[int, typer.Option(help="generations of every variant", min=2)] = 5,
    samples: Annotated[int, typer.Option(help="samples a batch; guidance doubles it", min=1)] = 2,
    factor: Annotated[float, typer.Option(help="a ratio of times that moved by more, beyond the spread, is a warning", min=1)] = 1.25,
    backend: Annotated[str, typer.Option(help="of torch.compile")] = "inductor",
) -> None:
    """Compare ratios and counts with the committed ones; exit with 1 where a count moved."""
    if not update and not committed.exists():
        raise typer.BadParameter(f"{committed.name} does not exist; --update writes it")
    now = measured(samples, rounds, backend)
    if update:
        write_json(committed, now)
    rows = compared(now, json.loads(committed.read_text()), factor)
    table = Table("what", "now", "committed", "", box=None)
    for row in rows:
        table.add_row(*row)
    Console(width=150).print(table)
    if any(verdict.startswith("moved") for *_, verdict in rows):
        print("counts moved; if that was meant: make bench-smoke UPDATE=--update")
        raise typer.Exit(1)
    print("no count moved")
