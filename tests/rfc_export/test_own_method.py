"""A user's own schedule and estimator: on the command line, in calibration, as an engine."""

import json
from pathlib import Path

import pytest
import torch
from families import moved, sample, shared_model
from own_method import Cautious, Drift, method
from typer.testing import CliRunner

import rfc_export
import rfc_fx
from rfc_export import ArtifactError
from rfc_export.cli import app
from rfc_fx.io.method_file import MethodFileError, read_method

pytestmark = pytest.mark.usefixtures("captured_once", "few_blocks")

FEW = ["--steps", "6", "--classes", "3,8", "--seeds", "1"]


def test_generate_draws_with_a_method_named_by_its_import_path(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["generate", "--method", "own_method:method", "--no-compile", *FEW, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    entry = json.loads((tmp_path / "summary.json").read_text())["methods"]["own_method:method"]
    assert entry["threshold"] == 0.3
    assert 2 <= entry["nfc"] <= 6


def test_calibrate_finds_its_threshold_and_keeps_it_for_those_who_have_the_classes(tmp_path: Path) -> None:
    out = tmp_path / "method.json"
    result = CliRunner().invoke(app, ["calibrate", "digits", "--nfc", "4", "--method", "own_method:method", *FEW, "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "gives NFC 4" in result.output
    calibrated = read_method(out, classes=[Cautious, Drift])
    assert calibrated == method.with_threshold(json.loads(out.read_text())["measured"]["threshold"])
    with pytest.raises(MethodFileError, match=r"own_method:Cautious is a class outside of rfc; import it yourself and pass it"):
        read_method(out)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nowhere:method", "expected package.module:name of an object that can be imported: No module named 'nowhere'"),
        ("own_method:nothing", "module 'own_method' has no attribute 'nothing'"),
        ("own_method:Drift", "expected an object of the type Method, got <class"),
    ],
)
def test_a_path_to_no_method_is_refused_in_one_line(path: str, said: str) -> None:
    result = CliRunner().invoke(app, ["generate", "--method", path])
    assert result.exit_code == 2
    assert said in result.output


@pytest.mark.onnx
def test_an_engine_decides_and_draws_as_the_model_for_those_who_have_the_classes(tmp_path: Path) -> None:
    model, kwargs = shared_model("dit")
    path = rfc_export.export(model, tmp_path / "engine", backend="onnx", example_inputs=kwargs, method=method)
    with pytest.raises(ArtifactError, match=r"own_method:Cautious is a class outside of rfc"):
        rfc_export.load(path)
    engine = rfc_export.load(path, classes=[Cautious, Drift])
    cached = rfc_fx.transform(model, method, example_inputs=kwargs)
    with torch.no_grad():
        for step in range(8):
            got, expected = (sample(each(**moved(kwargs, step, 8))) for each in (engine, cached))
            assert (got - expected).norm() <= 1e-4 * expected.norm()
    assert engine.stats.phases == cached.stats.phases
    assert 2 <= engine.stats.nfc < 8
    classes = ["--class", "own_method:Cautious", "--class", "own_method:Drift"]
    result = CliRunner().invoke(app, ["verify", str(path), *classes])
    assert result.exit_code == 0, result.output
