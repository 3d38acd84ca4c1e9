"""Programs of one small module as ONNX models: written, and opened with their own weights."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rfc_export import onnx as backend
from rfc_export.manifest import WEIGHTS
from rfc_export.portable import Portable
from rfc_export.specs import TensorSpec
from rfc_export.weights import weight_spec

CPU = torch.device("cpu")


def spec(kind: Any, name: str, like: Tensor) -> TensorSpec:
    return TensorSpec(kind=kind, name=name, dtype=str(like.dtype).removeprefix("torch."), shape=list(like.shape))


def small(module: nn.Module, *inputs: Tensor) -> Portable:
    """A program with these inputs and one output."""
    out = module(*inputs)[0]
    return Portable(
        "FULL",
        module,
        [spec("input", f"x{i}", x) for i, x in enumerate(inputs)],
        [spec("output", "0", out)],
        inputs,
        {name: name for name in parameters(module)},
        0,
        (),
    )


def parameters(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return {name: tensor.detach() for name, tensor in (*module.named_parameters(), *module.named_buffers())}


def manifest_of(program: Portable) -> Any:
    """As much of a manifest as opening one program needs."""
    spec = SimpleNamespace(file="full.onnx", entry="FULL", inputs=program.inputs, outputs=program.outputs, weights=program.weights)
    weights = {name: weight_spec(tensor) for name, tensor in parameters(program.module).items()}
    return SimpleNamespace(sets=[SimpleNamespace(programs={"FULL": spec})], weights=weights)


def opened(folder: Path, program: Portable, device: torch.device = CPU) -> Any:
    """The one program, with its own weights."""
    contents = {"full.onnx": (folder / "full.onnx").read_bytes()}
    weights = {name: tensor.to(CPU) for name, tensor in parameters(program.module).items()}
    manifest = manifest_of(program)
    return backend.open(folder, contents, manifest.sets[0].programs, manifest, weights, device)["FULL"]


def build(folder: Path, program: Portable) -> Path:
    if not (folder / WEIGHTS).exists():
        save_file(parameters(program.module), folder / WEIGHTS)
    backend.build({"FULL": program}, {}, folder, CPU, lambda line: None)
    return folder / "full.onnx"
