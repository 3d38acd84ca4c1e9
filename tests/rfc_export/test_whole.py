"""Whole pipelines of engines: a folder draws the pipeline's pictures without its models."""

import gc
import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pipeline_folders
import pytest
import torch
from torch import nn

import rfc
import rfc_fx
from rfc_export.errors import ArtifactError, MachineCodeWarning
from rfc_export.example_calls import Wanted
from rfc_export.pipeline_source import whole_pipeline
from rfc_export.whole import WholeFolder, export_whole
from rfc_fx.tools.pipeline.call import CallOptions, pipeline_call
from rfc_fx.tools.pipeline.folder import pipeline_folder
from rfc_fx.tools.pipeline.source import PipelineSource

pytestmark = pytest.mark.slow  # several engines for each pipeline

pytest.importorskip("onnxruntime", reason="pip install 'rfc-fx[onnx]'")

EXACT = 2e-5
"""Float32 on both sides, a few estimated steps and a decoder."""

STEPS = 8

CALLS = {
    "flux": CallOptions(prompts=["abc"], negative_prompt="", assignments=["true_cfg_scale=2.0", "max_sequence_length=5"]),
    "sd3": CallOptions(prompts=["abc"], negative_prompt="", width=16, height=16, assignments=["max_sequence_length=5"]),
    "pixart": CallOptions(
        prompts=["abc"], negative_prompt="", width=16, height=16, assignments=["use_resolution_binning=false", "max_sequence_length=7"]
    ),
    "dit": CallOptions(classes=[1]),
}


SIZES = {"flux": [(16, 16), (32, 16)]}
"""Several sizes in one folder: width and height."""

CASES = [*((kind, "onnx") for kind in CALLS), pytest.param(("flux", "aoti"), marks=pytest.mark.compile)]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """(kind, the pipeline's folder, the folder of engines)."""
    folder = tmp_path_factory.mktemp("whole")
    kind, backend = request.param
    make: Callable[[Path], Path] = getattr(pipeline_folders, kind)
    source, path = make(folder / "pipeline"), folder / "engines"
    export_whole(
        str(source),
        path,
        backend,
        Wanted(sizes=SIZES.get(kind, ()), call=CALLS[kind]),
        dtype=torch.float32,
        device=torch.device("cpu"),
        method=rfc.TaylorSeer(interval=3, order=1),
        config=rfc_fx.Config(),
    )
    return kind, source, path


def test_a_folder_of_engines_draws_the_pipelines_pictures(exported: tuple[str, Path, Path]) -> None:
    kind, source, path = exported
    folder = pipeline_folder(str(source))
    pipe = folder.load(torch.float32, torch.device("cpu"))
    own, model = pipe.transformer, rfc_fx.transform(pipe.transformer, rfc.TaylorSeer(interval=3, order=1))
    for width, height in SIZES.get(kind, [(None, None)]):
        options = CALLS[kind] if width is None else replace(CALLS[kind], width=width, height=height)
        pipe.transformer = own
        source = PipelineSource(name=kind, pipe=pipe, call=pipeline_call(folder, options), seeds=[0])
        expected = source.draw(model, 0, STEPS, lambda: None)
        whole = whole_pipeline(path, options, [0], lambda folder: folder.load(torch.device("cpu")))
        drawn = whole.draw(whole.model, 0, STEPS, lambda: None)
        assert drawn.shape == expected.shape
        assert (drawn - expected).norm() <= EXACT * expected.norm()
        assert {record.nfc for record in whole.generations.values()} == {4}


def parameters() -> list[nn.Parameter]:
    """All that are in memory; the check of config.json makes a model without memory, which is collected."""
    gc.collect()
    return [one for one in gc.get_objects() if issubclass(type(one), nn.Parameter)]


def test_no_model_of_diffusers_or_transformers_is_in_memory(exported: tuple[str, Path, Path]) -> None:
    kind, _, path = exported
    before = {id(one) for one in parameters()}
    whole = whole_pipeline(path, CALLS[kind], [0], lambda folder: folder.load(torch.device("cpu")))
    assert not [one.shape for one in parameters() if id(one) not in before]
    assert whole.model.manifest.model.model_class.endswith("Transformer2DModel")


def test_a_call_of_another_size_is_refused_with_what_was_exported(exported: tuple[str, Path, Path]) -> None:
    kind, _, path = exported
    if kind == "dit":
        pytest.skip("DiT draws in one size")
    whole = whole_pipeline(path, replace(CALLS[kind], width=64, height=64), [0], lambda folder: folder.load(torch.device("cpu")))
    with pytest.raises(rfc_fx.SignatureError, match=r"hidden_states|this engine answers"):
        whole.draw(whole.model, 0, STEPS, lambda: None)


def test_without_classes_a_folder_draws_as_many_as_it_was_exported_for(exported: tuple[str, Path, Path]) -> None:
    kind, _, path = exported
    if kind != "dit":
        pytest.skip("takes prompts")
    whole = whole_pipeline(path, CallOptions(), [0], lambda folder: folder.load(torch.device("cpu")))
    assert whole.groups == ["0"]
    assert len(whole.draw(whole.model, 0, 2, lambda: None)) == 1


def test_machine_code_is_warned_of_once_for_the_folder(exported: tuple[str, Path, Path]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", MachineCodeWarning)
        engine, _ = WholeFolder.read(exported[2]).load(torch.device("cpu"))
        WholeFolder.read(exported[2]).load(torch.device("cpu"), trust=True)
    assert len([one for one in caught if one.category is MachineCodeWarning]) == (engine.manifest.backend == "aoti")


def test_a_damaged_part_is_refused_by_its_name(exported: tuple[str, Path, Path], tmp_path: Path) -> None:
    path = shutil.copytree(exported[2], tmp_path / "engines")
    (program,) = [file for file in (path / "vae").iterdir() if file.name in ("full.onnx", "programs.pt2")]
    with program.open("r+b") as file:
        file.truncate(100)
    with pytest.raises(ArtifactError, match=rf"vae/{program.name}: 100 bytes, expected"):
        WholeFolder.read(path).load(torch.device("cpu"))
    index = json.loads((path / "model_index.json").read_text())
    (path / "model_index.json").write_text(json.dumps(index | {"transformer": ["diffusers", "DiTTransformer2DModel"]}))
    with pytest.raises(ArtifactError, match="names 0 engines as transformer, expected one"):
        WholeFolder.read(path)
