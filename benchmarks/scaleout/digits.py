"""The shipped digits model with its sequence split over ranks: its class has no plan of its own, and attention past the dispatcher."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Dispatched:
    """Self-attention through diffusers' dispatcher, which communicates where `enable_parallelism` has told it to."""

    _attention_backend: Any = None
    _parallel_config: Any = None

    def __call__(self, attn: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """softmax(q k^T) v over the tokens of all ranks, (N, T, D)."""
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        q, k, v = (layer(hidden_states).unflatten(-1, (attn.heads, -1)) for layer in (attn.to_q, attn.to_k, attn.to_v))
        out = dispatch_attention_fn(q, k, v, backend=self._attention_backend, parallel_config=self._parallel_config)
        result: Tensor = attn.to_out[0](out.flatten(-2))
        return result


def split_digits(model: nn.Module, ranks: int) -> nn.Module:
    """The digits model, in place, with its 64 tokens split over the ranks of the default group (Ulysses)."""
    from diffusers import ContextParallelConfig
    from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput

    given: Any = model
    for block in given.transformer_blocks:
        block.attn1.set_processor(Dispatched())
    plan = {
        "transformer_blocks.0": {"hidden_states": ContextParallelInput(split_dim=1, expected_dims=3)},
        "proj_out_2": ContextParallelOutput(gather_dim=1, expected_dims=3),
    }
    given.enable_parallelism(config=ContextParallelConfig(ulysses_degree=ranks), cp_plan=plan)
    return model


def images(model: nn.Module, scheduler: Any, steps: int = 20) -> Tensor:
    """Ten digits with guidance, (10, 1, 16, 16): one of each class, the noise by seed."""
    import rfc_fx.zoo

    return rfc_fx.zoo.sample(model, scheduler, torch.arange(10), rfc_fx.zoo.digits_noise(list(range(10))), steps=steps)
