"""Watch: the Python state that a captured graph has taken as constant, and whether it is still what it was.

Modules, hooks, attention processors, adapter scales, back ends, flags: not a list of known attributes, but all that a model's objects hold.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any

from torch import Tensor, nn
from torch._C._dynamo.guards import dict_version
from torch.utils.hooks import RemovableHandle

from rfc_fx.capture.dict_tags import ARE_READABLE, Tags

HOOKS = ("_forward_hooks", "_forward_pre_hooks")
"""Of nn.Module's own containers those whose content forward calls; weights and buffers are looked at by the fingerprint."""

REGISTRY = "_diffusers_hook"
"""Where diffusers keeps the registry of a module's hooks."""

DEPTH = 4
"""Of containers and objects inside one module."""


class Watch:
    """What the modules of a model held when it was captured.

    Looked at in every step, between programs that have driven all of it out of the processor's caches, so what counts is how many objects
    are touched. Dictionaries are compared where their version is another, hooks where some were registered anywhere. Where versions cannot
    be read at once, modules of torch without children, most of all modules, are looked at for new attributes alone: their settings, as
    hooks that nobody registered, are left to `has_changed_at_all`.
    """

    def __init__(self, model: nn.Module) -> None:
        seen: set[int] = set()
        modules = list(model.modules())
        leaves = [module for module in modules if _is_leaf_of_torch(module)]
        own: list[Any] = [each for module in modules for each in _own(module, seen)]
        hooks = [vars(module)[name] for module in modules for name in HOOKS]
        dicts = [vars(module) for module in modules if not _is_leaf_of_torch(module)]
        dicts += [module._modules for module in modules if module._modules]
        dicts += [each for each in own if isinstance(each, dict)] + [each for each in hooks if each]
        self._leaves = [vars(module) for module in leaves]
        self._tags = Tags([*dicts, *self._leaves]) if ARE_READABLE else None
        self._then = None if self._tags is None else self._tags.read()  # before what it stands for: a write meanwhile is seen
        self._dicts = _Versions(dicts)
        self._lengths = list(map(len, self._leaves))
        self._others = [each for each in own if not isinstance(each, dict)]
        self._other_copies = [each.copy() for each in self._others]
        self._rest = _Versions([*self._leaves, *hooks, *(module._modules for module in modules)])
        self._registered = RemovableHandle.next_id

    def has_changed(self) -> bool:
        """Whether anything is another object, and not an equal one, by now; cheap enough for every step."""
        if self._registered != RemovableHandle.next_id:
            if self._rest.differ():
                return True
            self._registered = RemovableHandle.next_id
        now = None if self._tags is None else self._tags.read()
        if now is None or now != self._then:
            if self._dicts.differ() or (list(map(len, self._leaves)) != self._lengths if now is None else self._rest.differ()):
                return True
            self._then = now
        return bool(self._others) and _differ(self._others, self._other_copies)

    def has_changed_at_all(self) -> bool:
        """The same with the settings of torch's own modules and hooks that nobody registered, for the beginning of a generation."""
        return self.has_changed() or self._rest.differ()


class _Versions:
    """Dictionaries as they were. A version is a number that CPython, or torch where CPython has none, gives a dictionary at every write."""

    def __init__(self, dicts: list[dict[Any, Any]]) -> None:
        self._dicts = dicts
        self._copies = list(map(_held, dicts))
        self._versions = list(map(dict_version, dicts))
        self._sum = sum(self._versions)

    def differ(self) -> bool:
        """Whether any holds something else; those that were written and hold the same are taken as they are."""
        if sum(map(dict_version, self._dicts)) == self._sum:  # versions only grow: where any is another, the sum is
            return False
        versions = list(map(dict_version, self._dicts))
        written = [index for index, (now, then) in enumerate(zip(versions, self._versions, strict=True)) if now != then]
        if _differ([_held(self._dicts[index]) for index in written], [self._copies[index] for index in written]):
            return True
        self._versions, self._sum = versions, sum(versions)
        return False


def _differ(live: list[Any], copies: list[Any]) -> bool:
    try:
        return live != copies
    except (RuntimeError, ValueError, TypeError):  # another tensor or array in the place of one, which has no one truth value
        return True


def _held(attributes: dict[Any, Any]) -> dict[Any, Any]:
    """What is compared, a copy: all but a registry of diffusers without a hook, which the first `cache_context` of a model adds."""
    held = attributes.copy()
    if not getattr(held.get(REGISTRY), "hooks", True):
        del held[REGISTRY]
    return held


def _is_leaf_of_torch(module: nn.Module) -> bool:
    return not module._modules and type(module).__module__.startswith("torch.nn.") and REGISTRY not in vars(module)


def _own(module: nn.Module, seen: set[int]) -> Iterator[Any]:
    """The containers below the attributes that a class of modules gives itself."""
    for name, value in vars(module).items():
        if name not in OF_MODULES and not _is_leaf_of_torch(module):
            # of a registry of diffusers what it calls: the rest is its own bookkeeping, which a first `cache_context` fills in
            yield from _inside(getattr(value, "hooks", value) if name == REGISTRY else value, seen, DEPTH)


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
