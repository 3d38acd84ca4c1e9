"""Quality against speed on one screen: six rows of results, and a picture of all methods, at 14 of 50 steps in full.

Quality is of the quality records, 50 steps of DDIM; speed is of `results/methods`: the digits model, all variants in turns in one process.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.files import RESULTS, Record, read_json
from benchmarks.pictures import save_svg
from benchmarks.quality.cells import kind
from benchmarks.quality.figures import QualityFigures
from benchmarks.quality.plots import style
from benchmarks.tables import table

PICTURE = RESULTS / "overview.svg"


NFC = 14


TIMED = {
    "FORA": "FORA, hoisted, fixed steps, compiled",
    "TaylorSeer m=1": "Taylor m=1, hoisted, fixed steps, compiled",
    "HiCache m=2": "HiCache m=2, hoisted, fixed steps, compiled",
    "TaylorSeer Lite m=1": "TaylorSeer Lite m=1, hoisted, compiled",
    "Delta-DiT": "Delta-DiT, hoisted, compiled",
    "TeaCache": "TeaCache, hoisted, compiled",
    "First-Block cache": "First-Block cache, hoisted, compiled",
    "DiCache": "DiCache, hoisted, compiled",
    "MagCache": "MagCache, hoisted, compiled",
    "SpeCa": "SpeCa m=1, hoisted, compiled",
    "ToCa": "ToCa, hoisted, compiled",
    "DuCa": "DuCa, hoisted, compiled",
    "DisCa": "DisCa, hoisted, compiled",
    "RFC m=1": "RFE m=1, hoisted, compiled",
    "RFC m=2": "RFE m=2, hoisted, compiled",
    "Projective m=2 + RCS": "Projective m=2, hoisted, compiled",
    "NewtonRCS m=2": "Newton m=2, hoisted, compiled",
    "Chebyshev": "Newton m=2, hoisted, fixed steps, compiled",
    "LogSNR": "Newton m=2, hoisted, fixed steps, compiled",
}
"""The variant of the latency record that runs each method's programs."""


ON_THE_LEFT = ("HiCache m=2",)
"""Whose names stand left of their points, where the right is taken."""


ROWS = {
    "FORA": "reuse at equal gaps",
    "TaylorSeer m=1": "Taylor's forecast at equal gaps",
    "First-Block cache": "reuse while the first block changes little",
    "RFC m=1": "relational forecast, full steps where inputs moved",
    "LogSNR": "the default: full steps by the sampler's noise levels",
}
"""What the six rows are, full computation aside."""


def records() -> tuple[dict[str, QualityFigures], Record]:
    """Quality by model, and the latency record of all methods."""
    quality = {path.stem: QualityFigures(read_json(path)) for path in sorted((RESULTS / "quality").glob("*.json"))}
    return quality, read_json(RESULTS / "methods" / "digits-4.json")["variants"]


def readme_rows() -> str:
    """Full computation and five methods: error on both models, PSNR, FLOPs and speed."""
    quality, times = records()
    heads = [*(f"error, {model}" for model in quality), "PSNR dB, digits", "FLOPs", "speed"]
    rows = [["full computation", "all steps", *("0" for _ in quality), "inf", "100%", "1.00x"]]
    for name, what in ROWS.items():
        cells = {model: figures.cell(name, NFC) for model, figures in quality.items()}
        speed = times[TIMED[name]]["speedup_vs_compiled_full"]
        errors = (f"{cell['error']:.3f}" for cell in cells.values())
        rows.append([name, what, *errors, f"{cells['digits']['psnr_db']:.1f}", f"{cells['digits']['flops_share']:.0%}", f"{speed:.2f}x"])
    rows[-1] = [f"**{cell}**" for cell in rows[-1]]
    return table(["method", "what it does", *heads], rows)


def caption() -> str:
    """What the figure and the rows measure: models, samples, machine, units."""
    quality, _ = records()
    settings = read_json(RESULTS / "methods" / "digits-4.json")["settings"]
    samples = quality["digits"].record["settings"]["samples"]
    return (
        f"Error: relative L2 distance to the samples of full computation, {samples} samples, {NFC} of {settings['steps']} steps of DDIM in "
        f"full. Speed: a generation of {settings['samples']} digits with guidance against `torch.compile` of the plain model, "
        f"{settings['rounds']} interleaved generations, {settings['threads']} CPU cores, {settings['dtype']}, torch "
        f"{settings['versions']['torch'].split('+')[0]}; the bound is {settings['steps'] / NFC:.2f}x."
    )


def draw(path: Path = PICTURE) -> Path:
    """Write the picture: error over speed, a point for each method, on the digits model."""
    quality, times = records()
    figures = quality["digits"]
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.add_subplot()
    for name, variant in TIMED.items():
        speed, cell = times[variant]["speedup_vs_compiled_full"], figures.cell(name, NFC)
        look, ours = style(name), kind(name) in ("RFC", "ours")
        spread = [[cell["error"] - cell["error_low"]], [cell["error_high"] - cell["error"]]]
        axes.errorbar(speed, cell["error"], yerr=spread, color=look["color"], marker="o", markersize=7 if ours else 5, elinewidth=0.8)
        label = name if abs(cell["nfc"] - NFC) < 0.5 else f"{name} (NFC {cell['nfc']:.3g})"
        weight = "bold" if name == "LogSNR" else "normal"
        side = "right" if name in ON_THE_LEFT else "left"
        text = {"fontsize": 8, "color": look["color"], "weight": weight, "va": "center", "ha": side}
        axes.annotate(label, (speed, cell["error"]), (-6 if side == "right" else 6, 0), textcoords="offset points", **text)
    axes.set_yscale("log")
    axes.set_xlim(right=axes.get_xlim()[1] + 0.2)
    axes.set_xlabel(f"speed-up against compiled full computation, {NFC} of 50 steps in full")
    axes.set_ylabel("relative L2 error (95 % interval)")
    axes.grid(which="both", linewidth=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return save_svg(figure, path)
