"""The times in export/README.md are those of the record."""

from pathlib import Path

from benchmarks.files import RESULTS, read_json
from benchmarks.tool_tables import engine_table

README = Path(__file__).parents[2] / "export" / "README.md"


def test_the_times_of_the_readme_are_those_of_the_record() -> None:
    written = README.read_text().partition("<!-- engines: begin -->\n")[2].partition("<!-- engines: end -->")[0]
    assert written.strip() == engine_table(read_json(RESULTS / "engines" / "bench.json")).strip()
