"""Back ends by name: each builds programs into files and opens them again. Heavy libraries are imported when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from rfc_export.errors import BackendError
from rfc_export.manifest import Manifest
from rfc_export.portable import Portable
from rfc_export.specs import BackendName, ProgramSpec

Report = Callable[[str], object]
"""Takes a line about what is being done."""

Run = Callable[[Sequence[Tensor], Mapping[int, Tensor]], Sequence[Tensor]]
"""(inputs, {index of an output: tensor to write it to}) -> the outputs that were given no tensor, in order."""


@dataclass(frozen=True)
class Built:
    """A program in its file."""

    file: str
    entry: str
    options: dict[str, Any] = field(default_factory=dict)


class Backend(Protocol):
    """What a back end does; a module `rfc_export.<name>` has these."""

    WRITES: Literal["in_place", "returned"]
    """Whether FULL writes the state, or returns it."""
    POOLS: bool
    """Whether programs may read state in pools (`rfc_fx.ir.layout`)."""

    def check(self, device: torch.device) -> None:
        """BackendError with the reason where this machine cannot build or run it."""
        ...

    def check_types(self, device: torch.device, dtypes: Iterable[torch.dtype]) -> None:
        """BackendError where it cannot compute in one of these types."""
        ...

    def versions(self) -> dict[str, str]:
        """Versions of the libraries that decide whether a program can be opened."""
        ...

    def build(
        self,
        programs: Mapping[str, Portable],
        weights: Mapping[str, Tensor],
        folder: Path,
        device: torch.device,
        report: Report,
        suffix: str = "",
    ) -> dict[str, Built]:
        """Write the programs of one call to files in `folder` whose names end with `suffix`; `weights.safetensors` is there already."""
        ...

    def relocate(self, folder: Path, programs: Sequence[ProgramSpec]) -> None:
        """Let programs that lie in `folder` find their weights in another `weights.safetensors`, where they say where these lie."""
        ...

    def open(
        self,
        where: Path,
        contents: Mapping[str, bytes],
        programs: Mapping[str, ProgramSpec],
        manifest: Manifest,
        weights: Mapping[str, Tensor],
        device: torch.device,
    ) -> dict[str, Run]:
        """The programs of one call, ready to run, from the checked contents of the files; `weights` are on the device, and shared.

        A program that declares a weight otherwise than the manifest is an ArtifactError. `where` is for messages.
        """
        ...


def backend(name: str) -> Backend:
    """The back end of that name; BackendError for an unknown one."""
    known = get_args(BackendName)
    if name not in known:
        raise BackendError(f"backend: expected one of {', '.join(known)}, got {name!r}")
    module: Any = import_module(f"rfc_export.{name}")
    return module  # type: ignore[no-any-return]
