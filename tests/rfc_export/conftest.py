"""Artefacts that many tests look at, exported once for each worker."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_digits import digits_sampler, first_blocks
from torch import Tensor, nn

import rfc
import rfc_export
import rfc_fx
from rfc_fx.zoo import digits_noise, load_digits, sample

METHOD = rfc.RFC(tau=0.15)
"""About 14 full computations in 50 steps on the digits model."""

Draw = Callable[[Any, int], Tensor]


@pytest.fixture(scope="session")
def digits() -> nn.Module:
    """The shipped model's first block: every kind of program, in an eighth of the time that compiling all eight takes."""
    return first_blocks(1)[0]


@pytest.fixture(scope="session")
def draw() -> Draw:
    """Draw one digit in 50 steps."""
    scheduler = load_digits()[1]
    return lambda model, seed: sample(model, scheduler, torch.tensor([3]), digits_noise([seed]))


@pytest.fixture(scope="session")
def onnx_digits(digits: nn.Module, digits_inputs: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That model as ONNX, host dispatch. Copy it before you change it."""
    pytest.importorskip("onnxruntime", reason="pip install 'rfc-fx[onnx]'")
    path = tmp_path_factory.mktemp("engines") / "onnx"
    return rfc_export.export(digits, path, backend="onnx", example_inputs=digits_inputs, method=METHOD, sampler=digits_sampler())


@pytest.fixture(scope="session")
def aoti_digits(digits: nn.Module, digits_inputs: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That model for AOTInductor, host dispatch, without hoisting (three programs to compile). Copy it before you change it."""
    path = tmp_path_factory.mktemp("engines") / "aoti"
    return rfc_export.export(
        digits,
        path,
        backend="aoti",
        example_inputs=digits_inputs,
        method=METHOD,
        sampler=digits_sampler(),
        config=rfc_fx.Config(hoist=False),
    )
