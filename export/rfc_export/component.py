"""Component: an engine among the components of a diffusers pipeline, as that checks, saves and loads them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusers import ModelMixin

from rfc.files import parse_json
from rfc_export.artifact import writing
from rfc_export.engine_files import opened
from rfc_export.errors import ArtifactError, ExportError
from rfc_export.manifest import MANIFEST

if TYPE_CHECKING:
    from rfc_export.runtime import Engine


class PipelineEngine(ModelMixin):  # type: ignore[misc]  # diffusers has no annotations
    """What a pipeline takes an engine for; model_index.json names it as ["rfc_export", "PipelineEngine"]. It has no instances."""

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], **settings: Any) -> Any:
        """The engine or component in a pipeline's folder, on the CPU; SignatureError for a `torch_dtype` that is not the engine's.

        What nobody signed is loaded with a warning where it is machine code; to trust keys, load the engine and pass it as the component.
        """
        from rfc_export.plain_component import PlainComponent
        from rfc_export.runtime import Engine, loaded_sets

        dtype = settings.get("torch_dtype", settings.get("dtype"))
        sets, method = loaded_sets(Path(folder), device="cpu")
        is_cached = any(one.spec.plan.sites for one in sets)
        engine = Engine(sets, method, Path(folder)) if is_cached else PlainComponent(sets, Path(folder))
        return engine if dtype is None else engine.to(dtype)


def pipeline_class(model_class: str) -> type:
    """PipelineEngine, which is a diffusers model of that class as well where there is one: pipelines ask for it."""
    import diffusers

    model = getattr(diffusers, model_class, None) if model_class.isidentifier() else None
    if not isinstance(model, type) or not issubclass(model, ModelMixin):
        return PipelineEngine
    return type(PipelineEngine.__name__, (PipelineEngine, model), {"__module__": PipelineEngine.__module__})


def copy_engine(engine: Engine, folder: Path) -> None:
    """Copy the artefact of an engine, every file checked, into a folder; an engine that lies there is replaced.

    Raises ArtifactError where the artefact is no longer what was loaded, ExportError where the folder holds something else.
    """
    if engine.path is None:
        raise ExportError(f"{engine.model_name}: this engine was not loaded from a path; load it with rfc_export.load to save it")
    if folder.resolve() == engine.path.resolve():
        return
    with opened(engine.path) as files, writing(folder, overwrite=True) as staging:
        content = files.manifest()
        if parse_json(content).get("checksum") != engine.manifest.checksum:
            raise ArtifactError(f"{engine.path / MANIFEST}: was changed since the engine was loaded; load it again to save it")
        (staging / MANIFEST).write_bytes(content)
        for name, spec in engine.manifest.files.items():
            files.check(name, spec, staging / name)
