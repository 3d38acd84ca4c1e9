"""The times in export/README.md are those of the record."""

from pathlib import Path

from benchmarks.coverage import rtx
from benchmarks.coverage.engines import RECORD, VARIANTS, missing, with_engine_classes
from benchmarks.coverage.specs import all_specs
from benchmarks.files import RESULTS, read_json
from benchmarks.tool_tables import engine_table

README = Path(__file__).parents[2] / "export" / "README.md"


def test_the_times_of_the_readme_are_those_of_the_record() -> None:
    written = README.read_text().partition("<!-- engines: begin -->\n")[2].partition("<!-- engines: end -->")[0]
    assert written.strip() == engine_table(read_json(RESULTS / "engines" / "bench.json")).strip()


def test_the_classes_of_the_readme_are_those_of_the_record() -> None:
    text = README.read_text()
    assert with_engine_classes(text, read_json(RECORD)) == text


def test_the_programs_built_by_tensorrt_rtx_are_those_of_the_record() -> None:
    text = README.read_text()
    assert rtx.with_programs_built(text, read_json(rtx.RECORD)) == text


def test_a_class_gets_the_rotated_variant_that_the_fewest_have() -> None:
    first, second, third, *others = all_specs()
    rows = {name: {variant: {} for variant in VARIANTS} for name in others} | {first: {"onnx SpeCa": {}}, second: {}, third: {}}
    cells = missing(rows, ["onnx", "onnx TaylorSeer", "onnx SpeCa"])
    assert cells == [(first, "onnx"), (second, "onnx"), (third, "onnx"), (second, "onnx TaylorSeer"), (third, "onnx TaylorSeer")]
