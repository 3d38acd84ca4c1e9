"""Arguments that are plain objects around tensors, as trees: what the error of a capture asks for."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.utils._pytree as pytree


def register(*classes: type) -> None:
    """Let trees go into objects of these classes by their attributes, once a process; a forward may only read such objects."""
    for cls in classes:
        if cls not in pytree.SUPPORTED_NODES:
            pytree.register_pytree_node(
                cls,
                lambda one: (list(vars(one).values()), list(vars(one))),
                partial(_made, cls),
                serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
                flatten_with_keys_fn=lambda one: ([(pytree.GetAttrKey(name), part) for name, part in vars(one).items()], list(vars(one))),
            )


def _made(cls: type, parts: Any, names: Any) -> Any:
    one: Any = object.__new__(cls)
    vars(one).update(zip(names, parts, strict=True))
    return one
