"""The times in export/README.md are those of the record."""

from pathlib import Path

from benchmarks import engine_speed
from benchmarks.coverage import converters, rtx
from benchmarks.coverage.engines import RECORD, VARIANTS, missing, with_engine_classes
from benchmarks.coverage.specs import all_specs
from benchmarks.files import RESULTS, read_json
from benchmarks.tool_tables import engine_table

README = Path(__file__).parents[2] / "export" / "README.md"


def test_the_times_of_the_readme_are_those_of_the_record() -> None:
    written = README.read_text().partition("<!-- engines: begin -->\n")[2].partition("<!-- engines: end -->")[0]
    assert written.strip() == engine_table(read_json(RESULTS / "engines" / "bench.json")).strip()


def test_the_speeds_of_the_readme_are_those_of_the_record() -> None:
    text = README.read_text()
    assert engine_speed.with_speeds(text, read_json(engine_speed.RECORD)) == text


def test_the_classes_of_the_readme_are_those_of_the_record() -> None:
    text = README.read_text()
    assert with_engine_classes(text, read_json(RECORD)) == text


def test_the_programs_built_by_tensorrt_rtx_are_those_of_the_record() -> None:
    text = README.read_text()
    assert rtx.with_programs_built(text, read_json(rtx.RECORD)) == text


def test_the_operations_that_torch_tensorrt_was_asked_for_are_those_of_the_record() -> None:
    text = README.read_text()
    assert converters.with_converters_asked(text, read_json(converters.RECORD)) == text


def test_an_operation_without_a_converter_is_named_with_its_programs() -> None:
    row = {"FULL": {"operations": 3, "missing": {"aten.fft.default": 2}}, "ESTIMATE": {"operations": 4, "missing": {}}}
    said = converters.converters_asked({"versions": {"torch-tensorrt-rtx": "2"}, "rows": {"OneModel": row}})
    assert "5 of 7 operations in 2 programs" in said
    assert said.endswith("* aten.fft.default: One FULL")


def test_a_class_gets_the_rotated_variant_that_the_fewest_have() -> None:
    first, second, third, *others = all_specs()
    rows = {name: {variant: {} for variant in VARIANTS} for name in others} | {first: {"onnx SpeCa": {}}, second: {}, third: {}}
    cells = missing(rows, ["onnx", "onnx TaylorSeer", "onnx SpeCa"])
    assert cells == [(first, "onnx"), (second, "onnx"), (third, "onnx"), (second, "onnx TaylorSeer"), (third, "onnx TaylorSeer")]
