"""The session binds whatever a program takes and gives, tensors without elements too."""

from pathlib import Path

import pytest
import torch
from onnx_programs import build, opened, small
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

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
    """Stands for SanaWM, which multiplies in bfloat16 whatever its own type; in a branch as well."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        narrow = x.bfloat16()
        chosen = torch.cond(x.sum() > 0, lambda y: y * y, lambda y: y / 3 - y, (narrow,))
        attended = functional.scaled_dot_product_attention(*(narrow.reshape(1, 1, 50, 20) for _ in range(3))).flatten()
        return ((functional.silu(narrow.sin() * chosen + 1) * attended).float(),)


class Scattered(nn.Module):
    """Stands for Nucleus, whose experts' outputs are added to their tokens."""

    def forward(self, x: Tensor, rows: Tensor) -> tuple[Tensor]:
        return (torch.zeros(2000, 2, dtype=x.dtype).scatter_add(0, rows, x * 2),)  # too many zeros to be stored


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scattered_values_of_half_precision_are_added(dtype: torch.dtype, tmp_path: Path) -> None:
    x, rows = torch.tensor([[1.0, 2.0], [4.0, 8.0], [16.0, 32.0]]).to(dtype), torch.tensor([[0, 1], [0, 1], [2, 1]])
    program = small(Scattered(), x, rows)
    build(tmp_path, program)
    (found,) = opened(tmp_path, program)([x, rows], {})
    assert torch.equal(found, Scattered()(x, rows)[0])


def test_what_a_model_computes_in_bfloat16_is_rounded_as_the_model_does(tmp_path: Path) -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    program = small(Narrowed(), x)
    build(tmp_path, program)
    run = opened(tmp_path, program)
    for sign in (1, -1):
        (found,) = run([sign * x], {})
        with sdpa_kernel(SDPBackend.MATH):  # the others round the probabilities as well
            exact = Narrowed()(sign * x)[0]
        assert (found == exact).float().mean() > 0.99  # the rest: sums and exponentials that end beside a tie
