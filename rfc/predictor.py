"""Predictor: a small trained network that forecasts the stream behind a model's blocks, and the folder it is kept in (DisCa).

The folder holds `predictor.json` and `predictor.safetensors`. The predictor's blocks are of the model's own class.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional as F

from rfc.files import FileError, read_bytes, read_json
from rfc.granularity import block_modules

CONFIG, WEIGHTS = "predictor.json", "predictor.safetensors"
SCHEMA_VERSION = 1
"""Of `predictor.json`."""

MOST_CONFIG_BYTES, MOST_BYTES = 1 << 20, 1 << 32
"""Of the two files."""

MOST_BLOCKS = 64
"""Blocks that a predictor may have: what a file says is not believed without a bound."""


class PredictorError(ValueError):
    """A predictor that is not there, was changed, or is not of this model."""


class Predictor(nn.Module):
    """h = blocks(W_out SiLU(W_in [x, cache])), x the embedded tokens now, cache the stream behind the last block then.

    Made from one of the model's own blocks: `count` copies of it, with weights of their own. `channels` is the stream's width.
    """

    def __init__(self, block: nn.Module, channels: int, count: int) -> None:
        super().__init__()
        like = next(block.parameters())
        self.project_in = nn.Linear(2 * channels, channels, device=like.device, dtype=like.dtype)
        self.project_out = nn.Linear(channels, channels, device=like.device, dtype=like.dtype)
        self.blocks = nn.ModuleList(copy.deepcopy(block) for _ in range(count))

    @property
    def channels(self) -> int:
        """Width of the stream."""
        return self.project_out.out_features

    def forward(
        self, x: Float[Tensor, "N T D"], cache: Float[Tensor, "N T D"], call: Callable[[nn.Module, Tensor], Tensor]
    ) -> Float[Tensor, "N T D"]:
        """The forecast; `call` runs a block on a stream, with the block's other arguments."""
        h: Tensor = self.project_out(F.silu(self.project_in(torch.cat([x, cache], dim=-1))))
        for block in self.blocks:
            h = call(block, h)
        return h


def description(model: nn.Module, predictor: Predictor) -> dict[str, Any]:
    """What `predictor.json` says: which model's stream it is for."""
    _, block = block_modules(model)[0]
    return {
        "schema_version": SCHEMA_VERSION,
        "model_class": type(model).__name__,
        "block_class": type(block).__name__,
        "channels": predictor.channels,
        "blocks": len(predictor.blocks),
    }


def checksum(folder: Path) -> str:
    """SHA-256 of the weights; PredictorError where a file is missing."""
    return hashlib.sha256(_content(folder)).hexdigest()


def _content(folder: Path) -> bytes:
    """The weights' file, opened once: what is hashed is what is read."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise PredictorError(
                f"DisCa: no predictor in {folder}: expected {CONFIG} and {WEIGHTS}, {name} is missing; train one for the model "
                "(python -m benchmarks.train_predictor makes that of the digits model)"
            )
    try:
        return read_bytes(folder / WEIGHTS, MOST_BYTES)
    except FileError as error:
        raise PredictorError(f"{folder / WEIGHTS}: {error}") from error


def _check_sizes(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    blocks = len({name.split(".")[1] for name in tensors if name.startswith("blocks.") and name.count(".") > 1})
    width = tensors["project_out.weight"].shape if "project_out.weight" in tensors else ()
    channels = config["channels"]
    if blocks < config["blocks"] or tuple(width) != (channels, channels):
        raise PredictorError(
            f"{folder / CONFIG}: says {config['blocks']} blocks of {channels} channels, {WEIGHTS} has {blocks} and project_out.weight "
            f"of shape {tuple(width)}; copy both files again"
        )


def read_config(folder: Path) -> dict[str, Any]:
    """The content of `predictor.json`; PredictorError where it is none."""
    where = folder / CONFIG
    try:
        config = read_json(where, most=MOST_CONFIG_BYTES)
    except FileError as error:
        raise PredictorError(f"{where}: not a predictor's description: {error}") from error
    version = config.get("schema_version") if isinstance(config, dict) else None
    if version != SCHEMA_VERSION:
        raise PredictorError(f"{where}: expected a predictor's description of schema version {SCHEMA_VERSION}, got {version!r}")
    for name, most in (("channels", 1 << 20), ("blocks", MOST_BLOCKS)):
        count = config.get(name)
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= most:
            raise PredictorError(f"{where}: {name} must be an integer from 1 to {most}, got {count!r}")
    return dict(config)


def load_predictor(model: nn.Module, folder: Path, sha256: str) -> Predictor:
    """The predictor on the model's device and in its type, in eval mode, without gradients.

    Raises PredictorError where it is missing, was changed since the method was made, or was trained for another model.
    """
    content = _content(folder)
    if (digest := hashlib.sha256(content).hexdigest()) != sha256:
        raise PredictorError(
            f"{folder / WEIGHTS}: SHA-256 {digest[:12]}..., the method was made for {sha256[:12]}...: the file was changed; "
            "make the method anew"
        )
    config = read_config(folder)
    _, block = same_blocks(model)[0]
    own = {"model_class": type(model).__name__, "block_class": type(block).__name__}
    for name, value in own.items():
        if config.get(name) != value:
            raise PredictorError(
                f"{folder / CONFIG}: {name}: the predictor was trained for {config.get(name)}, the model's is {value}; "
                "train one for this model, or use a method without a predictor (rfc.TaylorSeerLite)"
            )
    try:
        tensors = load(content)
    except (SafetensorError, ValueError) as error:
        raise PredictorError(f"{folder / WEIGHTS}: no safetensors file, or one that is cut off: {error}") from error
    _check_sizes(folder, config, tensors)  # before memory is taken for what the description says
    predictor = Predictor(block, config["channels"], config["blocks"])
    expected = predictor.state_dict()
    if strange := sorted(set(tensors) ^ set(expected)):
        where = "not in the file" if strange[0] in expected else "in the file, but of no such block"
        raise PredictorError(f"{folder / WEIGHTS}: {strange[0]} is {where}; the predictor was trained for another model")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise PredictorError(
                f"{folder / WEIGHTS}: {name}: expected shape {tuple(expected[name].shape)} for this model's blocks, got "
                f"{tuple(tensor.shape)}; the predictor was trained for another model"
            )
    fitting = {name: tensor.to(expected[name].device, expected[name].dtype) for name, tensor in tensors.items()}
    predictor.load_state_dict(fitting, assign=True)
    return predictor.eval().requires_grad_(False)


def same_blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The model's blocks; PredictorError where they are not all of one class."""
    blocks = block_modules(model)
    if len(kinds := dict.fromkeys(type(block).__name__ for _, block in blocks)) > 1:
        raise PredictorError(
            f"DisCa: {type(model).__name__} has blocks of the classes {', '.join(kinds)}; a predictor stands in for blocks of one class "
            "and one stream of tokens; use a method without a predictor (rfc.TaylorSeerLite)"
        )
    return blocks
