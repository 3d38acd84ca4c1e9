"""Families whose graphs no back end took as they are: complex numbers, truth values that are masked, constants near zero."""

from pathlib import Path

import pytest

import rfc
import rfc_export
import rfc_fx
from benchmarks.coverage.specs import all_specs
from rfc_export.parity import compare

pytest.importorskip("onnxruntime", reason="pip install 'rfc-fx[onnx]'")
pytestmark = pytest.mark.onnx

FAST = ("SanaTransformer2DModel",)
"""Of those below the cheapest; Qwen-Image's pipeline is drawn in `test_call_signatures`."""
SLOW = ("HunyuanVideoTransformer3DModel", "QwenImageTransformer2DModel", "ZImageTransformer2DModel", "Lumina2Transformer2DModel")


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_the_engine_takes_the_model_s_decisions(name: str, tmp_path: Path) -> None:
    spec, steps = all_specs()[name], 8
    model = spec.model(layers=1)
    arguments, method = spec.arguments(model), rfc.RFC(tau=0.3)
    cached = rfc_fx.transform(model, method, example_inputs=arguments)
    engine = rfc_export.load(rfc_export.export(cached, tmp_path / "engine", backend="onnx", example_inputs=arguments))
    parity = compare(engine, cached, [spec.moved(arguments, step, steps) for step in range(steps)])
    assert parity.phases == parity.expected_phases
    assert parity.worst < 1e-5
