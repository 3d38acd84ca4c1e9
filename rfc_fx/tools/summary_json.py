"""Record: everything a comparison measured, as JSON, with units, protocol and versions."""

from __future__ import annotations

import platform
from importlib import metadata
from math import inf
from typing import Any

import torch

from rfc_fx.runtime.summary import pattern
from rfc_fx.tools.compare import DATA_RANGE, Comparison, Row
from rfc_fx.tools.variants import FULL, Variant


def summary(of: Comparison) -> dict[str, Any]:
    """Everything measured, with units in the names; numbers JSON cannot hold are the strings inf and nan."""
    weights = next(of.source.model.parameters())
    return {
        "settings": {
            "model": of.source.name,
            "model_class": type(of.source.model).__name__,
            "groups": of.source.groups,
            "seeds": of.source.seeds,
            "samples": len(of.source.groups) * len(of.source.seeds),
            "cfg": getattr(of.source, "cfg", None),
            "steps": of.settings.steps,
            "rounds": of.settings.rounds,
            "compile": of.settings.compile,
            "config": of.settings.config.as_dict(),
            "dtype": str(weights.dtype).removeprefix("torch."),
            "device": str(weights.device),
        },
        "protocol": (
            "ms per generation, a batch with one sample of every group; one short warm-up per variant, then "
            f"{of.settings.rounds} x all seeds, each drawn by every variant in turn, in one process; median, smallest and largest time; "
            "a speed-up is a ratio of medians"
        ),
        "psnr": f"dB against the eager full computation of the same seeds, all pixels of all samples, data range {DATA_RANGE:g}",
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "graphs_compiled_while_counting": of.graphs_compiled_while_counting,
        "notes": of.notes(),
        "methods": {row.method: _method(of, row) for row in of.rows},
    }


def _method(of: Comparison, row: Row) -> dict[str, Any]:
    entry = decisions(of, row) | {
        "eager_is": "the model" if row.method == FULL else "the twin, rfc.eager.cached",
        "eager": side(row.eager),
        "graph_is": _graph_is(of, row),
        "granularity": row.best.granularity,
        "graph": None if row.graph is None else side(row.graph),
        "speedup": of.speedups(row),
        "psnr_db": row.psnr_db,
        ("psnr_compiled_full_db" if row.method == FULL else "psnr_twin_db"): row.psnr_eager_db,
        "state_mib": row.state_bytes / 2**20,
    }
    return {key: plain(value) for key, value in entry.items()}


def decisions(of: Comparison, row: Row) -> dict[str, Any]:
    """Decisions of each generation, with their errors and the threshold."""
    return {
        "settings": str(of.methods[row.method]) if row.method in of.methods else "every step in full",
        "threshold": of.methods[row.method].schedule.threshold if row.method in of.methods else None,
        "nfc": of.nfc(row),
        "steps": of.settings.steps,
        "phases": of.phases(row),
        "eps": [record.eps for record in row.records],
        "accumulated_eps": [record.totals for record in row.records],
    }


def _graph_is(of: Comparison, row: Row) -> str | None:
    if row.graph is None:
        return None
    what = "model" if row.method == FULL else "rfc_fx.transform(model)"
    return f"torch.compile({what}, fullgraph=True)" if of.settings.compile else f"{what}, not compiled"


def side(variant: Variant) -> dict[str, Any]:
    """Times and contexts of one way to draw."""
    contexts = [{name: pattern(record) for name, record in contexts.items()} for contexts in variant.records.values()]
    return {
        "median_ms": variant.timing.median_ms,
        "min_ms": variant.timing.min_ms,
        "max_ms": variant.timing.max_ms,
        "times_ms": list(variant.times_ms),
        "warmup_with_compilation_s": variant.warmup_s,
        "contexts": contexts,
    }


def plain(value: Any) -> Any:
    """JSON has no inf and no nan."""
    if isinstance(value, float) and (value != value or value in (inf, -inf)):
        return str(value)
    return [plain(item) for item in value] if isinstance(value, list) else value


def versions() -> dict[str, str]:
    """Versions that decide what was measured."""
    import diffusers

    return {
        "rfc_fx": installed_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }


def installed_version() -> str:
    """The version of this package, "unknown" where it runs without being installed."""
    try:
        return metadata.version("rfc-fx")
    except metadata.PackageNotFoundError:
        return "unknown"
