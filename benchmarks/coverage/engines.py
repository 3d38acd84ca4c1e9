"""Engines of every class: exported, loaded, and held against the model over a generation; `python -m benchmarks.coverage --engines`."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
import torch.utils._pytree as pytree
import typer
from torch import Tensor

import rfc
import rfc_export
import rfc_fx
from benchmarks.coverage.classes.spec import Spec
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

MOST_NAMED = 8
"""Classes that are named with a reason they share; of more their number is said."""

MOST_READ, MOST_SAID = 4000, 360
"""Characters of an error that are read, and those that are kept when the machine's folders are taken out."""


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
    "onnx bfloat16": Variant(backend="onnx", dtype=torch.bfloat16),
    "onnx LogSNR": Variant(backend="onnx", method=_log_snr),
    "onnx TaylorSeer": Variant(backend="onnx", method=lambda: rfc.TaylorSeer(interval=3, order=2)),
    "onnx First-Block": Variant(backend="onnx", method=lambda: rfc.FirstBlockCache(threshold=0.1), blocks=2),
    "onnx SpeCa": Variant(backend="onnx", method=rfc.SpeCa),
    "onnx ToCa": Variant(backend="onnx", method=lambda: rfc.ToCa(interval=3)),
    "aoti": Variant(backend="aoti"),
    "aoti cond": Variant(backend="aoti", config=rfc_fx.Config(dispatch="cond")),
    "aoti float16": Variant(backend="aoti", dtype=torch.float16),
    "aoti bfloat16": Variant(backend="aoti", dtype=torch.bfloat16),
    "aoti LogSNR": Variant(backend="aoti", method=_log_snr),
}

ROTATED = (
    ("onnx float16", "onnx bfloat16"),
    ("onnx TaylorSeer", "onnx First-Block", "onnx SpeCa", "onnx ToCa"),
    ("aoti cond", "aoti float16", "aoti bfloat16", "aoti LogSNR"),
)
"""Variants of which a class has one: that which the fewest classes have."""


def exported(spec: Spec, variant: Variant, path: Path) -> tuple[rfc_fx.CachedModel, dict[str, Any]]:
    """The model of an engine that now lies at the path, and the arguments of its call."""
    model = spec.model(layers=variant.blocks)
    arguments = spec.arguments(model)
    if variant.dtype is not torch.float32:  # a class may have parts of a type of its own
        model = model.to(variant.dtype)
        arguments = pytree.tree_map_only(Tensor, lambda t: t.to(variant.dtype) if t.is_floating_point() else t, arguments)
        try:
            model(**arguments)
        except Exception as error:
            raise ValueError(f"the model itself does not run in {variant.dtype}: {error}") from error
    cached = rfc_fx.transform(model, variant.method(), example_inputs=arguments)
    rfc_export.export(cached, path, backend=variant.backend, example_inputs=arguments, config=variant.config)
    return cached, arguments


def check_engine(name: str, variant: Variant) -> Record:
    """Export one class and run it beside its model; what was refused is in "error", what was left behind in "left"."""
    spec, begin = all_specs()[name], time.perf_counter()
    with warnings.catch_warnings(), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        path = Path(folder) / "engine"
        try:
            cached, arguments = exported(spec, variant, path)
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
            row = {"error": f"{type(error).__name__}: {shorten(public(one_line(error, MOST_READ)), MOST_SAID, placeholder='...')}"}
            row["left"] = sorted(entry.name for entry in Path(folder).iterdir())
        return row | {"seconds": round(time.perf_counter() - begin, 1)}


def fill_engines(names: Sequence[str] | None, variants: Sequence[str] | None, out: Path = RECORD) -> None:
    """Check the classes whose cells are empty, or those named, and write each cell as it comes.

    Raises BadParameter for an unknown variant, and where the record is of another torch, diffusers or ONNX Runtime.
    """
    chosen = list(variants or VARIANTS)
    if unknown := sorted(set(chosen) - set(VARIANTS)):
        raise typer.BadParameter(f"unknown: {', '.join(unknown)}; known: {', '.join(VARIANTS)}")
    cells = [(name, variant) for variant in chosen for name in names] if names else missing(_record(out)["rows"], chosen)
    for name, variant in cells:
        row = check_engine(name, VARIANTS[variant])
        record = _record(out)  # anew: another variant may be filled in by another process
        record["rows"].setdefault(name, {})[variant] = row
        write_json(out, record)
        print(f"{name}, {variant}: {cell(row)} {row['error']}", flush=True)


def missing(rows: Mapping[str, Mapping[str, Record]], variants: Sequence[str]) -> list[tuple[str, str]]:
    """Class and variant of each empty cell; of rotated variants, a class without any gets the one that the fewest classes have."""
    counts = Counter(variant for cells in rows.values() for variant in cells)
    alone = [(variant,) for variant in VARIANTS if not any(variant in group for group in ROTATED)]
    cells = []
    for group in (*alone, *ROTATED):
        chosen = [variant for variant in group if variant in variants]
        for name in all_specs() if chosen else ():
            if not any(variant in rows.get(name, {}) for variant in group):
                cells.append((name, min(chosen, key=counts.__getitem__)))
                counts[cells[-1][1]] += 1
    return cells


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
    return "\n".join([table(["class", *columns], lines).rstrip(), "", f"Run: {'; '.join(counts)}.", *reasons(rows)])


def reasons(rows: Mapping[str, Mapping[str, Record]]) -> list[str]:
    """Why classes were refused, each reason once, with what was left behind."""
    refused: dict[str, dict[str, list[str]]] = {}
    for name, cells in rows.items():
        for column, row in cells.items():
            if row["error"]:
                why = row["error"] + (f" Left behind: {', '.join(row['left'])}" if row["left"] else "")
                refused.setdefault(why, {}).setdefault(name.removesuffix("Model"), []).append(column)
    lines = []
    for why, names in refused.items():
        columns = sorted({column for of in names.values() for column in of}, key=list(VARIANTS).index)
        who = ", ".join(names) if len(names) <= MOST_NAMED else f"{len(names)} classes"
        lines.append(f"* {who}; {', '.join(columns)}: {why}")
    return ["", *lines] if lines else []


def with_engine_classes(page: str, record: Record) -> str:
    """The page with the table between its marks."""
    return between(page, "engine classes", engine_classes(record))


def between(page: str, marks: str, text: str) -> str:
    """The page with the text between the marks of that name."""
    begin, end = f"<!-- {marks}: begin -->\n", f"<!-- {marks}: end -->"
    before, _, rest = page.partition(begin)
    return f"{before}{begin}{text}\n{end}{rest.partition(end)[2]}"
