"""Programs of a class of each family built by TensorRT-RTX, without a GPU: `python -m benchmarks.coverage.rtx` (extra tensorrt-rtx)."""

from __future__ import annotations

import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.coverage.engines import VARIANTS, between, exported
from benchmarks.coverage.specs import FAMILIES, all_specs
from benchmarks.files import RESULTS, Record, read_json, write_json
from rfc_export.tensorrt.rtx import build_with_rtx
from rfc_fx.tools.summary_json import versions

RECORD = RESULTS / "engines" / "rtx.json"
VARIANT = "onnx LogSNR"
CAPABILITY = "8.9"
"""TensorRT-RTX 1.7 builds for 7.5 to 8.9 and 12.0, not for data centres' 9.0 and 10.0."""


def built(name: str) -> Record:
    """The size of each program's engine in bytes, or why there is none."""
    with warnings.catch_warnings(), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        path = Path(folder) / "engine"
        exported(all_specs()[name], VARIANTS[VARIANT], path)
        return {program.stem: build_with_rtx(program, CAPABILITY) for program in sorted(path.glob("*.onnx"))}


def programs_built(record: Record) -> str:
    """How many programs were built, and which were not, by class."""
    rows = record["rows"]
    sizes = [one for programs in rows.values() for one in programs.values()]
    count = sum(isinstance(one, int) for one in sizes)
    names = ", ".join(name.removesuffix("Model") for name in rows)
    refused = [
        f"* {name.removesuffix('Model')}, {program.upper()}: {one}"
        for name, programs in rows.items()
        for program, one in programs.items()
        if isinstance(one, str)
    ]
    head = (
        f"TensorRT-RTX {record['versions']['tensorrt_rtx']} for compute capability {record['compute_capability']}, without a GPU, "
        f"builds {count} of {len(sizes)} programs (ONNX, host dispatch, LogSNR) of {len(rows)} classes: {names}."
    )
    return "\n".join([head, *(["", *refused] if refused else [])])


def with_programs_built(page: str, record: Record) -> str:
    """The page with what was built between its marks."""
    return between(page, "engine rtx", programs_built(record))


def main(
    names: Annotated[list[str] | None, typer.Argument(help="classes (default: of the families those that are missing)")] = None,
) -> None:
    """Build the programs class by class; each is written as it comes."""
    torch.set_num_threads(1)
    here = versions() | {"tensorrt_rtx": version("tensorrt-rtx")}
    record: Record = read_json(RECORD) if RECORD.exists() else {"versions": here, "compute_capability": CAPABILITY, "rows": {}}
    if record["versions"] != here:
        raise typer.BadParameter(f"{RECORD}: holds rows of {record['versions']}, this is {here}; move it away first")
    for name in names or [name for name in FAMILIES if name not in record["rows"]]:
        record["rows"][name] = built(name)
        write_json(RECORD, record)
        print(f"{name}: {record['rows'][name]}", flush=True)


if __name__ == "__main__":
    typer.run(main)
