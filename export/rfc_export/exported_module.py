"""ExportedModule: what modules that run exported programs show of a diffusers model, so that pipelines take them for one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from rfc_export.manifest import Manifest
from rfc_export.methods import dtype_of
from rfc_export.target import is_on
from rfc_fx.errors import SignatureError
from rfc_fx.runtime.dynamo import left_alone


class ExportedModule(nn.Module):
    """A module that runs exported programs; `device` says where."""

    KIND: ClassVar[str]
    """What it is, for messages."""
    manifest: Manifest
    _pipeline_class: type | None

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        raise AttributeError(f"{type(self).__name__} does not say where it runs")

    @cached_property
    def config(self) -> Any:
        """The model's configuration, for pipelines."""
        from diffusers.configuration_utils import FrozenDict

        return FrozenDict(self.manifest.model.config)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the model's weights."""
        return dtype_of("model.dtype", self.manifest.model.dtype)

    @property  # type: ignore[misc]  # nobody assigns another class to it
    def __class__(self) -> Any:
        """A diffusers model, the exported one's class where there is one: what pipelines ask of their components (`component`)."""
        if "manifest" not in self.__dict__:
            return type(self)
        if self._pipeline_class is None:
            from rfc_export.component import pipeline_class

            self._pipeline_class = pipeline_class(self.manifest.model.model_class)
        return self._pipeline_class

    @left_alone
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As of every module; torch.compile leaves it as it is: what it would compile is compiled already."""
        return super().__call__(*args, **kwargs)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: its programs are compiled already."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """`half()`, `cuda()` and the like, as of `to`."""
        moved = fn(torch.empty(0, dtype=self.dtype, device=self.device))
        return self.to(moved.device, moved.dtype)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Nothing, where it is there already; SignatureError for another place or type: programs are made for one."""
        device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        if (device is not None and not is_on(self.device, torch.device(device))) or (dtype is not None and dtype != self.dtype):
            name = self.manifest.model.model_class
            raise SignatureError(f"{name}: {self.KIND} stays {self.dtype} on {self.device}; export another for {device or dtype}")
        return self
