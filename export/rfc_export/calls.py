"""Calls: the one call that an engine answers, as a manifest describes it, and how a given call is held against it."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from rfc.conditioning import Seen
from rfc_export.errors import ArtifactError, ExportError
from rfc_export.methods import dtype_of, name_of
from rfc_export.specs import CallSpec, LeafSpec
from rfc_export.target import is_on
from rfc_fx.capture.export import Captured, named_arguments
from rfc_fx.errors import SignatureError
from rfc_fx.ir.program import as_read
from rfc_fx.runtime.calls import PLAIN

RETURN_DICT = "return_dict"
"""The argument by which diffusers' models are told how to wrap what they return; an engine does either."""


def call_spec(
    captured: Captured, arguments: Mapping[str, Any], signature: inspect.Signature, timestep: str | None, number: int = 0
) -> CallSpec:
    """Describe the call that programs were made for, complex tensors as pairs of reals; `number`: of the call among those of its engine."""
    paths, tree = pytree.tree_flatten_with_path(dict(arguments))
    leaves = []
    for position, (path, leaf) in enumerate(paths):
        argument = str(path[0].key) if isinstance(path[0], pytree.MappingKey) else str(path[0])
        if isinstance(leaf, Tensor):
            read = as_read(leaf)
            leaves.append(
                LeafSpec(
                    argument=argument,
                    dtype=name_of(read.dtype),
                    shape=list(read.shape),
                    value=None,
                    fixed=fixed_name(position, number) if position in captured.decided else None,
                    placeholder=captured.inputs.get(position),
                )
            )
        elif isinstance(leaf, PLAIN):
            leaves.append(LeafSpec(argument=argument, dtype=None, shape=None, value=leaf, fixed=None, placeholder=None))
        else:
            raise ExportError(f"export: {argument} holds a {type(leaf).__name__}; an engine's call holds tensors, numbers and text")
    plain = {
        name: parameter.default
        for name, parameter in signature.parameters.items()
        if parameter.default is not parameter.empty and isinstance(parameter.default, PLAIN)
    }
    return CallSpec(
        parameters=[name for name, one in signature.parameters.items() if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)],
        defaults=plain,
        tree=dumped("call", tree),
        leaves=leaves,
        outputs=dumped("return value", captured.outputs),
        latent=captured.latent,
        timestep=timestep,
    )


def fixed_name(position: int, number: int = 0) -> str:
    """Name among the weights of an argument whose values the programs were made for; `number`: of the call."""
    return f"fixed.{number}.{position}"


def dumped(what: str, tree: pytree.TreeSpec) -> str:
    """A pytree as JSON; ExportError where it holds what has no name in JSON."""
    try:
        return pytree.treespec_dumps(tree)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ExportError(f"export: the {what} holds something that a file cannot name: {error}") from error


def loaded(where: str, text: str) -> pytree.TreeSpec:
    """The pytree again. Classes are looked up among diffusers' own only."""
    try:
        for name in _types(json.loads(text)):
            module = name.rpartition(".")[0]
            if module.startswith("diffusers."):
                importlib.import_module(module)
        return pytree.treespec_loads(text)
    except (NotImplementedError, TypeError, ValueError, KeyError, IndexError, AttributeError, ImportError, RecursionError) as error:
        raise ArtifactError(f"{where}: no tree that this version knows: {type(error).__name__}: {error}") from error


def _types(data: Any) -> list[str]:
    if isinstance(data, list):
        return [name for item in data for name in _types(item)]
    if isinstance(data, dict):
        own = [data["type"]] if isinstance(data.get("type"), str) else []
        return own + [name for item in data.values() for name in _types(item)]
    return []


class ExpectedCall:
    """Holds calls against the one that was exported."""

    def __init__(self, spec: CallSpec, name: str, fixed: Mapping[str, Tensor]) -> None:
        self.spec, self.name, self.fixed = spec, name, fixed
        self._seen: dict[str, Seen] = {}
        self.tree = loaded("call.tree", spec.tree)
        self.outputs = loaded("call.outputs", spec.outputs)
        if self.tree.num_leaves != len(spec.leaves):
            raise ArtifactError(f"call: the tree has {self.tree.num_leaves} leaves, {len(spec.leaves)} are listed")
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        try:
            self.signature = inspect.Signature([inspect.Parameter(one, kind, default=spec.defaults.get(one)) for one in spec.parameters])
        except ValueError as error:
            raise ArtifactError(f"call.parameters: {error}") from error
        if lost := [leaf.argument for leaf in spec.leaves if leaf.argument not in spec.parameters]:
            raise ArtifactError(f"call: there is no parameter {lost[0]}, in which a leaf lies")
        self.exported = {leaf.argument: leaf.value for leaf in spec.leaves if leaf.dtype is None}

    def given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name."""
        return named_arguments(self.signature, args, kwargs)

    def shapes(self) -> dict[str, str]:
        """What the call was exported with, by argument: shape and type of tensors, plain values as they are."""
        words: dict[str, str] = {}
        for leaf in self.spec.leaves:
            own = repr(leaf.value) if leaf.dtype is None else f"{tuple(leaf.shape or ())} {leaf.dtype}"
            words[leaf.argument] = f"{words[leaf.argument]}, {own}" if leaf.argument in words else own
        return words

    def match(self, args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device) -> tuple[dict[str, Any], list[Any]]:
        """The arguments by name and the flat ones; SignatureError with the argument that is not as it was when the engine was built.

        A complex tensor is taken for the pair of reals that programs read (`torch.view_as_real`); the pair itself may be given as well.
        """
        given = self.given(args, kwargs)
        arguments = pytree.tree_unflatten([leaf.value for leaf in self.spec.leaves], self.tree)
        extra = {
            name: value
            for name, value in given.items()
            if name not in arguments and name != RETURN_DICT and not _is_default(value, self.spec.defaults, name)
        }
        if extra:
            raise SignatureError(f"{self.name}: this engine was built without {', '.join(extra)}; leave it out, or export with it")
        if missing := [name for name in arguments if name not in given and name != RETURN_DICT and name not in self.spec.defaults]:
            raise SignatureError(f"{self.name}: {', '.join(missing)} missing: the engine was built for a call with it")
        taken = {name: given.get(name, self.spec.defaults.get(name)) for name in arguments}
        if RETURN_DICT in arguments:
            taken[RETURN_DICT] = arguments[RETURN_DICT]
        leaves, tree = pytree.tree_flatten(taken)
        if tree != self.tree:
            raise SignatureError(f"{self.name}: the call is nested otherwise than when the engine was built: {tree}, expected {self.tree}")
        for position, (leaf, spec) in enumerate(zip(map(as_read, leaves), self.spec.leaves, strict=True)):
            self._check(leaf, spec, device)
            if spec.fixed is not None and not self._seen_of(spec.fixed, leaf.device).equals(leaf):
                raise SignatureError(
                    f"{self.name}: {spec.argument} has other values than the engine was built for: the model's forward branches on them "
                    f"(flat argument {position}); export again with these"
                )
        return taken, leaves

    def _seen_of(self, name: str, device: torch.device) -> Seen:
        """The values of a fixed argument: the tensor that had them last is not read again."""
        if (seen := self._seen.get(name)) is None:
            seen = self._seen[name] = Seen.now(self.fixed[name].to(device))
        return seen

    def _check(self, leaf: Any, spec: LeafSpec, device: torch.device) -> None:
        if spec.dtype is None:
            if isinstance(leaf, Tensor) or leaf != spec.value:
                raise SignatureError(f"{self.name}: {spec.argument}: this engine was built for {spec.value!r}, got {leaf!r}")
            return
        wanted = f"{spec.dtype} of shape {tuple(spec.shape or ())} on {device}"
        if not isinstance(leaf, Tensor):
            raise SignatureError(f"{self.name}: {spec.argument}: expected a tensor, {wanted}, got {type(leaf).__name__}")
        if leaf.requires_grad:
            raise SignatureError(f"{self.name}: {spec.argument} requires grad; an engine only samples: call under torch.no_grad()")
        same = leaf.dtype is dtype_of(spec.argument, spec.dtype) and list(leaf.shape) == spec.shape
        if not same or not is_on(leaf.device, device):
            dtype = str(leaf.dtype).removeprefix("torch.")
            raise SignatureError(
                f"{self.name}: {spec.argument}: expected {wanted}, got {dtype} of shape {tuple(leaf.shape)} on {leaf.device}; "
                "an engine has fixed shapes: add a call with these (rfc-fx export --add, or export(..., add=True))"
            )


def _is_default(value: Any, defaults: Mapping[str, Any], name: str) -> bool:
    return value is None or (name in defaults and not isinstance(value, Tensor) and value == defaults[name])
