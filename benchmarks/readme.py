"""The page of all results, made from the records alone: `python -m benchmarks.readme` writes benchmarks/README.md, its
drawings results/overview.svg and results/truth/fronts.svg, and what export/README.md says of classes and of TensorRT-RTX.

Tables are functions of the records; prose is the template README.md.j2, whose figures are looked up in them.
"""

from __future__ import annotations

import re
import statistics
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks import engine_speed, overview
from benchmarks.coverage import rows as coverage
from benchmarks.coverage.converters import RECORD as CONVERTERS
from benchmarks.coverage.converters import with_converters_asked
from benchmarks.coverage.engines import RECORD as CLASSES
from benchmarks.coverage.engines import with_engine_classes
from benchmarks.coverage.rtx import RECORD as RTX
from benchmarks.coverage.rtx import with_programs_built
from benchmarks.files import RESULTS, Record, read_json, write_text
from benchmarks.latency import profile, scaling, state, tables
from benchmarks.quality import summary as quality
from benchmarks.scaleout import table as scaleout
from benchmarks.serving import table as serving
from benchmarks.soak import table as soak
from benchmarks.tool_tables import compiled_table, demo_table, engine_table
from benchmarks.truth import distance_tables, fronts
from benchmarks.truth import tables as truth

HERE = Path(__file__).parent


PAGE = HERE / "README.md"
COMPILED = RESULTS / "cuda" / "compiled.json"
"""What `make test-cuda` wrote."""
ENGINES_PAGE = HERE.parent / "export" / "README.md"


@dataclass(frozen=True)
class LatencyFigures:
    """A latency record by what is asked of it."""

    variants: Record
    settings: Record

    def values(self, figure: str, *parts: str, without: str = "no such part") -> list[float]:
        """A figure ("ESTIMATE.median_ms") of every variant that has it and whose name has all these parts."""
        names = [name for name in self.variants if all(part in name for part in parts) and without not in name]
        outer, _, inner = figure.partition(".")
        rows = (self.variants[name] for name in names if outer in self.variants[name])
        return [float(row[outer][inner] if inner else row[outer]) for row in rows]

    def rivals(self, figure: str) -> list[float]:
        """The same of compiled rivals."""
        return [value for library in ("cache-dit", "diffusers") for value in self.values(figure, library, ", compiled")]

    def twin_over_compiled(self) -> list[float]:
        """Generation time of each eager twin over that of its method's fastest compiled variant."""
        twins = [name.removesuffix(", eager twin") for name in self.variants if name.endswith(", eager twin")]
        medians = {name: row["generation"]["median_ms"] for name, row in self.variants.items()}
        return [medians[f"{name}, eager twin"] / medians[f"{name}, hoisted, compiled"] for name in twins]


def span(values: Iterable[float], text: str = "{:.2f}") -> str:
    """The smallest and the largest of some values."""
    values = list(values)
    low, high = text.format(min(values)), text.format(max(values))
    return low if low == high else f"{low} to {high}"


def listed(values: Sequence[float], text: str = "{:.2f}") -> str:
    """Some values in their order: a, b and c."""
    *first, last = (text.format(value) for value in values)
    return f"{', '.join(first)} and {last}" if first else last


def geomean(values: Iterable[float]) -> float:
    """Geometric mean."""
    return statistics.geometric_mean(values)


def wrapped(text: str, width: int = 160) -> str:
    """Prose in lines of one width, with a space before a per cent sign; tables, headings, pictures and code as they are."""
    parts = text.split("\n\n")
    is_code = [sum(part.count("```") for part in parts[:at]) % 2 == 1 or "```" in part for at, part in enumerate(parts)]
    return "\n\n".join(part if code else _wrapped(part, width) for part, code in zip(parts, is_code, strict=True))


def _wrapped(part: str, width: int) -> str:
    if part.lstrip().startswith(("|", "#", "!")):
        return part
    items = re.split(r"\n(?=\* )", re.sub(r"(\d)%", r"\1 %", part))
    lines = (
        textwrap.fill(
            " ".join(item.split()),
            width,
            subsequent_indent="  " if item.startswith("* ") else "",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for item in items
    )
    return "\n".join(lines) + ("\n" if part.endswith("\n") else "")


def page() -> str:
    """The page of results."""
    models, _ = overview.records()
    latency = {path.stem: LatencyFigures(**read_json(path)) for path in sorted((RESULTS / "latency").glob("*.json"))}
    covered = coverage.read(RESULTS / "coverage")
    served = [read_json(path) for path in sorted((RESULTS / "serving").glob("*.json"))]
    environment = Environment(loader=FileSystemLoader(HERE), undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True)
    environment.filters |= {"span": span, "listed": listed, "geomean": geomean, "two": "{:.2f}".format, "percent": "{:.0%}".format}
    text = environment.get_template("README.md.j2").render(
        rows=overview.readme_rows(),
        caption=overview.caption(),
        demo=read_json(RESULTS / "demo" / "summary.json"),
        demo_table=demo_table,
        **models,
        protocol=models["digits"].record["settings"],
        main_table=quality.main_table(models),
        budget_table=quality.budget_table(models),
        ablation_table=quality.ablation_table(models),
        latency=latency,
        latency_tables=[tables.markdown(of.variants, of.settings) for of in latency.values()],
        profile_table=profile.markdown(read_json(RESULTS / "profile" / "dit-s-1.json")),
        profile=read_json(RESULTS / "profile" / "dit-s-1.json"),
        scaling_tables=scaling.markdown(read_json(RESULTS / "scaling" / "scaling.json")),
        scaling=read_json(RESULTS / "scaling" / "scaling.json"),
        state_table=state.markdown(read_json(RESULTS / "state" / "digits.json")),
        state_error=state.largest_error,
        state=read_json(RESULTS / "state" / "digits.json"),
        engines=read_json(RESULTS / "engines" / "bench.json"),
        engine_table=engine_table,
        compiled=read_json(COMPILED) if COMPILED.exists() else None,
        compiled_table=compiled_table,
        coverage=coverage.summary(covered),
        soak=read_json(RESULTS / "soak" / "soak.json"),
        soak_table=soak.markdown,
        scaleout=read_json(RESULTS / "scaleout" / "scaleout.json"),
        scaleout_table=scaleout.markdown,
        scaleout_sentence=scaleout.sentence,
        modelled_table=scaleout.modelled(),
        serving=served[0],
        serving_table=serving.markdown(served),
        serving_memory=serving.memory(served),
        **truth.figures(RESULTS / "truth"),
        **fronts.figures(RESULTS / "truth"),
        **distance_tables.figures(RESULTS / "truth"),
    )
    return wrapped(text)


def main(
    check: Annotated[bool, typer.Option("--check", help="write nothing; exit with 1 where the page differs from the records")] = False,
) -> None:
    """Write the page of results and its drawings."""
    text, engines = page(), with_engine_classes(ENGINES_PAGE.read_text(), read_json(CLASSES))
    engines = with_converters_asked(with_programs_built(engines, read_json(RTX)), read_json(CONVERTERS))
    engines = engine_speed.with_speeds(engines, read_json(engine_speed.RECORD))
    if check:
        raise typer.Exit(int((PAGE.read_text(), ENGINES_PAGE.read_text()) != (text, engines)))
    write_text(PAGE, text)
    write_text(ENGINES_PAGE, engines)
    typer.echo(f"{PAGE}\n{ENGINES_PAGE}")
    typer.echo(str(overview.draw()))
    if (picture := fronts.drawn()) is not None:
        typer.echo(str(picture))


if __name__ == "__main__":
    typer.run(main)
