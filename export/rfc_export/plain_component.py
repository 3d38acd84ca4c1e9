"""Plain components: text encoders and VAE decoders that `plain` exported, as diffusers' pipelines call them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree

import rfc_export
from rfc.phase import FULL
from rfc_export.engine_calls import EngineCalls
from rfc_export.errors import ArtifactError
from rfc_export.exported_module import ExportedModule
from rfc_export.loaded import LoadedSet
from rfc_export.runtime import loaded_sets
from rfc_export.seal import Key


class PlainComponent(ExportedModule):
    """A part of a pipeline that is called once a picture, by one program for each call: a text encoder, or a VAE that only decodes."""

    KIND = "a program"

    def __init__(self, sets: list[LoadedSet], path: Path) -> None:
        super().__init__()
        self.path, self.manifest = path, sets[0].manifest
        self._calls = EngineCalls(sets, None)
        self._pipeline_class: type | None = None
        self.__module__ = rfc_export.__name__
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self._calls.sets[0].device

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program for the call; SignatureError with the list of calls for one that is not among them."""
        call = self._calls.recognise(args, kwargs)
        loaded = self._calls.sets[call.key]
        values = dict(zip(loaded.placeholders, call.inputs, strict=True))
        program = loaded.programs[FULL.name]
        result = loaded.unflatten(program.run(*(values[key] for key in program.arguments)))
        return Outputs(result) if type(result) is dict else result

    def decode(self, *args: Any, generator: Any = None, **kwargs: Any) -> Any:
        """As `forward`: of a VAE the decoder was exported, which draws nothing at random."""
        return self(*args, **kwargs)


class Outputs(dict[str, Any]):
    """What a text encoder returns: by name, as an attribute, or by number."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"this encoder was exported without {name}; it has {', '.join(self)}") from None

    def __getitem__(self, key: str | int) -> Any:
        return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)


def load_component(
    path: Path, device: torch.device, trusted: Iterable[Key] | None = None, trust: bool = False, mapped: bool = False
) -> PlainComponent:
    """The component in a folder, checked as `rfc_export.load` checks an engine; ArtifactError where an engine lies there."""
    sets, method = loaded_sets(path, device=device, trusted=trusted, trust=trust, mapped=mapped)
    if any(one.spec.plan.sites for one in sets):
        raise ArtifactError(f"{path}: an engine with {method.name}, expected a part of a pipeline; load it with rfc_export.load")
    return PlainComponent(sets, path)


def leaves(output: Any) -> list[torch.Tensor]:
    """The tensors of an output, in order."""
    return [leaf for leaf in pytree.tree_leaves(dict(output) if isinstance(output, Outputs) else output) if isinstance(leaf, torch.Tensor)]
