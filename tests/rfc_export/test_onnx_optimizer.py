"""The ONNX optimizer: no constant is taken for 0 or 1 that is near it, none takes another's place; truth values are selected by logic."""

from pathlib import Path

import pytest
import torch
from onnx_programs import build, opened, small
from torch import Tensor, nn

pytest.importorskip("onnxruntime", reason="pip install 'rfc-fx[onnx]'")
pytestmark = pytest.mark.onnx


class Near(nn.Module):
    """What onnxscript's rules take for x / x, x, x, x."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (torch.stack([x / (x + 1e-15), (x + 1) * 1.000005, x / 0.999995, x - 1e-9]),)


class Masked(nn.Module):
    def forward(self, mask: Tensor, where: Tensor) -> tuple[Tensor]:
        no, yes = mask.masked_fill(where, False), mask.masked_fill(where, True)
        chosen = torch.where(where, mask, ~mask)
        tensor = mask.masked_fill(where, torch.tensor(True))
        return (torch.stack([no, yes, chosen, tensor]),)


class Indexed(nn.Module):
    """Reads and writes with indices in int32."""

    def forward(self, x: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor]:
        return (x.index_put((rows, columns), x[rows, columns] + 1),)


def test_constants_near_zero_and_one_keep_their_values(tmp_path: Path) -> None:
    x = torch.tensor([0.0, 3.0, 1e6])
    program = small(Near(), x)
    build(tmp_path, program)
    (found,) = opened(tmp_path, program)([x], {})
    assert torch.equal(found, Near()(x)[0])


class Clipped(nn.Module):
    """Two ranges of one value, each by a maximum and a minimum, and by a rectifier."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        bounds = [torch.tensor(bound) for bound in (-1.0, 1.0, 0.0, 2.0)]
        ranges = [x.maximum(low).minimum(high) for low, high in (bounds[:2], bounds[2:])]
        return (torch.stack([*ranges, x.relu().clamp(max=0.5), x.relu().clamp(max=1.5), x.clamp(0, 7), x.clamp(1, 3)]),)


def test_clips_of_one_value_keep_their_own_bounds(tmp_path: Path) -> None:
    x = torch.linspace(-3, 3, 7)
    program = small(Clipped(), x)
    build(tmp_path, program)
    (found,) = opened(tmp_path, program)([x], {})
    assert torch.equal(found, Clipped()(x)[0])


def test_indices_in_int32_are_taken(tmp_path: Path) -> None:
    x, rows, columns = torch.randn(4, 5), torch.tensor([0, 3], dtype=torch.int32), torch.tensor([4, 1], dtype=torch.int32)
    program = small(Indexed(), x, rows, columns)
    build(tmp_path, program)
    (found,) = opened(tmp_path, program)([x, rows, columns], {})
    assert torch.equal(found, Indexed()(x, rows, columns)[0])


def test_truth_values_are_filled_and_selected_without_a_kernel_that_the_provider_lacks(tmp_path: Path) -> None:
    import onnx

    mask, where = torch.tensor([[True, False, True], [False, False, True]]), torch.tensor([[True, True, False]])
    program = small(Masked(), mask, where)
    path = build(tmp_path, program)
    (found,) = opened(tmp_path, program)([mask, where], {})
    assert torch.equal(found, Masked()(mask, where)[0])
    assert "Where" not in {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}


class Branched(nn.Module):
    """Truth values are selected in both branches of a condition, and outside of it."""

    def forward(self, x: Tensor, mask: Tensor, where: Tensor) -> tuple[Tensor]:
        def either(mask: Tensor, where: Tensor) -> Tensor:
            return torch.where(where, mask, mask.flip(0))

        def other(mask: Tensor, where: Tensor) -> Tensor:
            return torch.where(where, mask.flip(0), mask)

        chosen = torch.cond(x.sum() > 0, either, other, (mask, where))
        return (torch.where(where, chosen, ~chosen),)


def test_values_made_in_branches_have_names_of_their_own(tmp_path: Path) -> None:
    mask, where = torch.tensor([[True, False, True], [False, False, True]]), torch.tensor([[True, True, False]])
    program = small(Branched(), torch.ones(2), mask, where)
    build(tmp_path, program)
    run = opened(tmp_path, program)
    for sign in (1, -1):
        x = torch.full((2,), float(sign))
        (found,) = run([x, mask, where], {})
        assert torch.equal(found, Branched()(x, mask, where)[0])
