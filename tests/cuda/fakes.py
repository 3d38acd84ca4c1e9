"""Models and calls as fake tensors of a CUDA device: shapes, types and places, no values and no memory."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.utils._pytree as pytree
from absent_gpu import DEVICE
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode


def on_device(tree: Any, mode: FakeTensorMode) -> Any:
    """Tensors of a tree of arguments as fakes on the device."""
    return pytree.tree_map_only(Tensor, lambda tensor: _moved(tensor, mode), tree)


def moved(model: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """The model itself, its weights and buffers exchanged for fakes on the device."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(_moved(parameter.detach(), mode), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _moved(buffer, mode)
    return model


def _moved(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    fake = mode.from_tensor(tensor)
    with mode:
        return fake.to(DEVICE)


def every_index(mask: Tensor, *, as_tuple: Literal[False] = False) -> Tensor:
    """torch.nonzero of a mask that lets everything through: fakes have no values, and a length that depends on them is none."""
    lengths = [torch.arange(length, device=mask.device) for length in mask.shape]
    return torch.cartesian_prod(*lengths).reshape(-1, mask.dim())


class Watching(fx.Interpreter):
    """Interprets a graph and notes every result that lies elsewhere, or is of another type or shape than the graph says."""

    def __init__(self, module: fx.GraphModule, found: list[str] | None = None) -> None:
        super().__init__(module)
        self.found: list[str] = [] if found is None else found

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device != DEVICE and node.op != "output":
                self.found.append(f"{node.format_node()}: on {leaf.device}")
        said = node.meta.get("val")
        if isinstance(said, Tensor) and isinstance(result, Tensor) and (said.shape, said.dtype) != (result.shape, result.dtype):
            self.found.append(f"{node.format_node()}: {result.dtype} {tuple(result.shape)}, said {said.dtype} {tuple(said.shape)}")
        return result

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        called = self.fetch_attr(target)
        if isinstance(called, fx.GraphModule):
            return Watching(called, self.found).run(*args)
        return super().call_module(target, args, kwargs)


def strays(module: Any, arguments: Any, mode: FakeTensorMode) -> list[str]:
    """What a program computes elsewhere than on the device, or otherwise than its graph says."""
    watching = Watching(module)
    with mode, torch.no_grad():
        watching.run(*arguments)
    return watching.found
