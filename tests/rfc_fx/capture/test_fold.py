"""Fold: how often items are repeated is fixed in the graph, and the shape behind it; what repeats the moving latent is refused."""

import pytest
import torch
from torch import Tensor, fx, nn

from rfc_fx.capture.export import Captured, capture
from rfc_fx.errors import CaptureError
from rfc_fx.ir.ops import aten, has_known_shape


class Expanded(nn.Module):
    """Stands for a model whose image tokens are several latents each, as QwenImage21 has them; its Python reads the mask."""

    def __init__(self, dim: int | None) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, hidden_states: Tensor, mask: Tensor) -> Tensor:
        if not mask.any():
            return hidden_states
        return torch.repeat_interleave(hidden_states, torch.where(mask, 4, 1), self.dim) * 2


class OfItself(nn.Module):
    def forward(self, hidden_states: Tensor, mask: Tensor) -> Tensor:
        if not mask.any():
            return hidden_states
        return hidden_states.repeat_interleave((hidden_states[0, :, 0] > 0).long(), dim=1)


def run(captured: Captured, *inputs: Tensor) -> Tensor:
    root = nn.Module()
    for name, constant in captured.constants.items():
        root.register_buffer(name, constant)
    out: Tensor = fx.GraphModule(root, captured.graph)(*inputs)[0]
    return out


@pytest.mark.parametrize("dim", [1, -2, None])
def test_numbers_of_repetitions_are_fixed_and_no_shape_depends_on_values(dim: int | None) -> None:
    tokens = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([False, True, False]) if dim else torch.arange(24) % 5 == 0
    captured = capture(Expanded(dim), {"hidden_states": tokens, "mask": mask})
    assert aten.index_select.default in {node.target for node in captured.graph.nodes}
    assert all(map(has_known_shape, captured.graph.nodes))
    assert captured.decided == {1}
    assert torch.equal(run(captured, 3 * tokens, mask), 3 * Expanded(dim)(tokens, mask))


def test_repetitions_by_the_latent_are_refused() -> None:
    with pytest.raises(CaptureError, match=r"reads the values of hidden_states, which change in every step\n  at repeat_interleave in"):
        capture(OfItself(), {"hidden_states": torch.randn(2, 3, 4), "mask": torch.tensor([True])})


class Experts(nn.Module):
    """Stands for NucleusMoEImage without a grouped product: each expert takes a number of tokens that comes of shapes alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0)))

    def forward(self, hidden_states: Tensor) -> Tensor:
        counts = torch.full((2,), hidden_states.shape[0] // 2)
        parts = torch.split(hidden_states, counts.tolist())
        return torch.cat([part @ weight for part, weight in zip(parts, self.weights, strict=True)])


def test_numbers_that_python_reads_of_shapes_are_fixed_before_products_are_counted() -> None:
    model, tokens = Experts(), torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    captured = capture(model, {"hidden_states": tokens})
    assert all(map(has_known_shape, captured.graph.nodes))
    assert not captured.decided


class TwoTexts(nn.Module):
    """Text by token, and pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.by_token, self.pooled = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, hidden_states: Tensor, text: Tensor, pooled: Tensor, timestep: Tensor) -> Tensor:
        return hidden_states + (self.by_token(text) + self.pooled(pooled)[:, None]) * timestep[:, None, None]


def test_an_argument_that_is_a_view_of_another_has_known_lengths() -> None:
    """torch.export writes the lengths of the other one as symbols with one value."""
    label = torch.eye(6)
    with torch.no_grad():
        arguments = {"hidden_states": torch.randn(6, 1, 4), "text": label[:, None], "pooled": label, "timestep": torch.ones(6)}
    captured = capture(TwoTexts(), arguments)
    assert all(map(has_known_shape, captured.graph.nodes))
    assert not captured.decided
