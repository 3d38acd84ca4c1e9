"""Engines among a pipeline's components: diffusers takes, saves and loads them as models."""

import copy
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from pipelines import dit, run

import rfc
import rfc_export
import rfc_fx
from rfc_export.errors import ArtifactError
from rfc_export.pipeline_source import engine_in_pipeline
from rfc_fx.errors import RFCError, SignatureError
from rfc_fx.tools.inputs import pipeline_inputs
from rfc_fx.tools.pipeline.call import CallOptions

pytest.importorskip("onnxruntime", reason="pip install 'rfc-fx[onnx]'")
pytestmark = [pytest.mark.onnx, pytest.mark.usefixtures("captured_once")]

Pipeline = tuple[Any, Callable[..., dict[str, Any]]]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return dit()


@pytest.fixture(scope="module")
def engine_folder(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine of the pipeline's transformer."""
    pipe, prompt = pipeline
    inputs = first_call(pipe, prompt())
    folder = tmp_path_factory.mktemp("engines") / "dit"
    return rfc_export.export(
        pipe.transformer, folder, backend="onnx", example_inputs=inputs, method=rfc.RFC(tau=0.3), config=rfc_fx.Config(hoist=False)
    )


@pytest.fixture(scope="module")
def saved(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline's own folder."""
    folder = tmp_path_factory.mktemp("pipelines") / "plain"
    pipeline[0].save_pretrained(folder)
    return folder


def first_call(pipe: Any, prompt: dict[str, Any]) -> dict[str, Any]:
    class Source:
        model, seeds, name = pipe.transformer, (0,), "tiny"

        def draw(self, model: Any, *_: Any) -> None:
            own, pipe.transformer = pipe.transformer, model
            try:
                run(pipe, prompt, steps=1)
            finally:
                pipe.transformer = own

    return pipeline_inputs(Source())  # type: ignore[arg-type]


def test_a_pipeline_is_loaded_with_an_engine_for_its_transformer_and_without_a_warning(
    saved: Path, engine_folder: Path, pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    engine = rfc_export.load(engine_folder)
    pipe: Any = diffusers.DiTPipeline.from_pretrained(saved, transformer=engine)
    assert pipe.transformer is engine
    assert isinstance(engine, diffusers.DiTTransformer2DModel)
    assert isinstance(engine, rfc_export.Engine)
    assert "Expected types" not in caplog.text
    image = run(pipe, pipeline[1]())
    cached = rfc_fx.transform(pipeline[0].transformer, rfc.RFC(tau=0.3))
    plain = diffusers.DiTPipeline(**{**pipeline[0].components, "transformer": cached})
    assert torch.allclose(image, run(plain, pipeline[1]()), atol=1e-5)
    assert engine.stats.phases == cached.stats.phases


def test_a_saved_pipeline_holds_a_copy_of_the_engine_and_loads_again(
    saved: Path, engine_folder: Path, pipeline: Pipeline, tmp_path: Path
) -> None:
    pipe: Any = diffusers.DiTPipeline.from_pretrained(saved, transformer=rfc_export.load(engine_folder))
    pipe.save_pretrained(tmp_path / "whole")
    copied = tmp_path / "whole" / "transformer"
    assert {file.name: file.read_bytes() for file in copied.iterdir()} == {file.name: file.read_bytes() for file in engine_folder.iterdir()}
    again: Any = diffusers.DiTPipeline.from_pretrained(tmp_path / "whole")
    assert isinstance(again.transformer, rfc_export.Engine)
    assert torch.equal(run(again, pipeline[1]()), run(pipe, pipeline[1]()))
    again.save_pretrained(tmp_path / "whole")  # onto itself
    with pytest.raises(SignatureError, match="an engine stays"):
        diffusers.DiTPipeline.from_pretrained(tmp_path / "whole", dtype=torch.float16)
    (copied / "full.onnx").write_bytes(b"changed")
    with pytest.raises(ArtifactError, match=r"full\.onnx"):
        diffusers.DiTPipeline.from_pretrained(tmp_path / "whole")


def test_a_pipeline_of_classes_draws_as_many_as_its_engine_has_samples_where_none_are_said(saved: Path, engine_folder: Path) -> None:
    source = engine_in_pipeline("engine", rfc_export.load(engine_folder), str(saved), CallOptions(), [0])
    assert source.groups == ["0"]  # of two rows, which guidance has doubled
    assert len(source.draw(source.model, 0, 2, lambda: None)) == 1
    unguided = engine_in_pipeline("engine", source.model, str(saved), CallOptions(cfg=1.0), [0])
    assert unguided.groups == ["0", "1"]
    assert len(unguided.draw(source.model, 0, 2, lambda: None)) == 2
    said = engine_in_pipeline("engine", source.model, str(saved), CallOptions(classes=[5, 6, 7]), [0])
    assert said.groups == ["5", "6", "7"]


def test_an_artefact_that_was_changed_after_loading_is_not_saved(engine_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(engine_folder, tmp_path / "engine")
    engine = rfc_export.load(tmp_path / "engine")
    (tmp_path / "engine" / "full.onnx").write_bytes(b"changed")
    with pytest.raises(ArtifactError, match=r"full\.onnx"):
        engine.save_pretrained(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_an_engine_is_neither_pickled_nor_copied(engine_folder: Path) -> None:
    engine = rfc_export.load(engine_folder)
    for attempt in (pickle.dumps, copy.deepcopy):
        with pytest.raises(RFCError, match="load it again"):
            attempt(engine)


def test_an_engine_is_no_model_to_transform_export_or_accelerate(engine_folder: Path, tmp_path: Path) -> None:
    engine = rfc_export.load(engine_folder)
    with pytest.raises(TypeError, match="is an engine of DiTTransformer2DModel, cached already; pass the model"):
        rfc_fx.transform(engine, rfc.RFC())
    with pytest.raises(RFCError, match="export: the model is an engine already; pass the model that it was exported from"):
        rfc_export.export(engine, tmp_path / "e", backend="onnx", example_inputs={})
    pipe = rfc_fx.zoo.digits()
    pipe.transformer = engine
    with pytest.raises(ValueError, match=r"transformer of DigitsPipeline is an engine, cached already.*pipe.transformer.follow\(pipe\)"):
        rfc_fx.accelerate(pipe)
    with pytest.raises(TypeError, match=r"method: expected an rfc method such as rfc.RFC"):
        engine.method = "rfc"


def test_every_way_to_another_type_or_place_is_refused(engine_folder: Path) -> None:
    engine = rfc_export.load(engine_folder)
    assert engine.cpu() is engine.float() is engine
    for attempt in (engine.half, engine.bfloat16, engine.double, lambda: engine.to_empty(device="meta")):
        with pytest.raises(RFCError, match=r"an engine stays torch.float32 on cpu; export another for"):
            attempt()
