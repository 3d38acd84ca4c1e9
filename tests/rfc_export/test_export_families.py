"""Families of models as ONNX engines: the model's decisions, and its outputs within rounding."""

from collections.abc import Callable
from pathlib import Path

import pytest

import rfc
import rfc_export
import rfc_fx
from benchmarks.coverage.specs import FAMILIES, all_specs
from rfc.method import Method
from rfc_export.parity import compare

pytest.importorskip("onnxruntime", reason="pip install 'rfc-fx[onnx]'")
pytestmark = [
    pytest.mark.onnx,
    # Chroma and Mochi of diffusers 0.42
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:In CPU autocast, but the target dtype is not supported:UserWarning"),
]

STEPS = 8

FAST = ("SanaTransformer2DModel",)
"""Constants near zero, which another optimizer drops. Digits (DiT), FLUX and Qwen-Image are exported by the fast tests of other files."""

DIFFUSIONS = ("DiTTransformer2DModel", "PixArtTransformer2DModel", "HunyuanDiT2DModel", "CogVideoXTransformer3DModel")
"""Families that are no flows: the default method has another clock for flows."""


def log_snr(family: str) -> Method:
    return rfc.LogSNR(lambdas=[step - 4.0 for step in range(STEPS)], is_flow=family not in DIFFUSIONS, nfc=4)


def check(family: str, method: Callable[[], Method], path: Path) -> None:
    spec = all_specs()[family]
    model = spec.model(layers=1)
    arguments = spec.arguments(model)
    cached = rfc_fx.transform(model, method(), example_inputs=arguments)
    engine = rfc_export.load(rfc_export.export(cached, path, backend="onnx", example_inputs=arguments))
    parity = compare(engine, cached, [spec.moved(arguments, step, STEPS) for step in range(STEPS)])
    assert parity.phases == parity.expected_phases
    assert parity.worst < 1e-5


@pytest.mark.parametrize("family", FAST)
def test_the_engine_takes_the_model_s_decisions(family: str, tmp_path: Path) -> None:
    check(family, lambda: rfc.RFC(tau=0.3), tmp_path / "engine")


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_engine_of_the_default_method_estimates_what_the_model_does(family: str, tmp_path: Path) -> None:
    check(family, lambda: log_snr(family), tmp_path / "engine")
