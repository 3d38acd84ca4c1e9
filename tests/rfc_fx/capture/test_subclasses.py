"""Weights that are tensor subclasses, as torchao's quantised ones: captured by their parts, seen when they take the place of others."""

from typing import Any

import pytest
import torch
from sampler_loops import Loop, tiny
from torch import Tensor, nn

import rfc
import rfc_fx


class Quantised(Tensor):
    """Eight bits and a scale for each row; every operation reads the weight as float."""

    @staticmethod
    def __new__(cls, bits: Tensor, scale: Tensor) -> Any:
        return Tensor._make_wrapper_subclass(cls, bits.shape, dtype=scale.dtype, device=bits.device)  # type: ignore[attr-defined]

    def __init__(self, bits: Tensor, scale: Tensor) -> None:
        self.bits, self.scale = bits, scale

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["bits", "scale"], None

    @classmethod
    def __tensor_unflatten__(cls, parts: dict[str, Tensor], meta: None, size: Any, stride: Any) -> Any:
        return cls(parts["bits"], parts["scale"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].bits, args[0].scale)
        return func(*(each.bits * each.scale if isinstance(each, cls) else each for each in args), **(kwargs or {}))


def quantise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            scale = module.weight.detach().abs().amax(1, keepdim=True) / 127
            bits = (module.weight.detach() / scale).round().to(torch.int8)
            module.weight = nn.Parameter(Quantised(bits, scale), requires_grad=False)


class Blocks(nn.Parameter):
    """Bytes and what they stand for, as a GGUF weight: no parts, the layer's forward takes them apart."""

    scale: float

    @classmethod
    def of(cls, data: Tensor, scale: float) -> Any:
        weight = Tensor._make_subclass(cls, data, False)
        weight.scale = scale
        return weight


class BlockLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        weight: Any = self.weight
        return nn.functional.linear(input, Tensor._make_subclass(Tensor, weight).float() * weight.scale, self.bias)


def test_weights_in_blocks_of_bytes_are_taken_apart_in_the_graph() -> None:
    model: Any = tiny()
    for module in [module for module in model.modules() if isinstance(module, nn.Linear)]:
        scale = module.weight.detach().abs().amax().item() / 127
        module.weight = Blocks.of((module.weight.detach() / scale).round().to(torch.int8), scale)
        module.__class__ = BlockLinear
    cached = rfc_fx.transform(model, rfc.FullCompute())
    assert torch.equal(Loop(3, 0).run(cached), Loop(3, 0).run(model))
    model.transformer_blocks[0].attn1.to_q.weight.scale *= 2  # a constant of the graph, as the type of a GGUF weight is
    with cached.generation():
        assert torch.equal(Loop(3, 0).run(cached), Loop(3, 0).run(model))


def test_quantised_weights_are_read_by_their_parts_live() -> None:
    model: Any = tiny()
    quantise(model)
    cached = rfc_fx.transform(model, rfc.FullCompute())
    first = Loop(3, 0).run(cached)
    assert torch.equal(first, Loop(3, 0).run(model))
    with torch.no_grad():
        model.transformer_blocks[0].attn1.to_q.weight.scale.mul_(1.5)
    assert torch.equal(changed := Loop(3, 0).run(cached), Loop(3, 0).run(model))
    assert not torch.equal(changed, first)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:.*are deprecated:UserWarning")
def test_packed_weights_are_refused_with_the_way_out() -> None:
    model: Any = tiny()
    torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, inplace=True)
    with pytest.raises(rfc_fx.CaptureError, match=r"_packed_params._packed_params is an object of TorchScript.*torchao's or GGUF's"):
        Loop(3, 0).run(rfc_fx.transform(model, rfc.FullCompute()))


def test_weights_quantised_between_generations_are_seen() -> None:
    model: Any = tiny()
    cached = rfc_fx.transform(model, rfc.FullCompute())
    first = Loop(3, 0).run(cached)
    quantise(model)
    with cached.generation():
        got = Loop(3, 0).run(cached)
    assert torch.equal(got, Loop(3, 0).run(model))
    assert not torch.equal(got, first)
