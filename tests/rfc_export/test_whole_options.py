"""Whole pipelines on the command line: what cannot be is refused on one line, before anything is loaded."""

import json
from functools import partial
from pathlib import Path

import command
import pytest

from rfc_export import cli
from rfc_export.plain_component import Outputs

one_line_error = partial(command.one_line_error, cli.app)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["digits", "--out", "engine"], "--whole: is for pipelines, digits has no model_index.json"),
        (["emoji", "--out", "engine", "--add"], "--add: adds calls to one engine; export the whole pipeline again"),
        (["emoji", "--out", "engine.pt2"], "a whole pipeline is a folder of engines; pass a path without .pt2"),
        (["emoji", "--out", "full"], "is a folder without model_index.json, not an artefact; it is not overwritten"),
    ],
)
def test_what_is_no_folder_of_a_pipeline_is_refused(
    arguments: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "rfc.json").write_text("{}")
    assert text in one_line_error(
        "export", *arguments, "--whole", "--backend", "onnx", "--overwrite", "--nfc", "8", "--method", "chebyshev"
    )
    assert not (tmp_path / "engine").exists()


def test_a_whole_pipeline_takes_no_model_and_needs_its_engines(tmp_path: Path) -> None:
    index = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert "is a whole pipeline, which needs no other" in one_line_error("run", tmp_path, "--model", "emoji", "--prompt", "a")
    assert "names 0 engines as transformer, expected one" in one_line_error("run", tmp_path, "--prompt", "a")
    assert "this is a whole pipeline; pass one of its engines" in one_line_error("verify", tmp_path)
    (tmp_path / "model_index.json").write_text("[]")
    assert "model_index.json" in one_line_error("run", tmp_path, "--prompt", "a")


def test_outputs_of_an_encoder_are_told_by_name_attribute_and_number() -> None:
    outputs = Outputs(last_hidden_state=1, pooler_output=2)
    assert (outputs.pooler_output, outputs["last_hidden_state"], outputs[0], outputs[-1]) == (2, 1, 1, 2)
    with pytest.raises(AttributeError, match=r"exported without hidden_states; it has last_hidden_state, pooler_output"):
        _ = outputs.hidden_states
