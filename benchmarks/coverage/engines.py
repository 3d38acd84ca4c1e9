"""Engines of every class: exported, loaded, and held against the model over a generation; `python -m benchmarks.coverage --engines`."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.utils._pytree as pytree
import typer
from torch import Tensor

import rfc
import rfc_export
import rfc_fx
from benchmarks.coverage.rows import public
from benchmarks.coverage.specs import all_specs
from benchmarks.files import RESULTS, Record, read_json, write_json
from benchmarks.tables import table
from rfc.method import Method
from rfc_export.parity import compare
from rfc_export.specs import BackendName
from rfc_fx.tools.load import one_line
from rfc_fx.tools.summary_json import versions

RECORD = RESULTS / "engines" / "classes.json"
STEPS = 20


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How a class is exported."""

    backend: BackendName
    config: rfc_fx.Config = rfc_fx.Config()
    dtype: torch.dtype = torch.float32
    method: Callable[[], Method] = lambda: rfc.RFC(tau=0.15)
    blocks: int = 1
    """How often every kind of block occurs."""


def _log_snr() -> Method:
    return rfc.LogSNR(lambdas=[8.0 - 0.8 * step for step in range(STEPS)], nfc=10)


VARIANTS: dict[str, Variant] = {
    "onnx": Variant(backend="onnx"),
    "onnx cond": Variant(backend="onnx", config=rfc_fx.Config(dispatch="cond")),
    "onnx float16": Variant(backend="onnx", dtype=torch.float16),
    "onnx LogSNR": Variant(backend="onnx", method=_log_snr),
    "onnx TaylorSeer": Variant(backend="onnx", method=lambda: rfc.TaylorSeer(interval=3, order=2)),
    "onnx First-Block": Variant(backend="onnx", method=lambda: rfc.FirstBlockCache(threshold=0.1), blocks=2),
    "onnx SpeCa": Variant(backend="onnx", method=rfc.SpeCa),
    "onnx ToCa": Variant(backend="onnx", method=lambda: rfc.ToCa(interval=3)),
    "aoti": Variant(backend="aoti"),
    "aoti cond": Variant(backend="aoti", config=rfc_fx.Config(dispatch="cond")),
    "aoti float16": Variant(backend="aoti", dtype=torch.float16),
    "aoti bfloat16": Variant(backend="aoti", dtype=torch.bfloat16),
}
"""bfloat16 has no arithmetic in ONNX Runtime's CPU provider, and is refused there before anything is built."""


def check_engine(name: str, variant: Variant) -> Record:
    """Export one class and run it beside its model; what was refused is in "error", what was left behind in "left"."""
    spec, begin = all_specs()[name], time.perf_counter()
    with warnings.catch_warnings(), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        path = Path(folder) / "engine"
        try:
            model = spec.model(layers=variant.blocks)
            arguments = spec.arguments(model)
            if variant.dtype is not torch.float32:  # a class may have parts of a type of its own
                model = model.to(variant.dtype)
                arguments = pytree.tree_map_only(Tensor, lambda t: t.to(variant.dtype) if t.is_floating_point() else t, arguments)
            cached = rfc_fx.transform(model, variant.method(), example_inputs=arguments)
            rfc_export.export(cached, path, backend=variant.backend, example_inputs=arguments, config=variant.config)
            engine = rfc_export.load(path, trust=True)
            parity = compare(engine, cached, [spec.moved(arguments, step, STEPS) for step in range(STEPS)])
            row: Record = {
                "error": "",
                "difference": parity.worst,
                "same": parity.phases == parity.expected_phases,
                "full": parity.phases.count("FULL"),
                "kib": sum(file.stat().st_size for file in path.iterdir()) // 1024,
            }
        except Exception as error:
            row = {"error": f"{type(error).__name__}: {public(one_line(error))}"[:400]}
            row["left"] = sorted(entry.name for entry in Path(folder).iterdir())
        return row | {"seconds": round(time.perf_counter() - begin, 1)}


def fill_engines(names: Sequence[str] | None, variants: Sequence[str] | None, out: Path = RECORD) -> None:
    """Check the classes whose cells are empty, or those named, and write each cell as it comes.

    Raises BadParameter for an unknown variant, and where the record is of another torch, diffusers or ONNX Runtime.
    """
    chosen = list(variants or VARIANTS)
    if unknown := sorted(set(chosen) - set(VARIANTS)):
        raise typer.BadParameter(f"unknown: {', '.join(unknown)}; known: {', '.join(VARIANTS)}")
    for variant in chosen:
        for name in names or all_specs():
            if variant in _record(out)["rows"].get(name, {}) and not names:
                continue
            row = check_engine(name, VARIANTS[variant])
            record = _record(out)  # anew: another variant may be filled in by another process
            record["rows"].setdefault(name, {})[variant] = row
            write_json(out, record)
            print(f"{name}, {variant}: {cell(row)} {row['error']}", flush=True)


def _record(out: Path) -> Record:
    """The record as it lies there, an empty one where there is none; BadParameter where its versions are others."""
    here = versions()
    record: Record = read_json(out) if out.exists() else {"versions": here, "steps": STEPS, "rows": {}}
    if record["versions"] != here:
        raise typer.BadParameter(f"{out}: holds rows of {record['versions']}, this is {here}; move it away first")
    return record


def cell(row: Record | None) -> str:
    """What became of one export: full steps and the largest difference of a step."""
    if row is None:
        return "-"
    if row["error"]:
        return "refused"
    return f"{row['full']}, {row['difference']:.0e}{'' if row['same'] else ' (!)'}"


def engine_classes(record: Record) -> str:
    """The table of classes by variant, how many run, and why the others do not."""
    rows: Mapping[str, dict[str, Record]] = record["rows"]
    columns = [name for name in VARIANTS if any(name in cells for cells in rows.values())]
    lines = [[name.removesuffix("Model"), *(cell(cells.get(column)) for column in columns)] for name, cells in rows.items()]
    counts = []
    for column in columns:
        ran = [cells[column] for cells in rows.values() if column in cells]
        counts.append(f"{column} {sum(not row['error'] for row in ran)} of {len(ran)}")
    reasons = [
        f"* {name.removesuffix('Model')}, {column}: {row['error']}{' Left behind: ' + ', '.join(row['left']) if row['left'] else ''}"
        for name, cells in rows.items()
        for column, row in cells.items()
        if row["error"]
    ]
    return "\n".join([table(["class", *columns], lines).rstrip(), "", f"Run: {'; '.join(counts)}.", *([""] if reasons else []), *reasons])


def with_engine_classes(page: str, record: Record) -> str:
    """The page with the table between its marks."""
    begin, end = "<!-- engine classes: begin -->\n", "<!-- engine classes: end -->"
    before, _, rest = page.partition(begin)
    after = rest.partition(end)[2]
    return f"{before}{begin}{engine_classes(record)}\n{end}{after}"
