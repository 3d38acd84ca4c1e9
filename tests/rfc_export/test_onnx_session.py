"""The session binds whatever a program takes and gives, tensors without elements too."""

from pathlib import Path

import pytest
import torch
from onnx_programs import build, opened, small
from torch import Tensor, nn

from rfc_export.errors import BackendError

pytest.importorskip("onnxruntime", reason="pip install 'rfc-fx[onnx]'")
pytestmark = pytest.mark.onnx


class Kept(nn.Module):
    """A program whose result has as many rows as are kept, as the text of another encoder that is not there."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, x: Tensor, more: Tensor) -> tuple[Tensor]:
        return (torch.cat([x[: self.rows], more]) * 2,)


@pytest.mark.parametrize("rows", [0, 2])
def test_tensors_without_elements_go_in_and_come_out(rows: int, tmp_path: Path) -> None:
    x, nothing = torch.randn(3, 4), torch.empty(0, 4)
    program = small(Kept(rows), x, nothing)
    build(tmp_path, program)
    session = opened(tmp_path, program)
    for _ in range(2):
        (found,) = session([x, nothing], {})
        assert torch.equal(found, 2 * x[:rows])
        assert found.shape == (rows, 4)
    into = torch.empty(rows, 4)
    assert session([x, nothing], {0: into}) == []
    assert torch.equal(into, 2 * x[:rows])


class Normalised(nn.Module):
    """A norm between two transpositions, which an optimizer moves behind it: the weight, one a channel, has to stay what it is."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(1.0, 5.0))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        tokens = x.transpose(1, 2)
        return ((tokens * tokens.pow(2).mean(-1, keepdim=True).rsqrt() * self.weight).transpose(1, 2),)


def test_weights_that_sessions_share_keep_their_shape(tmp_path: Path) -> None:
    x = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    program = small(Normalised(), x)
    build(tmp_path, program)
    (found,) = opened(tmp_path, program)([x], {})
    torch.testing.assert_close(found, Normalised()(x)[0])


class Narrowed(nn.Module):
    """Stands for SanaWM, which multiplies in bfloat16 whatever its own type."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return ((x.bfloat16() * x.bfloat16()).float(),)


def test_a_cast_of_the_models_own_is_named_where_the_provider_has_no_kernel(tmp_path: Path) -> None:
    program = small(Narrowed(), torch.ones(2))
    build(tmp_path, program)
    with pytest.raises(BackendError, match=r"a part of FULL: .*; export with backend='aoti', the model casts to bfloat16 itself"):
        opened(tmp_path, program)
