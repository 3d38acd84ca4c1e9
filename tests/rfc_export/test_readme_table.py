"""The times in export/README.md are those of the record."""

from pathlib import Path

from benchmarks.coverage.engines import RECORD, with_engine_classes
from benchmarks.files import RESULTS, read_json
from benchmarks.tool_tables import engine_table

README = Path(__file__).parents[2] / "export" / "README.md"


def test_the_times_of_the_readme_are_those_of_the_record() -> None:
    written = README.read_text().partition("<!-- engines: begin -->\n")[2].partition("<!-- engines: end -->")[0]
    assert written.strip() == engine_table(read_json(RESULTS / "engines" / "bench.json")).strip()


def test_the_classes_of_the_readme_are_those_of_the_record() -> None:
    text = README.read_text()
    assert with_engine_classes(text, read_json(RECORD)) == text
