"""Watch: the Python state that a captured graph has taken as constant, and whether it is still what it was.

Modules, hooks, attention processors, adapter scales, back ends, flags: not a list of known attributes, but all that a model's objects hold.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from operator import eq
from typing import Any

from torch import Tensor, nn

LISTENED = ("_forward_hooks", "_forward_pre_hooks", "_modules")
"""Of nn.Module's own containers those whose content changes what forward does; weights and buffers are looked at by the fingerprint."""

DEPTH = 4
"""Of containers and objects inside one module."""


class Watch:
    """What the modules of a model held when it was captured. Comparing takes no Python code but for what has changed."""

    def __init__(self, model: nn.Module) -> None:
        seen: set[int] = set()
        modules = list(model.modules())
        own: list[Any] = [module._modules for module in modules if module._modules]
        for module in modules:
            if not _is_of_torch(module):
                own.append(vars(module))
                own += [each for name, value in vars(module).items() if name not in OF_MODULES for each in _inside(value, seen, DEPTH)]
        listened = [vars(module)[name] for module in modules for name in LISTENED]
        self._sized = [*map(vars, modules), *listened]
        self._lengths = list(map(len, self._sized))
        self._own, self._own_copies = own, [container.copy() for container in own]
        self._all = [*map(vars, modules), *(container for container in listened if container)]
        self._all_copies = [container.copy() for container in self._all]

    def has_changed(self) -> bool:
        """Whether anything is another object, and not an equal one, by now; cheap enough for every step.

        New settings of torch's own modules (an eps, a probability) are left to `has_changed_at_all`.
        """
        return list(map(len, self._sized)) != self._lengths or _differ(self._own, self._own_copies)

    def has_changed_at_all(self) -> bool:
        """The same with the settings of torch's own modules, for the beginning of a generation."""
        return self.has_changed() or _differ(self._all, self._all_copies)


def _differ(live: list[Any], copies: list[Any]) -> bool:
    try:
        return not all(map(eq, live, copies))
    except (RuntimeError, ValueError, TypeError):  # another tensor or array in the place of one, which has no one truth value
        return True


def _is_of_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")


def _inside(value: Any, seen: set[int], depth: int) -> Iterator[Any]:
    """The containers below a value, and the attributes of objects such as attention processors."""
    if depth == 0 or id(value) in seen or isinstance(value, nn.Module | Tensor | type):
        return
    if isinstance(value, MutableMapping | list | set):
        seen.add(id(value))
        yield value
        below: Any = value.values() if isinstance(value, MutableMapping) else value
    elif isinstance(value, tuple):
        below = value
    elif type(value).__module__ == "builtins" or not hasattr(value, "__dict__"):
        return
    else:
        seen.add(id(value))
        yield vars(value)
        below = vars(value).values()
    for each in list(below):
        yield from _inside(each, seen, depth - 1)


OF_MODULES = frozenset(vars(nn.Module()))
"""What every module has."""
