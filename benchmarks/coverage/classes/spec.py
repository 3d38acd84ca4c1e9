"""Spec: how to build one class at two sizes, and the arguments of one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

Size = Literal["tiny", "real"]


Draw = Callable[..., Tensor]
"""Standard normal float32 of a shape."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One transformer class of diffusers."""

    name: str
    """Class name in diffusers."""
    tiny: Mapping[str, Any]
    """Configuration of the small form, without the number of blocks."""
    depth: Callable[[int], Mapping[str, Any]]
    """Configuration that gives every kind of block this often."""
    inputs: Callable[[Any, Draw, Size], dict[str, Any]]
    """(model.config, draw, size) -> keyword arguments of one call; `size` "real" has the token counts of practice."""
    real: Mapping[str, Any] = field(default_factory=dict)
    """Configuration at the published width, where the class's defaults are not that."""
    latent: str = "hidden_states"
    """Argument that the sampler moves: a tensor, or a list of tensors."""
    timestep: str = "timestep"

    def model(self, size: Size = "tiny", layers: int = 2, seed: int = 0, device: str = "cpu") -> nn.Module:
        """Build the model in eval mode; weights that start at zero (gates, heads) are filled, or every branch would vanish."""
        import diffusers

        torch.manual_seed(seed)
        config = {**(self.tiny if size == "tiny" else self.real), **self.depth(layers)}
        with torch.device(device):
            model: nn.Module = getattr(diffusers, self.name)(**config)
        if device != "meta":
            for parameter in model.parameters():
                if not parameter.detach().any():
                    nn.init.normal_(parameter, std=0.05)
        return model.eval()

    def arguments(self, model: nn.Module, size: Size = "tiny", seed: int = 0, device: str = "cpu") -> dict[str, Any]:
        """Keyword arguments of one call."""
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.empty(shape, device="meta") if device == "meta" else torch.randn(*shape, generator=generator)

        given: dict[str, Any] = pytree.tree_map_only(Tensor, lambda t: t.to(device), self.inputs(model.config, draw, size))
        return given

    def moved(self, arguments: Mapping[str, Any], step: int, steps: int) -> dict[str, Any]:
        """The call of step `step` of `steps`: the latent drifts along one direction, with a little noise, and the timestep falls."""

        def drift(x: Tensor) -> Tensor:
            along = torch.randn(x.shape, generator=torch.Generator().manual_seed(7))
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(step))
            return (x + 0.05 * step * along + 0.01 * noise).to(x.dtype)

        def fall(t: Tensor) -> Tensor:
            left = t * (steps - step)
            return left / steps if t.is_floating_point() else left // steps

        latent = pytree.tree_map_only(Tensor, drift, arguments[self.latent])
        timestep = pytree.tree_map_only(Tensor, fall, arguments[self.timestep])
        return {**arguments, self.latent: latent, self.timestep: timestep}


def prediction(output: Any) -> list[Tensor]:
    """All tensors a model returned."""
    return [
        leaf
        for leaf in pytree.tree_leaves(output if isinstance(output, tuple | dict | list | Tensor) else vars(output))
        if isinstance(leaf, Tensor)
    ]
