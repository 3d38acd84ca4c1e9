"""The part of the report on teacher forcing."""

from __future__ import annotations

from benchmarks.files import Record
from benchmarks.tables import table

RELATIONS = {
    "cosine_input": "cosine of the input's moves",
    "cosine_output": "cosine of the output's moves",
    "cosine_correlation": "correlation of the two cosines",
    "s_rsd_within_interval": "s_k: relative standard deviation over k",
    "s_rsd_over_steps": "s_k: relative standard deviation over t",
    "s_N_over_s_k": "s_N / s_k",
    "kappa_over_taylor": "RFE's coefficient over Taylor's",
    "best_over_taylor": "best coefficient over Taylor's",
    "error_correlation": "correlation of the norms of E_I and E_O",
}


def forced_section(forced: Record, model: str) -> str:
    intervals = [str(interval) for interval in forced["intervals"]]
    errors = {name: [rows[interval]["mean"] for interval in intervals] for name, rows in forced["errors"].items()}
    least = [min(values) for values in zip(*errors.values(), strict=True)]
    rows = [
        [name, *(f"**{value:.4f}**" if value == best else f"{value:.4f}" for value, best in zip(values, least, strict=True))]
        for name, values in errors.items()
    ]
    relations = [
        [text, *("{mean:.3f} ({lowest:.3f} to {highest:.3f})".format(**forced["relation"][interval][name]) for interval in intervals)]
        for name, text in RELATIONS.items()
    ]
    return "\n\n".join(
        [
            "## Teacher-forced: every site from its own true past",
            f"{forced['sampler']}, {forced['samples']} samples with guidance, {len(forced['sites'])} sites; the first {forced['warmup']} "
            "steps full, then every N-th. Mean over sites, skipped steps and samples of ||O_hat - O|| / ||O||; bold: the smallest.",
            table(["estimator", *(f"N = {interval}" for interval in intervals)], rows),
            f"""![Error by distance]({model}-distance.png)

![Error over sites and steps]({model}-heat.png)

How outputs move with inputs (mean over sites, and from the lowest to the highest site; definitions in `quality/relation.py`):""",
            table(["figure", *(f"N = {interval}" for interval in intervals)], relations),
        ]
    )
