"""Weights that are tensor subclasses, as torchao's quantised ones: captured by their parts, seen when they take the place of others."""

from typing import Any

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


def test_weights_quantised_between_generations_are_seen() -> None:
    model: Any = tiny()
    cached = rfc_fx.transform(model, rfc.FullCompute())
    first = Loop(3, 0).run(cached)
    quantise(model)
    with cached.generation():
        got = Loop(3, 0).run(cached)
    assert torch.equal(got, Loop(3, 0).run(model))
    assert not torch.equal(got, first)
