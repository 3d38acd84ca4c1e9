"""Weights that engines of this process hold: those that load the same file on the same device share one set of tensors."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from rfc_export.engine_files import EngineFiles
from rfc_export.manifest import WEIGHTS, Manifest
from rfc_export.specs import WeightSpec
from rfc_export.weights import weights_of


class HeldWeights(dict[str, Tensor]):
    """The tensors of one weights file on one device; gone with the last engine that holds them."""

    def __init__(self, tensors: Mapping[str, Tensor], specs: Mapping[str, WeightSpec]) -> None:
        super().__init__(tensors)
        self.specs = specs


_HELD: WeakValueDictionary[tuple[str, torch.device], HeldWeights] = WeakValueDictionary()
"""By the SHA-256 of the file; holds nothing alive by itself."""
_LOCK = threading.Lock()


def read_weights(files: EngineFiles, manifest: Manifest, device: torch.device, *, mapped: bool = False) -> HeldWeights:
    """The weights of an artefact, held against the manifest; ArtifactError where one is not as it says.

    The file is read and hashed in any case; where an engine holds the same weights on the device, its tensors are returned, and what was
    read is not kept. `mapped`: the tensors lie in the file's pages, which processes share and the system may drop and read again.
    """
    where, spec = str(files.path / WEIGHTS), manifest.files[WEIGHTS]
    device = torch.device(device.type, device.index or 0) if device.type == "cuda" else device
    with _LOCK:  # of two threads one reads, the other takes what it has read
        held = _HELD.get(key := (spec.sha256, device))
        if held is not None and held.specs == manifest.weights:
            files.check(WEIGHTS, spec)
            return held
        content = files.mapped(WEIGHTS, spec) if mapped else files.read(WEIGHTS, spec)
        tensors = weights_of(where, content, manifest.weights)
        held = _HELD[key] = HeldWeights({name: tensor.to(device) for name, tensor in tensors.items()}, manifest.weights)
        return held
