"""Files of a model's folder, checked before diffusers reads them: none blocks, runs code or takes memory without a bound."""

from __future__ import annotations

import inspect
import re
import stat
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rfc.files import FileError, open_regular, parse_json, read_json
from rfc_fx.errors import RFCError

MOST_FILES, MOST_JSON, MOST_OTHER_JSON = 10_000, 4 << 20, 256 << 20
"""Files in a folder; bytes of a configuration, and of a tokenizer's or an index's file."""

SCHEDULER = "scheduler_config.json"
CONFIGURATIONS = ("config.json", "model_index.json", SCHEDULER)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")

LAYERS = re.compile(r"(layers?|blocks?|depth)$")
LENGTHS = re.compile(r"(^|_)(sample_size|height|width|frames|patch_size|patch_size_t|max_size)$")
MOST_TIMESTEPS = 1_000_000

MOST_LENGTH, MOST_POSITIONS, MOST_INTEGER = 1 << 16, 1 << 28, 10_000_000
"""A side of a sample; elements of a table of positions; integers beyond the number of weights."""


class ModelFilesError(RFCError):
    """A model's folder with a file that is not read, or a configuration that its weights do not bear out."""


def check_files(folder: Path, *, allow_pickle: bool) -> None:
    """ModelFilesError for pipes and devices, configurations that are none, and, without `allow_pickle`, weights in pickles alone."""
    for part in (folder, *(entry for entry in _entries(folder) if entry.is_dir())):
        files = [entry for entry in _entries(part) if not entry.is_dir()]
        for file in files:
            _check_file(file)
        stored = {file.suffix for file in files}
        if not allow_pickle and ".safetensors" not in stored and (pickled := [file for file in files if file.suffix in PICKLES]):
            raise ModelFilesError(
                f"{pickled[0]}: the weights are a pickle, which can hold code; save the model with safe_serialization=True, or pass "
                "--allow-pickle for a file that you trust"
            )


def _entries(folder: Path) -> list[Path]:
    entries = []
    for entry in folder.iterdir():
        entries.append(entry)
        if len(entries) > MOST_FILES:
            raise ModelFilesError(f"{folder}: more than {MOST_FILES} files; pass the folder of a model")
    return sorted(entries)


def _check_file(file: Path) -> None:
    try:
        facts = file.stat()
    except OSError:
        return  # a link that leads nowhere is a file that is missing
    if not stat.S_ISREG(facts.st_mode):
        raise ModelFilesError(f"{file}: is a pipe or a device, no file; it is not read")
    try:
        if file.name in CONFIGURATIONS:
            config = read_json(file, most=MOST_JSON, finite=False)
            if not isinstance(config, dict):
                raise FileError("expected an object of settings")
            if file.name == SCHEDULER and (large := next((one for one in _integers(config) if abs(one[1]) > MOST_TIMESTEPS), None)):
                raise FileError(f"{large[0]} is {large[1]}, expected at most {MOST_TIMESTEPS}: a scheduler makes tables of that length")
        elif file.suffix == ".json" and facts.st_size > MOST_OTHER_JSON:
            raise FileError(f"has {facts.st_size} bytes, at most {MOST_OTHER_JSON} are expected")
    except FileError as error:
        raise ModelFilesError(f"{file}: {error}; copy the model again") from error


def check_sizes(folder: Path) -> None:
    """ModelFilesError where config.json asks for another size of model than the weights beside it are of; nothing is allocated."""
    if not (folder / "config.json").is_file():
        return
    config = read_json(folder / "config.json", most=MOST_JSON, finite=False)
    tensors, elements = stored_sizes(folder)
    if not tensors:
        return
    where = folder / "config.json"
    for name, value in _integers(config):
        most = max(elements, MOST_INTEGER)
        if LAYERS.search(name):
            most = tensors
        elif LENGTHS.search(name):
            most = MOST_LENGTH
        if value > most or (value < 0 and LAYERS.search(name)):
            raise ModelFilesError(
                f"{where}: {name} is {value}, expected at most {most} for {tensors} stored tensors with {elements} numbers"
            )
    if (count := _positions(config)) > MOST_POSITIONS:
        raise ModelFilesError(f"{where}: sample_size asks for a table of {count:.1e} numbers, expected at most {MOST_POSITIONS:.1e}")
    _check_parameters(where, config, elements)


def stored_sizes(folder: Path) -> tuple[int, int]:
    """(tensors, numbers) in the headers of a folder's safetensors files; (0, 0) where there are none."""
    tensors = elements = 0
    for path in sorted(folder.glob("*.safetensors")):
        for entry in header(path).values():
            shape = entry.get("shape") if isinstance(entry, dict) else None
            if isinstance(shape, list) and all(type(length) is int and 0 <= length < 1 << 40 for length in shape):
                tensors, elements = tensors + 1, elements + prod(shape)
    return tensors, min(elements, 1 << 62)


def header(path: Path) -> dict[str, Any]:
    """The table at the head of a safetensors file: eight bytes for its length, then JSON; empty for a file that is damaged."""
    try:
        with open_regular(path) as file:
            length = int.from_bytes(file.read(8), "little")
            table = parse_json(file.read(length)) if length <= min(path.stat().st_size, 100_000_000) else {}
    except (OSError, FileError):
        return {}
    return table if isinstance(table, dict) else {}


def _integers(value: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """Every integer of a configuration with the name of the setting it belongs to."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _integers(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _integers(inner, name)
    elif type(value) is int:
        yield name, value


def _positions(config: dict[str, Any]) -> float:
    """Numbers in the table of positions that a model of patches makes for its sample size."""

    def number(*names: str) -> float:
        found = (config.get(name) for name in names)
        return next((float(value) for value in found if isinstance(value, int | float) and value > 0), 1.0)

    side = number("sample_size") / number("patch_size")
    return side * side * number("num_attention_heads") * number("attention_head_dim")


def _check_parameters(where: Path, config: dict[str, Any], elements: int) -> None:
    """Build a model of diffusers without memory, and compare how many numbers it has with what is stored."""
    import diffusers

    kind: Any = getattr(diffusers, str(config.get("_class_name")), None)
    is_model = inspect.isclass(kind) and issubclass(kind, nn.Module)
    if not is_model:
        return
    try:
        model: nn.Module
        with torch.device("meta"):
            model = kind.from_config(config)
    except Exception as error:  # a model raises what it likes of its settings
        raise ModelFilesError(f"{where}: {config['_class_name']} cannot be made of it: {type(error).__name__}: {error}") from error
    if (own := sum(parameter.numel() for parameter in model.parameters())) > 2 * elements + (1 << 20):
        raise ModelFilesError(
            f"{where}: asks for a model of {own:.3g} numbers, the weights beside it have {elements:.3g}; copy the model again"
        )
