"""A comparison as people see it: progress bars while it runs, and the table of what it found."""

from __future__ import annotations

from rich import box
from rich.progress import TaskID
from rich.table import Table

from rfc_fx.tools import pictures
from rfc_fx.tools.compare import Comparison, Row
from rfc_fx.tools.output import progress, time_cell
from rfc_fx.tools.variants import FULL, Settings, Variant


class ComparisonProgress:
    """Two progress bars: warming up, which is where compilation happens, and the counted generations."""

    def __init__(self, settings: Settings, methods: int, seeds: int) -> None:
        self.bar = progress()
        self.settings = settings
        variants = 2 * methods + 1 + settings.compile
        self.warm: TaskID = self.bar.add_task("warming up", total=variants)
        self.runs: TaskID = self.bar.add_task("counted generations", total=variants * seeds * settings.rounds * settings.steps, start=False)
        self.warmed = 0

    def __enter__(self) -> ComparisonProgress:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def warming(self, variant: Variant) -> None:
        activity = "compiling" if self.settings.compile and variant.side == "graph" else "warming up"
        self.bar.update(
            self.warm, completed=self.warmed, description=f"{activity} {pictures.label_of(variant.method)}, {self._side(variant)}"
        )
        self.warmed += 1

    def running(self, variant: Variant, round: int, seed: int) -> None:
        self.bar.update(self.warm, completed=self.warmed, description="warmed up")
        self.bar.start_task(self.runs)
        position = f"seed {seed}" if self.settings.rounds == 1 else f"round {round + 1}, seed {seed}"
        self.bar.update(self.runs, description=f"{position}: {pictures.label_of(variant.method)}, {self._side(variant)}")

    def step(self) -> None:
        self.bar.advance(self.runs)

    def _side(self, variant: Variant) -> str:
        if variant.side == "eager":
            return "eager" if variant.method == FULL else "eager twin"
        return "compiled" if self.settings.compile else "transformed"


def comparison_table(comparison: Comparison) -> Table:
    """A row for each method, times in ms."""
    settings = comparison.settings
    graph = "compiled" if settings.compile else "transformed"
    groups, seeds = len(comparison.source.groups), len(comparison.source.seeds)
    title = f"{comparison.source.name}: {groups * seeds} samples, {seeds} generations of {groups} in one batch, {settings.steps} steps"
    table = Table(
        title=title, title_justify="left", caption_justify="left", caption=_caption(comparison), box=box.SIMPLE, padding=(0, 1, 0, 0)
    )
    for column in ("method", "NFC", "eager\nms", f"{graph}\nms", "x comp.\nfull", "x eager\ntwin", "PSNR\ndB", "state\nMiB"):
        table.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    for row in comparison.rows:
        table.add_row(*_cells(comparison, row))
    return table


def _cells(comparison: Comparison, row: Row) -> list[str]:
    ratios = comparison.speedups(row)
    speedups = [next((f"{v:.2f}" for k, v in ratios.items() if k.endswith(end)), "-") for end in ("vs_compiled_full", "vs_eager_twin")]
    times = [time_cell(row.eager.timing), "-" if row.graph is None else time_cell(row.graph.timing)]
    name = FULL if row.method == FULL else pictures.label_of(row.method)  # 80 columns have to do
    return [name, comparison.nfc_text(row), *times, *speedups, f"{row.psnr_db:.1f}", f"{row.state_bytes / 2**20:.1f}"]


def _caption(comparison: Comparison) -> str:
    generations = comparison.settings.rounds * len(comparison.source.seeds)
    kind = "compiled cached" if comparison.settings.compile else "transformed, not compiled"
    return (
        f"ms per generation: median of {generations} in turns, below it the smallest and the largest. "
        "eager: the model itself for full computation (full), the twin (rfc.eager.model) for a method. "
        f"x comp. full, x eager twin: how many times faster the {kind} model is than torch.compile(model) and than the eager twin. "
        "PSNR against the eager full computation of the same seeds, data range 2."
    )
