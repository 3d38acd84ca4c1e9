"""Weights of an artefact: what rfc.json says of each tensor, and the tensors themselves, views into what was read and hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import Any

import torch
from torch import Tensor

from rfc.files import FileError, parse_json
from rfc_export.errors import ArtifactError
from rfc_export.methods import DTYPES, name_of
from rfc_export.specs import WeightSpec

STORED_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
"""The names that safetensors has for types."""

MOST_HEADER = 64 << 20


def weight_spec(tensor: Tensor) -> WeightSpec:
    """What a manifest says of a tensor on the CPU."""
    content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
    return WeightSpec(dtype=name_of(tensor.dtype), shape=list(tensor.shape), sha256=hashlib.sha256(content).hexdigest())


def declared_as(where: str, name: str, declared: tuple[str, list[int]], stored: WeightSpec) -> None:
    """ArtifactError where a program declares a weight otherwise than the manifest: the program would read beside it."""
    if declared != (stored.dtype, stored.shape):
        raise ArtifactError(
            f"{where}: declares the weight {name} as {declared[0]} {declared[1]}, the file's is {stored.dtype} {stored.shape}; export again"
        )


def weights_of(where: str, content: Tensor, specs: Mapping[str, WeightSpec]) -> dict[str, Tensor]:
    """The tensors in a safetensors file, views into its bytes (uint8, one axis).

    ArtifactError where names, types, shapes, places or checksums are not those of `specs`, or the file holds anything beside them.
    """
    header, data = _header(where, content)
    if strange := sorted(set(header) ^ set(specs)):
        what = "is not in the file" if strange[0] in specs else "is in the file, but not among the weights of rfc.json"
        raise ArtifactError(f"{where}: {strange[0]} {what}; copy the artefact again")
    end, tensors = 0, {}
    for name, entry in sorted(header.items(), key=lambda item: _begin(where, item)):
        spec = specs[name]
        stored = (STORED_NAMES.get(str(entry.get("dtype")), "unknown"), entry.get("shape"))
        if stored != (spec.dtype, spec.shape):
            raise ArtifactError(
                f"{where}: {name} is {stored[0]} {stored[1]}, rfc.json says {spec.dtype} {spec.shape}: it is another model's; export again"
            )
        dtype = DTYPES[spec.dtype]
        begin, length = end, prod(spec.shape) * dtype.itemsize
        end += length
        if entry["data_offsets"] != [begin, end] or end > len(data):
            raise ArtifactError(f"{where}: {name} lies at {entry['data_offsets']}, expected {[begin, end]}; copy the artefact again")
        tensors[name] = _view(data[begin:end], dtype).reshape(spec.shape)
    if end != len(data):
        raise ArtifactError(f"{where}: {len(data) - end} bytes are of no tensor; copy the artefact again")
    _check_checksums(where, tensors, specs)
    return tensors


def _view(data: Tensor, dtype: torch.dtype) -> Tensor:
    return data.view(dtype) if data.storage_offset() % dtype.itemsize == 0 else data.clone().view(dtype)


def _header(where: str, content: Tensor) -> tuple[dict[str, Any], Tensor]:
    """The table at the head of the file, and the bytes after it."""
    raw = content.numpy()
    length = int.from_bytes(raw[:8].tobytes(), "little")
    if len(raw) < 8 or length > min(len(raw) - 8, MOST_HEADER):
        raise ArtifactError(f"{where}: no safetensors file, or cut off; copy the artefact again")
    try:
        header = parse_json(raw[8 : 8 + length].tobytes())
    except FileError as error:
        raise ArtifactError(f"{where}: its header: {error}; copy the artefact again") from error
    if not isinstance(header, dict):
        raise ArtifactError(f"{where}: its header is no table; copy the artefact again")
    header.pop("__metadata__", None)
    return header, content[8 + length :]


def _begin(where: str, item: tuple[str, Any]) -> tuple[int, int]:
    name, entry = item
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(offset) is int for offset in offsets):
        raise ArtifactError(f"{where}: {name} lies nowhere; copy the artefact again")
    return offsets[0], offsets[1]


def _check_checksums(where: str, tensors: Mapping[str, Tensor], specs: Mapping[str, WeightSpec]) -> None:
    with ThreadPoolExecutor(max_workers=max(1, torch.get_num_threads())) as pool:
        for name, found in zip(tensors, pool.map(weight_spec, tensors.values()), strict=True):
            if found.sha256 != specs[name].sha256:
                raise ArtifactError(
                    f"{where}: {name}: SHA-256 {found.sha256[:12]}..., expected {specs[name].sha256[:12]}...: the tensor was changed; "
                    "copy the artefact again"
                )
