"""What a capture depends on besides the values of weights: models that are alike share one graph."""

from typing import Any

import torch
from torch import Tensor, nn

OF_MODULES = frozenset(vars(nn.Module())) - {"training"}


def alike(model: nn.Module) -> Any:
    """A key that models have in common whose captures differ by the model alone: classes, settings, hooks, types and shapes."""
    modules = tuple((name, _of(module, set())) for name, module in model.named_modules())
    held, seen = model.state_dict(keep_vars=True), dict[Any, int]()
    shared = tuple(seen.setdefault((id(one), one.untyped_storage().data_ptr()), len(seen)) for one in held.values())
    return modules, shared, tuple((name, tuple(one.shape), one.stride(), one.dtype, one.device) for name, one in held.items())


def _of(value: Any, seen: set[int]) -> Any:
    """Settings by value, objects by class and settings; what has no value to compare is another one every time."""
    if isinstance(value, str | int | float | bool | type(None) | torch.dtype | torch.device | type):
        return type(value), repr(value)
    if id(value) in seen:
        return "seen before"
    seen = seen | {id(value)}
    if isinstance(value, Tensor):
        return (
            "tensor",
            tuple(value.shape),
            value.dtype,
            str(value.flatten().tolist()) if value.numel() < 4096 and not value.is_meta else Itself(value),
        )
    if isinstance(value, nn.Module):
        hooks = tuple(map(Itself, (*value._forward_hooks.values(), *value._forward_pre_hooks.values())))
        own = {name: one for name, one in vars(value).items() if name not in OF_MODULES}
        return type(value), type(value).forward, hooks, _of(own, seen)  # a test may give the class another forward
    if isinstance(value, dict):
        return type(value), tuple((repr(name), _of(one, seen)) for name, one in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return type(value), tuple(_of(one, seen) for one in value)
    if callable(value) and hasattr(value, "__qualname__") and not hasattr(value, "__self__") and not getattr(value, "__closure__", None):
        return value.__module__, value.__qualname__, Itself(getattr(value, "__code__", value))
    if hasattr(value, "__dict__") and not callable(value):
        return type(value), _of(vars(value), seen)
    if type(value).__module__.startswith("diffusers.") and hasattr(value, "__dict__"):  # attention processors
        return type(value), _of(vars(value), seen)
    return Itself(value)


class Itself:
    """Equal to itself alone; held, so that no other object comes to have its address."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Itself) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)
