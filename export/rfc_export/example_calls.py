"""Calls that an engine shall answer, from options: batches, sizes of pictures, and all calls of a pipeline's first step."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import nn

from rfc.method import Method
from rfc.placement.noise_levels import noise_levels
from rfc_export.errors import ExportError
from rfc_fx.capture.export import named_arguments
from rfc_fx.runtime.calls import signature
from rfc_fx.runtime.sampler import for_source
from rfc_fx.tools.arguments import OptionError
from rfc_fx.tools.load import load_transformer, locate
from rfc_fx.tools.pipeline.call import CallOptions, pipeline_call
from rfc_fx.tools.pipeline.folder import pipeline_folder
from rfc_fx.tools.pipeline.source import PipelineSource, refusing

MOST_BATCH, MOST_PIXELS, MOST_CALLS = 10_000, 65_536, 64
CLASSES = "class_labels"
"""The parameter by which a pipeline draws a sample of each of several classes in one call."""

PER_PROMPT = ("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt")
"""Parameters by which a pipeline draws several samples of one prompt in one call."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The calls that are asked for: every batch at every size."""

    batches: Sequence[int] = ()
    """Samples of a call; none: the model's own number."""
    sizes: Sequence[tuple[int, int]] = ()
    """(width, height) in pixels; none: the pipeline's own size."""
    call: CallOptions | None = None
    """What else a pipeline is called with."""


def parse_batches(text: str | None) -> list[int]:
    """`4` or `1,4` as a list; OptionError for anything else."""
    parts = [] if text is None else text.split(",")
    if any(not re.fullmatch(r"\s*[0-9]{1,5}\s*", part) or not 1 <= int(part) <= MOST_BATCH for part in parts):
        raise OptionError(f"--batch must be numbers from 1 to {MOST_BATCH} like 4 or 1,4, got {str(text)[:60]}")
    return _once("--batch", [int(part) for part in parts])


def parse_sizes(text: str | None) -> list[tuple[int, int]]:
    """`1024x1024,768x1344`, each width x height in pixels, as a list; OptionError for anything else."""
    matches = [re.fullmatch(r"\s*([0-9]{1,5})x([0-9]{1,5})\s*", part) for part in ([] if text is None else text.split(","))]
    sizes = [(int(match[1]), int(match[2])) for match in matches if match is not None]
    if len(sizes) != len(matches) or any(not 1 <= side <= MOST_PIXELS for size in sizes for side in size):
        raise OptionError(f"--shapes must be WIDTHxHEIGHT in pixels like 1024x1024,768x1344, got {str(text)[:60]}")
    return _once("--shapes", sizes)


def _once(option: str, values: list[Any]) -> list[Any]:
    if len(values) > MOST_CALLS:
        raise OptionError(f"{option}: at most {MOST_CALLS}, got {len(values)}")
    return list(dict.fromkeys(values))


class CallRecorder(nn.Module):
    """Stands where the transformer stood, and notes its calls while the model answers them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.called: list[dict[str, Any]] = []
        self.signature = inspect.signature(model.forward)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.called.append(named_arguments(self.signature, args, kwargs))
        return self.model(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)


class _Stepped(BaseException):
    """The first step is done: what follows would only decode. No error, which `refusing` would tell."""


def calls_of_first_step(source: PipelineSource, steps: int = 1) -> list[dict[str, Any]]:
    """The calls of the transformer in the pipeline's first step, one of each signature: with and without the prompt, say.

    The scheduler stands as for a generation of `steps` steps then.
    """
    recorder, scheduler = CallRecorder(source.model), getattr(source.pipe, "scheduler", None)

    def stop(*_: Any, **__: Any) -> Any:
        raise _Stepped

    own: Callable[..., Any] | None = getattr(scheduler, "step", None)
    if own is not None:
        scheduler.step = stop  # type: ignore[union-attr]
    try:
        with refusing(source):
            source.draw(recorder, source.seeds[0], steps, lambda: None)
    except _Stepped:
        pass
    finally:
        if own is not None:
            del scheduler.step  # type: ignore[union-attr]
    if not recorder.called:
        raise ExportError(f"{source.name}: {type(source.pipe).__name__} never called its transformer")
    return distinct(recorder.called, source.model)


def distinct(calls: Sequence[dict[str, Any]], model: nn.Module) -> list[dict[str, Any]]:
    """One call of each signature, in order."""
    kept: list[tuple[Any, dict[str, Any]]] = []
    for call in calls:
        shape = signature(call, model)[0]
        if not any(shape == other for other, _ in kept):
            kept.append((shape, call))
    return [call for _, call in kept]


def pipeline_calls(
    name: str, dtype: torch.dtype, device: torch.device, wanted: Wanted, steps: int | None = None
) -> tuple[nn.Module, list[dict[str, Any]], Any]:
    """The transformer of a pipeline, its calls at every size and batch, and the scheduler as it stands for `steps` steps of the first.

    `steps` None: the pipeline's own number. Errors as of `pipeline_sources`.
    """
    calls, scheduler = list[dict[str, Any]](), None
    for source in pipeline_sources(name, dtype, device, wanted):
        calls += calls_of_first_step(source, steps or source.call.steps)
        if scheduler is None:
            scheduler = copy.deepcopy(getattr(source.pipe, "scheduler", None))
    model = source.model
    return model, distinct(calls, model), scheduler


def placed(name: str, method: Method, scheduler: Any) -> Method:
    """The method for the noise levels of a scheduler as it stands; ExportError for one that has none."""
    try:
        method = for_source(method, scheduler)
        levels = noise_levels(scheduler)
        return method.with_schedule(method.schedule.bound(len(levels.lambdas), levels))
    except ValueError as error:
        raise ExportError(f"export: {name}: {method.name}: {error}; take chebyshev, which needs no scheduler") from error


def pipeline_sources(name: str, dtype: torch.dtype, device: torch.device, wanted: Wanted) -> Iterator[PipelineSource]:
    """A pipeline with its call at every size and batch.

    LoadError or OptionError for what the pipeline does not take, ExportError where it cannot draw several samples in one call.
    """
    folder = pipeline_folder(name)
    options = wanted.call or CallOptions()
    if not options.prompts and not options.classes and "prompt" in folder.parameters:
        options = replace(options, prompts=["a lighthouse"])
    pipe = None
    sizes: Sequence[tuple[int, int] | None] = wanted.sizes or [None]
    batches: Sequence[int | None] = wanted.batches or [None]
    for size, batch in product(sizes, batches):
        sized = options if size is None else replace(options, width=size[0], height=size[1])
        draws_classes = not options.prompts and not options.classes and CLASSES in folder.parameters
        if draws_classes:
            count = folder.denoiser_config().get("num_embeds_ada_norm") or 1
            sized = replace(sized, classes=[i % count for i in range(batch or 1)])
        call = pipeline_call(folder, sized)
        if batch is not None and batch > 1 and not draws_classes:
            parameter = next((one for one in PER_PROMPT if one in folder.parameters), None)
            if parameter is None:
                raise ExportError(
                    f"{name}: --batch {batch}: {folder.class_name} draws one sample of a prompt in a call; call rfc_export.export with "
                    "example_inputs"
                )
            call = replace(call, arguments={**call.arguments, parameter: batch})
        if pipe is None:
            pipe = folder.load(dtype, device, transformer=load_transformer(locate(name), dtype, device))
        yield PipelineSource(name=name, pipe=pipe, call=call, seeds=[0])
