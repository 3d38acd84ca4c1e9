"""Factors of weights are weights of the programs: computed at export, stored once, whatever the back end lacks."""

import torch
from drawing import difference
from tolerances import SAME_GRAPH
from torch import Tensor, fx, nn

from rfc_export.fold_weights import DECOMPOSITIONS
from rfc_export.portable import flat
from rfc_export.weight_names import Weights
from rfc_fx.capture.export import capture
from rfc_fx.ir.ops import aten


class Turned(nn.Module):
    """Turns by the orthogonal factor of a weight, as WanAnimate's motion encoder does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states @ torch.linalg.qr(self.weight + 1e-8)[0].T + torch.linalg.cholesky(self.weight.T @ self.weight).sum()


class OfItself(nn.Module):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return torch.linalg.qr(hidden_states)[1]


def flattened(module: nn.Module, weights: Weights) -> fx.GraphModule:
    captured = capture(module, {"hidden_states": torch.randn(5, 3)})
    weights.take(captured)
    root = nn.Module()
    root.model = module
    graph, used = flat(fx.GraphModule(root, captured.graph), weights)
    return fx.GraphModule(used, graph)


def test_decompositions_of_weights_are_computed_at_export_and_stored_once() -> None:
    module, weights = Turned(), Weights()
    first, second = flattened(module, weights), flattened(module, weights)
    x = torch.randn(5, 3)
    with torch.no_grad():
        expected = module(x)
    for program in (first, second):
        assert not DECOMPOSITIONS & {node.target for node in program.graph.nodes}
        assert difference(program(x)[0].detach(), expected) < SAME_GRAPH  # the factor lies in rows, LAPACK's in columns
        assert "folded.getitem" in program.state_dict()
    assert len(weights.tensors) == 3


def test_a_decomposition_of_an_argument_stays() -> None:
    program = flattened(OfItself(), Weights())
    assert aten.linalg_qr.default in {node.target for node in program.graph.nodes}
