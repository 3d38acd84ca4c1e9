"""Whole pipelines on the command line: what cannot be is refused on one line, before anything is loaded."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import command
import pipeline_folders
import pytest
import torch

import rfc
from rfc_export import cli
from rfc_export.commands import export as export_command
from rfc_export.engine_source import exportable
from rfc_export.example_calls import Wanted, pipeline_sources
from rfc_export.plain_component import Outputs
from rfc_fx.tools.pipeline.call import CallOptions
from rfc_fx.tools.pipeline.folder import pipeline_folder

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


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--tau", "0.1"], "--tau: not a setting of log-snr; rfc, projective, newton have it"),
        (["--interval", "3"], "--interval: not a setting of log-snr"),
        (["--preset", "flux.1-dev"], "--preset: log-snr has no published settings"),
    ],
)
def test_settings_of_other_methods_are_refused(arguments: list[str], text: str, tmp_path: Path) -> None:
    options = ["--whole", "--backend", "onnx", "--method", "log-snr", "--out", tmp_path / "engine"]
    assert text in one_line_error("export", "emoji", *options, *arguments)


def test_an_engine_is_not_taken_for_a_damaged_model(tmp_path: Path) -> None:
    (tmp_path / "rfc.json").touch()
    assert "is an engine, not a model; pass the model that it was exported from" in one_line_error("inspect", tmp_path)


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


@pytest.mark.parametrize(("batches", "samples"), [([], [1]), ([1, 3], [1, 3])])
def test_a_pipeline_of_classes_is_called_with_as_many_as_the_batches_say(batches: list[int], samples: list[int], tmp_path: Path) -> None:
    folder = pipeline_folders.dit(tmp_path / "dit")
    sources = pipeline_sources(str(folder), torch.float32, torch.device("cpu"), Wanted(batches=batches))
    assert [len(source.groups) for source in sources] == samples


def test_of_two_denoisers_the_second_is_named_as_not_exported(tmp_path: Path) -> None:
    folder = pipeline_folders.wan(tmp_path / "wan", 2)
    said = CallOptions(prompts=["a"], width=16, height=16, frames=5)
    found = exportable(str(folder), torch.float32, torch.device("cpu"), Wanted(call=said))
    assert found.others == ("transformer_2",)


def test_log_snr_is_placed_for_the_levels_of_the_pipelines_own_first_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pipeline_folders.flux(tmp_path / "flux")  # its scheduler is shifted by the size of the picture
    exported: dict[str, Any] = {}

    class Called(Exception):  # noqa: N818
        pass

    def export(model: Any, out: Path, **settings: Any) -> None:
        exported.update(settings)
        raise Called

    monkeypatch.setattr(export_command, "export_model", export)
    options = ["--backend", "onnx", "--method", "log-snr", "--nfc", "3", "--steps", "6", "--shapes", "16x16,32x32"]
    with pytest.raises(Called):
        command.run(cli.app, "export", folder, *options, "--call", "max_sequence_length=5", "--prompt", "abc", "--out", tmp_path / "e")
    pipe = pipeline_folder(str(folder)).load(torch.float32, torch.device("cpu"))
    pipe("abc", width=16, height=16, num_inference_steps=6, max_sequence_length=5, output_type="latent")
    levels = rfc.noise_levels(pipe.scheduler)
    schedule = exported["method"].schedule
    assert (schedule.lambdas, schedule.nfc, schedule.is_flow) == (levels.lambdas, 3, True)
    assert [call["hidden_states"].shape[1] for call in exported["example_inputs"]] == [16, 64]
    text = one_line_error("export", folder, *options, "--nfc", "7", "--out", tmp_path / "e")
    assert "--nfc must be from 1 to 6, the steps of a generation, got 7" in text
