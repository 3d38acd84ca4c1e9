"""Weights: name, type, shape and checksum of each are in the manifest and held against what the programs declare, before the first call."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from edited_engines import linked, put, with_file, with_manifest, with_weights
from safetensors.torch import load_file
from torch import Tensor

import rfc_export
from rfc_export import ArtifactError
from rfc_export.aoti_constants import declared_constants
from rfc_export.manifest import WEIGHTS
from rfc_export.specs import WeightSpec
from rfc_export.weights import declared_as

pytestmark = pytest.mark.onnx

CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "another type": lambda t: t.half(),
    "half as many rows": lambda t: t[: max(1, len(t) // 2)] if len(t) > 1 else torch.cat([t, t]),
    "other values": lambda t: t + 1,
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_weight_of_another_type_or_shape_or_value_is_refused_by_name(change: str, onnx_small: Path, tmp_path: Path) -> None:
    tensors = load_file(onnx_small / WEIGHTS)
    for index, (name, tensor) in enumerate(tensors.items()):
        folder = with_weights(linked(onnx_small, tmp_path / str(index)), {name: CHANGES[change](tensor)}, told=False)
        with pytest.raises(ArtifactError, match=f"{WEIGHTS}: {name}"):
            rfc_export.load(folder)


@pytest.mark.parametrize("change", ["another type", "half as many rows"])
def test_what_a_manifest_agrees_to_is_still_held_against_the_program(change: str, onnx_small: Path, tmp_path: Path) -> None:
    for index, (name, tensor) in enumerate(load_file(onnx_small / WEIGHTS).items()):
        folder = with_weights(linked(onnx_small, tmp_path / str(index)), {name: CHANGES[change](tensor)})
        with pytest.raises(ArtifactError, match=r"\.onnx: declares the weight \S+ as float32 .*, the file's is"):
            rfc_export.load(folder)


def test_a_weight_beside_those_of_the_manifest_or_lost_is_refused(onnx_small: Path, tmp_path: Path) -> None:
    more = with_weights(linked(onnx_small, tmp_path / "more"), {"surprise": torch.zeros(1)}, told=False)
    with pytest.raises(ArtifactError, match="surprise is in the file, but not among the weights"):
        rfc_export.load(more)
    lost = with_manifest(linked(onnx_small, tmp_path / "lost"), lambda record: record["weights"].pop("proj_out_2.bias"))
    with pytest.raises(ArtifactError, match=r"asks for weights that are not there: proj_out_2\.bias"):
        rfc_export.load(lost)


def test_a_file_that_is_exchanged_between_check_and_use_has_no_effect(
    onnx_small: Path, digits_inputs: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rfc_export import onnx as backend

    folder, opens = linked(onnx_small, tmp_path / "engine"), backend.open

    def exchanged(*arguments: object) -> object:
        for path in folder.iterdir():
            put(path, b"")
        return opens(*arguments)  # type: ignore[arg-type]

    expected = rfc_export.load(onnx_small)(**digits_inputs).sample
    monkeypatch.setattr(backend, "open", exchanged)
    assert torch.equal(rfc_export.load(folder)(**digits_inputs).sample, expected)


def test_a_program_that_reads_memory_of_another_file_is_refused(onnx_small: Path, tmp_path: Path) -> None:
    def outside(tensor: onnx.TensorProto) -> None:
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../secret")

    def own_constant(model: onnx.ModelProto) -> None:
        outside(model.graph.initializer.add(name="own", data_type=1, dims=[1]))

    def inside_a_node(model: onnx.ModelProto) -> None:
        outside(model.graph.node.add(op_type="Constant", output=["c"]).attribute.add(name="value", type=4).t)

    for index, change in enumerate((own_constant, inside_a_node)):
        model = onnx.load_model(onnx_small / "full.onnx", load_external_data=False)
        change(model)
        folder = with_file(linked(onnx_small, tmp_path / str(index)), "full.onnx", model.SerializeToString())
        with pytest.raises(ArtifactError, match=r"full\.onnx: (own|a constant) lies in another file"):
            rfc_export.load(folder)


def test_constants_of_machine_code_are_read_from_the_source_beside_it() -> None:
    import io
    import zipfile

    source = (
        "    constants_info_[0].dtype = cached_torch_dtype_float32;\n    constants_info_[0].shape = {256, 128};\n"
        '    constants_info_[0].original_fqn = "proj.weight";\n    constants_info_[1].dtype = cached_torch_dtype_int64;\n'
        '    constants_info_[1].shape = {};\n    constants_info_[1].original_fqn = "count";\n'
    )
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("programs/data/aotinductor/FULL/c.wrapper.cpp", source)
        archive.writestr("programs/data/aotinductor/FULL/c.wrapper.so", "")
        archive.writestr("programs/data/aotinductor/PREFIX/c.wrapper.cpp", source)  # no code beside it: there is no such program
    declared = declared_constants("programs.pt2", stream.getvalue())
    assert declared == {"FULL": {"proj.weight": ("float32", [256, 128]), "count": ("int64", [])}}
    stored = WeightSpec(dtype="float16", shape=[256, 128], sha256="0" * 64)
    with pytest.raises(ArtifactError, match=r"declares the weight proj\.weight as float32 \[256, 128\], the file's is float16"):
        declared_as("FULL", "proj.weight", declared["FULL"]["proj.weight"], stored)
    with pytest.raises(ArtifactError, match="cannot be loaded"):
        declared_constants("programs.pt2", stream.getvalue()[:-30])
