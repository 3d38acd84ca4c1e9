"""A pipeline before its weights are loaded: its class and the parameters of its call; then the pipeline itself."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import torch

from rfc_fx.pipelines.accelerated import transformers_of
from rfc_fx.tools.load import LoadError, load_scheduler, load_transformer, loading_options, locate, model_kind, quiet, reading
from rfc_fx.tools.model_files import check_sizes
from rfc_fx.tools.stored_dtype import stored_dtype
from rfc_fx.zoo import DIGITS, EMOJI, emoji_class

DENOISER = "transformer"
"""Components whose names contain this are the models that a pipeline calls in every step."""


@dataclass(frozen=True, kw_only=True)
class PipelineFolder:
    """A pipeline on disk or on the Hub, of which only the index has been read."""

    name: str
    where: Path | str
    kind: Any
    parts: tuple[str, ...]
    """Components that are there, by name."""
    is_flat: bool = False
    """Whether the folder has the layout of the shipped digits model: no index, one model beside its scheduler."""

    @property
    def class_name(self) -> str:
        return str(self.kind.__name__)

    @property
    def denoisers(self) -> list[str]:
        return [part for part in self.parts if DENOISER in part]

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """What its call takes by name."""
        named = inspect.signature(self.kind.__call__).parameters
        return {
            name: parameter
            for name, parameter in named.items()
            if name != "self" and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        }

    @property
    def types(self) -> Mapping[str, Any]:
        """The annotations of those parameters, resolved where they can be."""
        try:
            return get_type_hints(self.kind.__call__)
        except Exception:  # names that are imported for type checkers alone
            return {name: parameter.annotation for name, parameter in self.parameters.items()}

    def denoiser_config(self) -> Mapping[str, Any]:
        """The configuration of the first denoiser."""
        with reading(self.where):
            from diffusers import DiTTransformer2DModel  # any model: all have their configuration under one name

            inside = {} if self.is_flat else {"subfolder": self.denoisers[0]}
            config: Mapping[str, Any] = DiTTransformer2DModel.load_config(self.where, **inside)
            return config

    def load(self, dtype: torch.dtype | None, device: torch.device, **parts: Any) -> Any:
        """The pipeline on `device`, silent; `dtype` None: that of the denoiser's file. `parts` that are loaded already are used."""
        quiet()
        if self.where in (DIGITS, EMOJI):
            dtype = dtype or torch.float32  # stored in float16 for their size
        if self.is_flat:
            pipe = self.kind(load_transformer(self.where, dtype, device), load_scheduler(self.where))
        else:
            with reading(self.where):
                where = self.where
                if isinstance(where, Path):
                    for component in self.parts:
                        check_sizes(where / component)
                if dtype is None:
                    where = where if isinstance(where, Path) else Path(self.kind.download(where))
                    dtype = next(filter(None, (stored_dtype(where / part) for part in self.denoisers)), torch.float32)
                pipe = self.kind.from_pretrained(where, torch_dtype=dtype, **loading_options(), **parts)
        if not transformers_of(pipe):
            raise LoadError(f"{self.name}: {self.class_name} has no transformer to cache")
        pipe.set_progress_bar_config(disable=True)
        with reading(self.where):
            return pipe.to(device)


def pipeline_folder(name: str) -> PipelineFolder:
    """The pipeline of that name; LoadError for one that is not there, whose class is unknown, or whose denoiser is no transformer."""
    where = locate(name)
    kind = model_kind(where)
    if kind == "transformer":
        raise LoadError(f"{name}: a transformer alone cannot draw; pass its pipeline folder, or add scheduler_config.json (digits)")
    if kind == "digits":
        from rfc_fx.zoo.digits_pipeline import DigitsPipeline

        return PipelineFolder(name=name, where=where, kind=DigitsPipeline, parts=("transformer", "scheduler"), is_flat=True)
    from diffusers import DiffusionPipeline

    quiet()
    with reading(where):
        index = DiffusionPipeline.load_config(where)
    entries = {part: entry for part, entry in index.items() if isinstance(entry, list | tuple) and len(entry) == 2}
    parts = tuple(part for part, entry in entries.items() if entry[1])
    folder = PipelineFolder(name=name, where=where, kind=_class(where, name, index.get("_class_name")), parts=parts)
    if not folder.denoisers:
        denoiser = next((part for part in ("unet", "prior", "decoder") if part in entries), None)
        what = "" if denoiser is None else f"; its denoiser is {denoiser}, {entries[denoiser][1]}"
        raise LoadError(f"{name}: {folder.class_name} has no transformer to cache{what}")
    return folder


def _class(where: Path | str, name: str, class_name: Any) -> Any:
    import diffusers

    from rfc_fx.zoo.digits_pipeline import DigitsPipeline

    if where == EMOJI or class_name == "EmojiPipeline":
        with reading(where):
            return emoji_class()
    kind = DigitsPipeline if class_name == DigitsPipeline.__name__ else getattr(diffusers, str(class_name), None)
    if not inspect.isclass(kind) or not issubclass(kind, diffusers.DiffusionPipeline):
        raise LoadError(f"{name}: model_index.json has the class {class_name!r}, expected a pipeline of diffusers {diffusers.__version__}")
    return kind
