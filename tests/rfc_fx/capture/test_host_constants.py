"""What comes of constants on the CPU alone is computed once where the programs run elsewhere; float64 stands for that place here."""

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from rfc_fx.capture import host_constants
from rfc_fx.capture.host_constants import fold_host_constants
from rfc_fx.ir.ops import aten, remove_dead


class Guided(nn.Module):
    """A constant becomes features on the CPU, which are moved, and another is read where it lies."""

    def __init__(self) -> None:
        super().__init__()
        self.constant_0, self.constant_1 = torch.tensor([1.0, 2.0]), torch.tensor(3.0)

    def forward(self, x: Tensor) -> Tensor:
        features = torch.sin(self.constant_0 * 2 + torch.arange(2))
        return x * features.to(torch.float64) + self.constant_1


class Valued(fx.Interpreter):
    """Notes the result of every node, as a capture does."""

    def __init__(self, module: fx.GraphModule, graph: fx.Graph) -> None:
        super().__init__(module, graph=graph)

    def run_node(self, n: fx.Node) -> Any:
        n.meta["val"] = result = super().run_node(n)
        return result


def folded(example: Tensor) -> tuple[nn.Module, fx.GraphModule, dict[str, Tensor]]:
    model = Guided()
    constants: dict[str, Tensor] = {"constant_0": model.constant_0, "constant_1": model.constant_1}
    traced = make_fx(model, tracing_mode="real")(example)
    names = {id(tensor): name for name, tensor in constants.items()}
    for node in traced.graph.find_nodes(op="get_attr"):
        node.target = names[id(getattr(traced, node.target))]
    Valued(fx.GraphModule(constants, traced.graph), traced.graph).run(example)
    fold_host_constants(traced.graph, constants)
    remove_dead(traced.graph)
    return model, fx.GraphModule(constants, traced.graph), constants


def test_only_constants_of_the_programs_own_device_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_constants, "_is_elsewhere", lambda tensor: isinstance(tensor, Tensor) and tensor.dtype == torch.float64)
    example = torch.randn(2, dtype=torch.float64)
    model, module, constants = folded(example)
    assert torch.equal(module(example), model(example))
    called = [node.target for node in module.graph.nodes if node.op == "call_function"]
    assert called == [aten.mul.Tensor, aten.add.Tensor]
    read = {str(node.target) for node in module.graph.find_nodes(op="get_attr")}
    assert read == {"host_constant_0", "host_constant_1"} <= constants.keys()


def test_on_the_cpu_nothing_changes() -> None:
    _, module, constants = folded(torch.randn(2))
    assert list(constants) == ["constant_0", "constant_1"]
    assert aten.sin.default in [node.target for node in module.graph.nodes]
