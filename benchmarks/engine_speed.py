"""Engines of several models beside torch.compile and the eager twin: `python -m benchmarks.engine_speed [MODEL...]`.

Each model is exported to AOTInductor and ONNX, held against its CachedModel over the generation that is timed, and timed in turns.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer

import rfc_export
import rfc_fx
from benchmarks.coverage.engines import between
from benchmarks.files import RESULTS, Record, read_json, write_json
from benchmarks.latency.methods import WHOLE, equal_gaps
from benchmarks.latency.workloads import WORKLOADS
from benchmarks.tool_tables import engine_table
from rfc_export.bench import PROTOCOL, engine_variant, measure, model_variants
from rfc_export.specs import BackendName
from rfc_export.verify import RecordedGeneration
from rfc_fx.tools.summary_json import versions

RECORD = RESULTS / "engines" / "speed.json"

MODELS = {"digits": (50, 14), "flux-thin": (50, 14), "emoji": (28, 8)}
"""Workloads, their steps, and how many of them are full."""

BACKENDS: tuple[BackendName, ...] = ("aoti", "onnx")


def measured(name: str, rounds: int) -> Record:
    """Milliseconds, bytes and the parity of each way to run one model, LogSNR's estimate of the stack at equal gaps."""
    workload, (steps, nfc) = WORKLOADS[name], MODELS[name]
    model = workload.model()
    calls = workload.calls(model, 1, steps)
    method = WHOLE["LogSNR, stack"](equal_gaps(steps, nfc), steps)
    with tempfile.TemporaryDirectory() as folder:
        variants, engines = [], []
        for backend in BACKENDS:
            path = Path(folder) / backend
            rfc_export.export(model, path, backend=backend, example_inputs=calls[0], method=method, config=rfc_fx.Config(hoist=True))
            engines.append(rfc_export.load(path, trust=True))
            variants.append(engine_variant(f"{backend}, host", engines[-1], sum(file.stat().st_size for file in path.iterdir())))
        variants += model_variants(engines[0], model, calls[0], compile=True)
        timesteps = torch.stack([call["timestep"].flatten()[0] for call in calls])
        generation = RecordedGeneration(list(calls), timesteps, f"{steps} steps of drifting inputs")
        measure(variants, generation, rounds, lambda text: typer.echo(f"{name}: {text}"), lambda: None)
        for engine in engines:
            engine.close()
    return {"what": workload.what, "steps": steps, "rounds": rounds, "variants": {variant.name: variant.record() for variant in variants}}


def speeds(record: Record) -> str:
    """A table for each model."""
    settings, models = record["versions"], record["models"]
    head = f"LogSNR of the stack at equal gaps, one sample, hoisted, float32, {settings['threads']} threads, torch {settings['torch']}."
    parts = [head]
    for name in [name for name in MODELS if name in models]:
        row = models[name]
        nfc = row["variants"]["compiled"]["nfc"]
        what = f"{row['what'][:1].upper()}{row['what'][1:]}"
        parts += [f"{what}; {nfc} of {row['steps']} steps full, {row['rounds']} generations of each in turns:", engine_table(row)]
    return "\n\n".join(part.strip() for part in parts)


def with_speeds(page: str, record: Record) -> str:
    """The page with the tables between its marks."""
    return between(page, "engine speed", speeds(record))


def main(
    names: Annotated[list[str] | None, typer.Argument(help=f"of {', '.join(MODELS)} (default: all)")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="counted generations of every variant")] = 5,
    out: Annotated[Path, typer.Option(help="the record; models that are not named keep their rows")] = RECORD,
) -> None:
    """Measure model by model; each is written as it comes."""
    if unknown := sorted({*(names or ())} - {*MODELS}):
        raise typer.BadParameter(f"unknown: {', '.join(unknown)}; known: {', '.join(MODELS)}")
    here = versions() | {"threads": torch.get_num_threads()}
    record: Record = read_json(out) if out.exists() else {"versions": here, "protocol": PROTOCOL, "models": {}}
    if record["versions"] != here:
        raise typer.BadParameter(f"{out}: holds rows of {record['versions']}, this is {here}; move it away first")
    with torch.no_grad():
        for name in names or MODELS:
            record["models"][name] = measured(name, rounds)
            write_json(out, record)


if __name__ == "__main__":
    typer.run(main)
