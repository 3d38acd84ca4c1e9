"""Tables of the records that `rfc-fx generate` and `rfc-fx bench` write."""

from __future__ import annotations

import re

from benchmarks.files import Record
from benchmarks.tables import table

DEMO = {"full": "full computation", "taylorseer": "TaylorSeer", "rfc": "RFC", "log-snr": "LogSNR"}


ENGINES = {
    "aoti, host": "AOTInductor, host",
    "onnx, host": "ONNX Runtime, host",
    "compiled": "torch.compile, hoisted",
    "eager twin": "eager twin",
}


def method_label(name: str, row: Record) -> str:
    """A method's name, its order and its threshold."""
    label = DEMO.get(name, name)
    if name in ("taylorseer", "rfc") and (order := re.search(r"order=(\d)", row["settings"])):
        label += f" m={order[1]}"
    return label if row["threshold"] is None else f"{label}, tau {row['threshold']:g}"


def demo_table(record: Record) -> str:
    """Methods of a demo: times eager and compiled, PSNR, state."""
    full = record["methods"]["full"]["graph"]["median_ms"]
    rows = []
    for name, row in record["methods"].items():
        eager, graph = row["eager"], row["graph"]
        rows.append(
            [
                method_label(name, row),
                f"{row['nfc']:.4g}",
                *("{median_ms:.0f} ({min_ms:.0f}-{max_ms:.0f})".format(**times) for times in (eager, graph)),
                f"{full / graph['median_ms']:.2f}x",
                "-" if name == "full" else f"{eager['median_ms'] / graph['median_ms']:.2f}x",
                f"{float(row['psnr_db']):.1f}",
                f"{row['state_mib']:.0f}",
                f"{graph['warmup_with_compilation_s']:.0f}",
            ]
        )
    heads = ["eager model or twin ms", "compiled ms", "vs compiled full", "vs eager twin", "PSNR dB", "state MiB", "seconds to first step"]
    return table(["method", "NFC", *heads], rows)


def engine_table(record: Record) -> str:
    """Engines beside the compiled model and the eager twin."""
    rows = []
    for name, row in record["variants"].items():
        error, artefact, state = row["largest_error"], row["artefact_bytes"], row["state_bytes"]
        rows.append(
            [
                ENGINES.get(name, name),
                f"{row['full_ms']:.1f}",
                f"{row['estimate_ms']:.1f}",
                "{median:.0f} ({min:.0f}-{max:.0f})".format(**row["generation_ms"]),
                "-" if state is None else f"{state / 2**20:.1f}",
                "-" if artefact is None else f"{artefact / 2**20:.1f}",
                "-" if error is None else f"{'the same' if row['same_decisions'] else 'others'}, {error:.0e}",
            ]
        )
    heads = ["FULL ms", "ESTIMATE ms", "generation ms (smallest-largest)", "state MiB", "files MiB", "decisions, largest error of a step"]
    return table(["", *heads], rows)


GRAPHS = "combinations whose programs are one graph each"


def compiled_table(record: Record) -> str:
    """What `make test-cuda` compiled: combinations, programs, kernels by architecture."""
    values, counts = record["values"], record["counts"]
    rows = [
        ["families, and pairs of a family and a method", f"{values['family']}, {record['pairs with a family']['method']}"],
        ["methods, types of state, granularities, ways", "{method}, {state}, {granularity}, {way}".format(**values)],
        ["combinations; of these every pair of values needs", f"{counts[GRAPHS]}; {record['pairwise']}"],
        ["programs", str(counts["programs"])],
        ["graphs that would be skipped", str(counts["graphs that would be skipped"])],
        ["arguments of engines whose address is checked", str(counts["arguments of engines whose address is checked"])],
        *([f"different kernels compiled to {architecture}", str(count)] for architecture, count in record["kernels"].items()),
    ]
    sizes = sorted({name.partition(":")[0] for name in counts if name.endswith(", kernels")})
    for size in sizes:
        phases = [
            name.partition(": ")[2].removesuffix(", kernels")
            for name in counts
            if name.startswith(f"{size}: ") and name.endswith(", kernels")
        ]
        said = "; ".join(
            f"{each} {counts[f'{size}: {each}, kernels']}, {counts[f'{size}: {each}, MiB that kernels read and write']}" for each in phases
        )
        rows.append([f"{size} at its published size: kernels of Triton, MiB that they read and write", said])
    return table(["", record["torch"]], rows)
