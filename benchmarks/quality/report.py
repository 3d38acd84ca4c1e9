"""The report of the quality laboratory: Markdown made from the record alone."""

from __future__ import annotations

from benchmarks.files import Record
from benchmarks.quality.cells import COLUMNS, MAIN_KINDS, SHORT, bold_interval, cells_at, is_at_budget, kind, names_of
from benchmarks.quality.entry import FULL
from benchmarks.quality.methods import METHODS
from benchmarks.quality.parts import ABLATIONS, AT_LEVELS, FORECASTS, MAGNITUDES, NORMS, PLACES, TOKENS, WATCHED
from benchmarks.quality.report_forced import forced_section
from benchmarks.tables import table


def markdown(record: Record) -> str:
    """The whole report; pictures are the files that `benchmarks.quality.plots` writes beside it."""
    settings = record["settings"]
    parts = [f"# Quality at an equal number of full computations: {settings['model']}", _protocol(record)]
    if record["cells"]:
        parts += [_ratios(record), _pictures(settings)]
        parts += [_main(record, sampler) for sampler in settings["samplers"]]
        parts += [_parts(record)]
    if record["teacher_forced"] is not None:
        parts.append(forced_section(record["teacher_forced"], settings["model"]))
    parts.append(_left_out(record))
    return "\n\n".join(part for part in parts if part) + "\n"


def _protocol(record: Record) -> str:
    settings = record["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in settings["versions"].items())
    what = (
        f"{settings['what']}; guidance {settings['guidance']}, {settings['samples']} samples in {settings['groups']} groups of seeds, "
        f"batches of {settings['batch']}, thresholds found on {settings['calibration_samples']} others, {settings['dtype']} "
        f"on {settings['device']} ({settings['threads']} threads). Real pictures: {settings['real']}. {versions}."
    )
    return f"{what}\n\n{settings['protocol'].strip()}"


def _ratios(record: Record) -> str:
    """Ratio of errors against TaylorSeer's best order, methods by budgets, for each sampler."""
    parts = [
        """## Error against TaylorSeer's best order

Ratio of geometric-mean relative L2 errors, paired by seed, with the 95 % bootstrap interval; below 1 is better, bold where the interval is
below 1. A method that missed the budget by more than half a full computation says its NFC, and is never bold. The intervals take the
thresholds and schedules found as given: they hold the spread of samples, not that of calibrations.
TaylorSeer keeps its own uniform schedule; which order was best stands in the first line."""
    ]
    for sampler, budgets in record["ratios"].items():
        here = {budget: cells_at(record, sampler, int(budget)) for budget in budgets}
        known = {
            name: [(row["methods"].get(name, {}).get("taylorseer"), here[budget].get(name, {})) for budget, row in budgets.items()]
            for name in names_of(record, sampler)
        }
        heads = [record["settings"]["samplers"][sampler]["what"], *(f"NFC {budget}" for budget in budgets)]
        best = ["best TaylorSeer", *(row.get("taylorseer", "-").removeprefix("TaylorSeer ") for row in budgets.values())]
        rows = [[name, *(bold_interval(*at) for at in columns)] for name, columns in known.items() if any(ratio for ratio, _ in columns)]
        parts.append(table(heads, [best, *rows]))
    return "\n\n".join(parts)


def _main(record: Record, sampler: str) -> str:
    """The paper's main table: a block for every budget."""
    settings = record["settings"]["samplers"][sampler]
    parts = [f"## {settings['what']}"]
    full = record["full"].get(sampler)
    for budget in settings["budgets"]:
        cells = {name: cell for name, cell in cells_at(record, sampler, budget).items() if kind(name) in MAIN_KINDS}
        if not cells:
            continue
        least = min(cells, key=lambda name: (not is_at_budget(cells[name]), cells[name]["error"]))
        rows = [] if full is None else [[FULL, *(column(full) for column in COLUMNS.values())]]
        rows += [[f"**{name}**" if name == least else name, *(column(row) for column in COLUMNS.values())] for name, row in cells.items()]
        parts.append(f"{budget} full computations of {settings['steps']} (bold: the smallest error):")
        parts.append(table(["method", *COLUMNS], rows))
    return "\n\n".join(parts) if len(parts) > 1 else ""


def _parts(record: Record) -> str:
    """Ablations and variants, methods by budgets."""
    named = {
        **{f"What RFE and RCS bring, order {order.removeprefix('m=')}": rows for order, rows in ABLATIONS.items()},
        "How long the step along Taylor's direction is (order 1, equal gaps)": MAGNITUDES,
        "Over what RFE takes its norms (order 1, equal gaps)": NORMS,
        "Which inputs RCS looks at (RFE of order 1)": WATCHED,
        "Which steps are full (Newton's polynomial of order 2)": PLACES,
        "What the forecast is, at placed full steps (clustering 0.6)": FORECASTS,
        "What the forecast is, at the full steps of LogSNR": AT_LEVELS,
        "What ToCa's full steps bring, and what its tokens": TOKENS,
    }
    parts = []
    for title, methods in named.items():
        for sampler, settings in record["settings"]["samplers"].items():
            here = {budget: cells_at(record, sampler, budget) for budget in settings["budgets"]}
            here = {budget: cells for budget, cells in here.items() if sum(name in cells for name in methods.values()) > 1}
            if not here:
                continue
            rows = [
                [str(budget), label, *(column(cells[name]) for column in SHORT.values()), _against(record, sampler, budget, name)]
                for budget, cells in here.items()
                for label, name in methods.items()
                if name in cells
            ]
            parts.append(f"### {title}: {settings['what']}")
            parts.append(table(["budget", "variant", *SHORT, "against best TaylorSeer"], rows))
    return "\n\n".join(["## Parts and variants", *parts]) if parts else ""


def _against(record: Record, sampler: str, budget: int, name: str) -> str:
    ratio = record["ratios"][sampler][str(budget)]["methods"][name].get("taylorseer")
    return bold_interval(ratio, cells_at(record, sampler, budget)[name])


def _pictures(settings: Record) -> str:
    model = settings["model"]
    shown = [(name, budget) for name, sampler in settings["samplers"].items() for budget in sampler["shown"]]
    how = "compiled" if settings["compiled"] else "not compiled (the graphs run node by node)"
    lines = [
        f"![Error against the number of full computations]({model}-error.png)",
        f"![Error against floating-point operations]({model}-flops.png)",
        f"![Error against time]({model}-time.png)",
        f"The times are those of this run, {how}: the median over the batches of the wall time of one generation. Methods ran one after "
        "the other, not in turns, on a machine that may have done other things: they place a method, they do not compare two close ones "
        "(`python -m benchmarks.latency` does).",
        *(f"![Which steps are full, NFC {budget}, {name}]({model}-schedule-{name}-{budget}.png)" for name, budget in shown),
        *(f"![The same seeds by all methods, NFC {budget}, {name}]({model}-grid-{name}-{budget}.png)" for name, budget in shown),
    ]
    return "\n\n".join(lines)


def _taken(record: Record) -> dict[str, str]:
    """Of methods that choose among forecasts, which one at which budget."""
    methods: dict[str, dict[str, list[str]]] = {}
    for cell in record["cells"]:
        if forecast := cell.get("forecast"):
            where = f"{cell['budget']} of {record['settings']['samplers'][cell['sampler']]['what']}"
            methods.setdefault(cell["method"], {}).setdefault(forecast, []).append(where)
    return {name: "; ".join(f"{forecast} at {', '.join(at)}" for forecast, at in taken.items()) for name, taken in methods.items()}


def _left_out(record: Record) -> str:
    lines = [
        "* LPIPS: its weights come with no package that this project depends on.",
        '* RCS cannot look at all sites as it goes, for it decides before they run: "planned" rows take the decisions beforehand, on the '
        "true inputs of a few other samples, and run the steps they chose as a list.",
        "* NFC counts full steps. Where the first block runs in every step, or a draft is verified, a skipped step costs more than others: "
        "the column FLOPs has the floating-point operations of a generation as a share of full computation's.",
        "* Frechet distances are in features of a small classifier of these classes, from few samples: biased, and no FID; compare rows.",
        *(f"* {name}: {METHODS[name].note}." for name in _all(record) if name in METHODS and METHODS[name].note),
        *(f"* {name}: the forecast that was taken: {taken}." for name, taken in _taken(record).items()),
        *(f"* {name}: not run. {why}" for name, why in record["refused"].items()),
    ]
    return "\n\n".join(["## What to know, and what is left out", "\n".join(lines)])


def _all(record: Record) -> list[str]:
    return list(dict.fromkeys(cell["method"] for cell in record["cells"]))
