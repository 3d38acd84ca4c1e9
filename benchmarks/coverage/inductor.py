"""The column with the real Inductor: whether the cached and the plain model compile, and how far compiled is from eager."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import typer

import rfc
import rfc_fx
from benchmarks.coverage.checks import calls, difference
from benchmarks.coverage.classes.spec import prediction
from benchmarks.coverage.rows import Inductor, public, read, write
from benchmarks.coverage.specs import all_specs
from benchmarks.files import read_json
from rfc_fx.tools.load import one_line
from rfc_fx.tools.summary_json import versions

FIRST = (
    "MochiTransformer3DModel",
    "ZImageTransformer2DModel",
    "Lumina2Transformer2DModel",
    "QwenImageTransformer2DModel",
    "FluxTransformer2DModel",
    "WanTransformer3DModel",
    "SD3Transformer2DModel",
    "DiTTransformer2DModel",
    "PixArtTransformer2DModel",
    "HunyuanVideoTransformer3DModel",
    "CogVideoXTransformer3DModel",
    "LTXVideoTransformer3DModel",
    "SanaTransformer2DModel",
    "Flux2Transformer2DModel",
    "ChromaTransformer2DModel",
    "AuraFlowTransformer2DModel",
    "HunyuanDiT2DModel",
    "LuminaNextDiT2DModel",
)
"""What failed once, and the commonest families: they are compiled before the others."""


def check_inductor(name: str) -> Inductor:
    """Compile one class with default options: four steps, two of them estimated."""
    torch.set_num_threads(1)
    spec = all_specs()[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = spec.model()
        arguments = spec.arguments(model)
        steps = calls(spec, arguments, 4)

        def cached() -> float:
            ours, eager = (rfc_fx.transform(model, rfc.RFC(tau=float("inf"), warmup=2)) for _ in range(2))
            step = torch.compile(ours, fullgraph=True)
            return max(_relative(step(**call), eager(**call)) for call in steps)

        def plain() -> float:
            return _relative(torch.compile(model)(**steps[0]), model(**steps[0]))

        ours, theirs = _attempt(cached), _attempt(plain)
    return Inductor(
        error=ours if isinstance(ours, str) else "",
        difference=None if isinstance(ours, str) else ours,
        plain_error=theirs if isinstance(theirs, str) else "",
    )


def _attempt(function: Callable[[], float]) -> float | str:
    torch._dynamo.reset()
    try:
        with torch.no_grad():
            return function()
    except Exception as error:
        return f"{type(error).__name__}: {public(one_line(error))}"


def _relative(got: Any, expected: Any) -> float:
    return difference(got, expected) / max(float(one.abs().max()) for one in prediction(expected))


def fill_in(out: Path, names: list[str] | None, jobs: int) -> None:
    """Compile the classes of a record whose column is empty, or those named, and write each row as it comes.

    Raises BadParameter where the record is of another torch or diffusers.
    """
    record, rows = read_json(out / "coverage.json")["versions"], read(out)
    now = versions()
    if (record["torch"], record["diffusers"]) != (now["torch"], now["diffusers"]):
        raise typer.BadParameter(f"{out}: holds rows of {record}, this is {now}; run without --inductor first")
    known = {row.name: row for row in rows}
    todo = names or [name for name in (*FIRST, *known) if name in known and known[name].inductor is None]
    if missing := sorted(set(todo) - set(known)):
        raise typer.BadParameter(f"{out}: has no row of {', '.join(missing)}; run these without --inductor first")
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        todo = list(dict.fromkeys(todo))
        for name, seen in zip(todo, pool.map(check_inductor, todo), strict=True):
            known[name].inductor = seen
            write(out, rows, record)
            print(f"{name}: {seen.cell}", flush=True)
