"""Cells of a quality record: which there are, and how a figure of one is written."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.files import Record
from benchmarks.quality.methods import METHODS

Column = Callable[[Record], str]


MAIN_KINDS = ("published", "RFC", "ours")


OFF_BUDGET = 0.5
"""A cell whose NFC is further from its budget is compared at another cost: it says so, and is never bold."""


def _number(name: str, text: str) -> Column:
    def cell(row: Record) -> str:
        value = row.get(name)
        return "-" if value is None else text.format(value)

    return cell


COLUMNS: dict[str, Column] = {
    "NFC": _number("nfc", "{:.4g}"),
    "FLOPs": _number("flops_share", "{:.1%}"),
    "relative L2": _number("error", "{:.4f}"),
    "PSNR dB": _number("psnr_db", "{:.2f}"),
    "SSIM": _number("ssim", "{:.4f}"),
    "FD": _number("fd", "{:.3g}"),
    "sFD": _number("sfd", "{:.3g}"),
    "FD2FC": _number("fd2fc", "{:.3g}"),
    "sFD2FC": _number("sfd2fc", "{:.3g}"),
    "accuracy": _number("accuracy", "{:.1%}"),
}


SHORT = {name: COLUMNS[name] for name in ("NFC", "relative L2", "FD2FC", "sFD2FC")}
"""Of ablations."""


def cells_at(record: Record, sampler: str, budget: int) -> dict[str, Record]:
    return {cell["method"]: cell for cell in record["cells"] if (cell["sampler"], cell["budget"]) == (sampler, budget)}


def is_at_budget(cell: Record) -> bool:
    return abs(float(cell["nfc"]) - float(cell["budget"])) <= OFF_BUDGET


def interval(values: list[float] | None, cell: Record) -> str:
    """A ratio with its interval, and the NFC of a cell that missed its budget."""
    if values is None:
        return "-"
    return "{:.2f} ({:.2f}-{:.2f})".format(*values) + ("" if is_at_budget(cell) else f" at NFC {cell['nfc']:.4g}")


def bold_interval(values: list[float] | None, cell: Record) -> str:
    """The same; bold where the interval is below 1 and the cell at its budget."""
    text = interval(values, cell)
    return f"**{text}**" if values is not None and values[2] < 1 and is_at_budget(cell) else text


def names_of(record: Record, sampler: str) -> list[str]:
    """The methods with a cell, in the order of the table; those that it no longer has come last."""
    order = {name: at for at, name in enumerate(METHODS)}
    here = dict.fromkeys(cell["method"] for cell in record["cells"] if cell["sampler"] == sampler)
    return sorted(here, key=lambda name: order.get(name, len(order)))


def kind(name: str) -> str:
    """What sort of method it is; of one that the table no longer has, a control."""
    return METHODS[name].kind if name in METHODS else "control"
