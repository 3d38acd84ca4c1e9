"""What smaller state costs in accuracy: `python -m benchmarks.state`, on the shipped digits model.

Every variant draws the same samples (one of each class for each seed) with the same steps in full. "error against full-precision state" is
||x - x_0|| / ||x_0|| of the final samples, x_0 those of the same estimator with its state in the model's type and the whole input; PSNR is
against full computation of the same seeds. Not compiled: nothing is timed here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import track
from torch import Tensor

import rfc
import rfc_fx
from benchmarks.files import Record, write_json, write_text
from benchmarks.latency.methods import equal_gaps, full_steps
from rfc_fx.tools.compare import psnr
from rfc_fx.tools.summary_json import versions
from rfc_fx.zoo import digits_noise, load_digits, sample

FAMILIES: dict[str, list[rfc.Estimator]] = {
    "Taylor m=1": [rfc.Taylor(order=1)],
    "RFE m=1": [rfc.RFE(order=1), rfc.RFE(order=1, sketch=4), rfc.RFE(order=1, sketch=16)],
    "Projective m=2": [rfc.Projective(order=2), rfc.Projective(order=2, sketch=16)],
}


TYPES: list[tuple[torch.dtype | None, torch.dtype | None]] = [
    (None, None),
    (torch.bfloat16, None),
    (torch.float16, None),
    (torch.float8_e4m3fn, None),
    (torch.int8, None),
    (torch.int8, torch.bfloat16),
    (torch.int8, torch.int8),
]
"""(type of the differences, type of the output); None: the model's."""


def draw(model: Any, scheduler: Any, seeds: int) -> Tensor:
    """A sample of each class for each seed."""
    labels = torch.arange(10)
    return torch.cat([sample(model, scheduler, labels, digits_noise([seed] * 10)) for seed in range(seeds)])


def rows(seeds: int, nfc: int) -> list[dict[str, Any]]:
    """Error, PSNR and bytes of every estimator and type."""
    model, scheduler = load_digits()
    steps = full_steps(equal_gaps(50, nfc), 50)
    whole = draw(model, scheduler, seeds)
    cells = []
    for name, estimators in track(FAMILIES.items(), "estimators"):
        reference: Tensor | None = None
        for estimator in estimators:
            for differences, outputs in TYPES:
                kept = estimator
                if (differences, outputs) != (None, None):
                    kept = rfc.Stored(estimator=estimator, differences=differences, outputs=outputs)
                cached = rfc_fx.transform(model, rfc.Method(estimator=kept, schedule=rfc.Listed(full_steps=steps)))
                samples = draw(cached, scheduler, seeds)
                reference = samples if reference is None else reference
                cells.append(
                    {
                        "estimator": name,
                        "sketch": getattr(estimator, "sketch", None),
                        "differences": _name(differences),
                        "outputs": _name(outputs),
                        "state_bytes": cached.plan().state_bytes,
                        "error": float((samples - reference).norm() / reference.norm()),
                        "psnr_db": psnr(samples, whole),
                    }
                )
    return cells


def _name(dtype: torch.dtype | None) -> str:
    return "float32" if dtype is None else str(dtype).removeprefix("torch.")


def markdown(record: dict[str, Any]) -> str:
    """A row for each estimator and sketch, the types beside each other."""
    settings = record["settings"]
    types = [(_name(a), _name(b)) for a, b in TYPES]
    heads = [a if b == "float32" else f"{a}, O {b}" for a, b in types]
    lines = [
        f"The shipped digits model, {settings['samples']} samples, {settings['nfc']} of 50 steps full, float32 on the CPU. In each cell: "
        "error of the final samples against full-precision state (PSNR in dB against full computation; state MiB of a batch of 20).",
        "",
        f"| estimator | {' | '.join(heads)} |",
        "|---" * (len(types) + 1) + "|",
    ]
    groups: dict[tuple[str, Any], dict[tuple[str, str], dict[str, Any]]] = {}
    for row in record["rows"]:
        groups.setdefault((row["estimator"], row["sketch"]), {})[row["differences"], row["outputs"]] = row
    for (name, sketch), cells in groups.items():
        label = name if sketch in (None, 1) else f"{name}, sketch {sketch}"
        texts = (f"{cells[t]['error']:.1e} ({cells[t]['psnr_db']:.1f}; {cells[t]['state_bytes'] / 2**20:.1f})" for t in types)
        lines.append(f"| {label} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def largest_error(record: Record, differences: str, outputs: str) -> float:
    """Of the estimators that measure the whole input, with state in these types."""
    rows = (row for row in record["rows"] if row["sketch"] in (None, 1))
    return max(float(row["error"]) for row in rows if (row["differences"], row["outputs"]) == (differences, outputs))


def main(
    seeds: Annotated[int, typer.Option(help="seeds; each draws all ten classes", min=1)] = 4,
    nfc: Annotated[int, typer.Option(help="steps computed in full, of 50", min=3)] = 14,
    out: Annotated[Path, typer.Option(help="folder for digits.json and digits.md")] = Path("out/state"),
) -> None:
    """Draw the same samples with smaller and smaller state, and say what that changes."""
    where = out / "digits.json"
    record = {
        "settings": {"samples": 10 * seeds, "nfc": nfc, "versions": versions(), "protocol": __doc__},
        "rows": rows(seeds, nfc),
    }
    write_json(where, record)
    write_text(where.with_suffix(".md"), markdown(record))
    typer.echo(markdown(record))
