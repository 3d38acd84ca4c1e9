"""The page of results and the reports beside the records are what the records give."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import invoke

from benchmarks import overview, readme
from benchmarks.coverage import rows as coverage
from benchmarks.coverage.specs import all_specs
from benchmarks.files import RESULTS, read_json
from benchmarks.latency import profile, scaling, state, tables
from benchmarks.quality.report import markdown as quality_report

ROOT = RESULTS.parents[1]

REPORTS: dict[str, Callable[[Any], str]] = {
    "coverage": lambda record: coverage.report(coverage.read(RESULTS / "coverage"), record["versions"]),
    "latency": lambda record: tables.markdown(record["variants"], record["settings"]),
    "methods": lambda record: tables.markdown(record["variants"], record["settings"]),
    "profile": profile.markdown,
    "quality": quality_report,
    "scaling": scaling.markdown,
    "state": state.markdown,
}
"""By folder: what makes a report of its records."""


def test_the_page_of_results_is_what_the_records_give() -> None:
    assert readme.page() == readme.PAGE.read_text()


@pytest.mark.parametrize("path", sorted(path for name in REPORTS for path in (RESULTS / name).glob("*.json")), ids=lambda path: path.stem)
def test_the_report_beside_a_record_is_made_from_it_alone(path: Path) -> None:
    assert REPORTS[path.parent.name](read_json(path)) == path.with_suffix(".md").read_text()


def test_coverage_has_a_row_for_every_class_in_their_order() -> None:
    assert [row.name for row in coverage.read(RESULTS / "coverage")] == list(all_specs())


def test_every_picture_and_file_that_a_page_of_results_shows_is_there_and_no_other_picture_is() -> None:
    pages = [readme.PAGE, ROOT / "README.md", *ROOT.glob("*/README.md"), *RESULTS.rglob("*.md")]
    shown = {(page.parent / link).resolve() for page in pages for link in re.findall(r"\]\(([^)#:\s]+)\)", page.read_text())}
    results = {path for path in shown if path.is_relative_to(RESULTS)}
    assert [path for path in results if not path.exists()] == []
    assert {path for suffix in ("png", "svg") for path in RESULTS.rglob(f"*.{suffix}")} <= results


def test_the_overview_has_full_computation_first_the_default_last_and_is_a_small_picture(tmp_path: Path) -> None:
    first, *_, last = overview.readme_rows().splitlines()[2:]
    assert first.startswith("| full computation |")
    assert last.startswith("| **LogSNR** |")
    picture = overview.draw(tmp_path / "overview.svg")
    assert picture.stat().st_size < 100_000
    assert all(f">{name}<" in picture.read_text() for name in ("FORA", "RFC m=1", "LogSNR"))


def test_prose_is_wrapped_and_tables_and_code_are_not() -> None:
    table, code = f"| {'a ' * 100}|", f"```\n{'word ' * 50}\n```"
    text = readme.wrapped(f"# x\n\n{'word ' * 50}at 5%.\n\n{table}\n\n{code}\n")
    assert table in text
    assert code in text
    assert "at 5 %." in text
    assert max(len(line) for line in text.splitlines() if line.startswith("word") and line.strip() not in code) <= 160


def test_check_writes_nothing_and_fails_where_the_page_is_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    monkeypatch.setattr(readme, "PAGE", page)
    for text, code in ((readme.page(), 0), ("old", 1)):
        page.write_text(text)
        assert invoke(readme.main, "--check").exit_code == code
        assert page.read_text() == text
