"""Complex arguments are pairs of reals at an engine's boundary, in whatever form the caller has them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from drawing import difference
from torch import Tensor, nn

import rfc
import rfc_export
from rfc_export.parity import TOLERANCE
from rfc_fx.errors import SignatureError

pytest.importorskip("onnxruntime", reason="pip install 'rfc-fx[onnx]'")
pytestmark = pytest.mark.onnx


class Rotated(nn.Module):
    """Rotary embedding as an argument, as LuminaNextDiT2DModel takes it; `reads`: its Python looks at the values."""

    def __init__(self, reads: bool) -> None:
        super().__init__()
        self.proj_in, self.proj, self.reads = nn.Linear(4, 4), nn.Linear(4, 4), reads

    def forward(self, hidden_states: Tensor, timestep: Tensor, rotation: Tensor) -> Tensor:
        if self.reads and not rotation.abs().sum().item():
            return hidden_states
        hidden_states = self.proj_in(hidden_states)
        turned = torch.view_as_complex(hidden_states.unflatten(-1, (2, 2))) * rotation
        return hidden_states + self.proj(torch.view_as_real(turned).flatten(-2)) * timestep


@pytest.mark.parametrize("reads", [False, True])
def test_a_complex_argument_is_taken_as_it_is_and_as_a_pair(reads: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Rotated(reads).eval()
    rotation = torch.polar(torch.ones(3, 2), torch.rand(3, 2))
    inputs: dict[str, Any] = {"hidden_states": torch.randn(2, 3, 4), "timestep": torch.tensor(0.5), "rotation": rotation}
    rfc_export.export(model, tmp_path / "engine", backend="onnx", example_inputs=inputs, method=rfc.FullCompute())
    engine = rfc_export.load(tmp_path / "engine")
    with torch.no_grad():
        expected = model(**inputs)
        for given in (rotation, rotation.conj().resolve_conj().conj(), torch.view_as_real(rotation)):
            for _ in range(2):
                assert difference(engine(**inputs | {"rotation": given}), expected) < TOLERANCE["float32"]
        if reads:
            with pytest.raises(SignatureError, match="rotation has other values than the engine was built for"):
                engine(**inputs | {"rotation": rotation * 2})
        with pytest.raises(
            SignatureError, match=r"rotation: expected float32 of shape \(3, 2, 2\) on cpu, got float32 of shape \(2, 2, 2\)"
        ):
            engine(**inputs | {"rotation": rotation[:2]})
