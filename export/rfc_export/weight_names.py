"""Names of weights in all programs of an engine: a tensor has one name, whichever program or call leads to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count

import torch
from torch import Tensor

from rfc_export.errors import ExportError
from rfc_export.specs import WeightSpec
from rfc_export.weights import weight_spec
from rfc_fx.capture.export import MODEL, Captured


@dataclass
class Weights:
    """Names of tensors, by what they are; equal constants of several calls share one name, others get names of their own."""

    stored: Mapping[str, WeightSpec] = field(default_factory=dict)
    """Tensors that the engine has already, to which calls are added."""
    names: dict[int, str] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """What programs read, by name."""
    _models: set[str] = field(default_factory=set)
    """Names of the model's own parameters and buffers."""

    def take(self, captured: Captured) -> None:
        """Note the names of a model's parameters and buffers, and of the constants of its graph."""
        model = captured.model
        own = dict([*model.named_parameters(), *model.named_buffers()])
        self._models |= set(own)
        for name, tensor in (*own.items(), *captured.constants.items()):
            self.names.setdefault(id(tensor), name)

    def name(self, target: str, tensor: Tensor) -> str:
        """The name of a tensor that a graph reads, noted for the file.

        Raises ExportError where the engine has another tensor of the model under that name: it was made from other weights.
        """
        wanted = self.names.get(id(tensor), target.removeprefix(f"{MODEL}."))
        name = next(name for number in count(1) if self._is_of(name := wanted if number == 1 else f"{wanted}.{number}", tensor))
        if name != wanted and wanted in self._models and wanted in self.stored:
            raise ExportError(f"export: {wanted} has other values than in the engine; add calls with the weights that it was made from")
        self.names[id(tensor)] = name
        self.tensors.setdefault(name, tensor)
        return name

    def _is_of(self, name: str, tensor: Tensor) -> bool:
        """Whether the name is free, or this tensor's."""
        there = self.tensors.get(name)
        if there is None:
            return name not in self.stored or self.stored[name] == weight_spec(tensor.detach().cpu())
        same = there.dtype == tensor.dtype and there.shape == tensor.shape and there.device == tensor.device
        return there is tensor or (same and torch.equal(there, tensor))

    def missing(self) -> dict[str, Tensor]:
        """Tensors that no file has yet, on the CPU."""
        new = {name: tensor for name, tensor in self.tensors.items() if name not in self.stored}
        return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in new.items()}
