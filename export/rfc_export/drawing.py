"""Drawing with an engine, without the Python model, and the record of it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from math import nan
from typing import Any

import torch
from safetensors.torch import load_file

from rfc_export.engine_files import EngineFiles
from rfc_export.engine_source import EngineSource
from rfc_export.errors import ExportError
from rfc_export.manifest import MANIFEST, Manifest
from rfc_export.methods import dtype_of
from rfc_export.pipeline_source import EngineInPipeline
from rfc_export.runtime import Engine
from rfc_export.weights import weight_spec
from rfc_fx.runtime.warnings import NothingSkippedWarning, StepsMismatchWarning
from rfc_fx.tools.compare import Comparison, Row
from rfc_fx.tools.pictures import ENGINE
from rfc_fx.tools.sources import Tick
from rfc_fx.tools.summary_json import decisions, plain, side, versions
from rfc_fx.tools.variants import Settings, Variant, misplaced, steps_to_warm_up
from rfc_fx.zoo import DIGITS


def with_threshold(engine: Engine, value: float) -> None:
    """Let the engine decide with another threshold; ExportError where its schedule has none, or for a value that cannot be."""
    try:
        engine.method = engine.method.with_threshold(value)
    except ValueError as error:
        raise ExportError(f"--threshold: this engine's schedule is {engine.method.schedule}: {error}; leave it out") from error


def draw_all(source: EngineSource | EngineInPipeline, steps: int, tick: Tick, warmed: Tick = lambda: None) -> Comparison:
    """Every seed once, after a short warm-up. ExportError for more steps than the model was trained on."""
    if steps > (most := source.scheduler.config.num_train_timesteps):
        raise ExportError(f"--steps must be at most {most}, the steps the model was trained on, got {steps}")
    engine = source.model
    variant = Variant(method=ENGINE, side="engine", call=engine, cache=engine, warmup_steps=steps_to_warm_up(engine.method, steps))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingSkippedWarning)  # the summary says how many steps were full
        if misplaced(engine.method, steps) is not None:
            warnings.simplefilter("ignore", StepsMismatchWarning)  # the command says it
        variant.warm_up(source, engine.device)
        warmed()
        for seed in source.seeds:
            variant.run(source, seed, steps, tick, engine.device)
            variant.records[seed] = source.generations
    held = engine.summary().held_bytes
    row = Row(method=ENGINE, eager=variant, graph=None, psnr_db=nan, psnr_eager_db=nan, state_bytes=held)
    settings = Settings(steps=steps, compile=False, config=engine.manifest.config)
    return Comparison(source=source, methods={ENGINE: engine.method}, settings=settings, rows=[row], graphs_compiled_while_counting=0)


def run_summary(of: Comparison, engine: Engine) -> dict[str, Any]:
    """Settings, decisions and times of a drawing, with units in the names."""
    source, row, manifest = of.source, of.rows[0], engine.manifest
    entry = decisions(of, row) | {"engine": side(row.eager), "state_mib": row.state_bytes / 2**20}
    return {
        "settings": {
            "artefact": source.name,
            "model_class": manifest.model.model_class,
            "weights_sha256": manifest.model.weights_sha256,
            "backend": manifest.backend,
            "config": manifest.config.as_dict(),
            "groups": source.groups,
            "seeds": source.seeds,
            "samples": len(source.groups) * len(source.seeds),
            "cfg": getattr(source, "cfg", None),
            "steps": of.settings.steps,
            "dtype": manifest.model.dtype,
            "device": str(engine.device),
        },
        "protocol": "ms per seed, all batches of classes one after another; one short warm-up; median, smallest and largest time",
        "versions": versions(),
        "built_with": manifest.built_with,
        "threads": torch.get_num_threads(),
        "notes": run_notes(of, engine),
        "methods": {ENGINE: {key: plain(value) for key, value in entry.items()}},
    }


def run_notes(of: Comparison, engine: Engine) -> list[str]:
    """Caveats of the pictures, one line each."""
    source = of.source
    notes = []
    if isinstance(source, EngineSource) and (filled := source.filled):
        notes.append(f"the last batch was filled up with {filled} samples that are not shown; they have a part in its decisions")
    if isinstance(source, EngineSource) and len(source.batches) > 1:
        notes.append(f"{len(source.batches)} batches of classes, one schedule each; schedule.png shows the first")
    if of.nfc(of.rows[0]) == of.settings.steps:
        notes.append(f"all {of.settings.steps} steps were full with {engine.method}; a larger threshold skips more")
    if (note := misplaced(engine.method, of.settings.steps)) is not None:
        notes.append(note)
    return notes


def is_shipped(manifest: Manifest) -> bool:
    """Whether an artefact was made from the digits model of this package: it has all of its weights, by their checksums."""
    if manifest.model.model_class != "DiTTransformer2DModel":
        return False
    own = load_file(DIGITS / "diffusion_pytorch_model.safetensors")
    dtype = dtype_of("model.dtype", manifest.model.dtype)
    return all(manifest.weights.get(name) in (weight_spec(tensor), weight_spec(tensor.to(dtype))) for name, tensor in own.items())


def sizes(files: EngineFiles, manifest: Manifest) -> Mapping[str, int]:
    """Bytes by file, the manifest's own among them."""
    return {MANIFEST: len(files.manifest()), **{name: spec.bytes for name, spec in manifest.files.items()}}
