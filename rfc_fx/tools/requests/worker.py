"""Worker: an accelerated pipeline in a process of its own, which draws requests; made from plain settings, wherever it starts."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL.Image import Image

from rfc_fx.runtime.stopwatch import Stopwatch
from rfc_fx.tools.load import one_line
from rfc_fx.tools.pipeline.accelerated import accelerated, models, records, state_bytes
from rfc_fx.tools.pipeline.call import ALIASES
from rfc_fx.tools.pipeline.folder import pipeline_folder
from rfc_fx.tools.requests.request import Request, RequestError
from rfc_fx.tools.requests.steps import Steps, StepWatch, Tell


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """What a worker is made from; picklable, the pipeline is loaded where the worker starts."""

    model: str
    """digits, emoji, a folder in diffusers' layout, or a Hub id."""
    device: str = "cpu"
    nfc: int | float | None = None
    """Full steps, as a number or a share; None: those of `accelerate`."""
    compile: bool = False
    steps: int | None = None
    """Where a request says none; None: the pipeline's own."""


def ray_resources(settings: WorkerSettings, workers: int) -> dict[str, float]:
    """What Ray reserves for each of so many workers: a core, and with CUDA a device, or its share where there are more workers."""
    if not settings.device.startswith("cuda"):
        return {"num_cpus": 1}
    return {"num_cpus": 1, "num_gpus": min(1.0, torch.cuda.device_count() / workers)}


class Picture(NamedTuple):
    """A request that was drawn."""

    png: bytes
    nfc: int
    """Full steps of its generation."""
    steps: int
    seconds: float
    """Of the generation, shared by its batch."""
    step_ms: tuple[float, float] | None = None
    """Medians of a full and of an estimated step, where enough were taken."""
    state_bytes: int = 0
    """That the worker holds."""


class Worker:
    """Draws requests with one accelerated pipeline; every batch is a generation of its own. One thread at a time.

    LoadError for a pipeline that cannot be loaded or accelerated.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self.folder = pipeline_folder(settings.model)
        pipe = self.folder.load(None, torch.device(settings.device))
        self.pipe = accelerated(pipe, None, nfc=settings.nfc, speedup=None, compile=settings.compile, config=None)

    @property
    def state_bytes(self) -> int:
        """Bytes of state that are held."""
        return state_bytes(self.pipe)

    def check(self, request: Request) -> None:
        """RequestError for what this pipeline cannot be asked for."""
        self._arguments([request])

    def draw(self, requests: Sequence[Request], tell: Tell | None = None) -> list[Picture]:
        """Draw requests that fit into one batch (`Request.fit`), noise by each one's seed; RequestError for those that do not.

        `tell` takes each step as it is taken.
        """
        if len({request.fit for request in requests}) != 1:
            raise RequestError("a batch holds requests of one shape, number of steps and guidance; draw others apart")
        arguments = self._arguments(requests)
        watches = list(models(self.pipe))
        device = torch.device(self.settings.device)
        steps = None if tell is None else Steps(self.pipe, tell)
        for model in watches:
            model.stopwatch = Stopwatch(device) if steps is None else StepWatch(device, model, steps)
        begin = time.monotonic()
        try:
            images = self.pipe(**arguments).images
        except (ValueError, TypeError) as error:
            raise RequestError(f"{self.folder.class_name} refuses the request: {one_line(error)}") from error
        if steps is not None:
            steps.finish()
        seconds = time.monotonic() - begin
        record = next(iter(records(self.pipe).values()))
        medians = None if watches[0].stopwatch is None else watches[0].stopwatch.medians()
        times = None if medians is None else (1e3 * medians[0], 1e3 * medians[1])
        return [Picture(_png(image), record.nfc, record.step, seconds, times, self.state_bytes) for image in images]

    def _arguments(self, requests: Sequence[Request]) -> dict[str, Any]:
        first, known = requests[0], self.folder.parameters
        arguments: dict[str, Any] = {"generator": [torch.Generator().manual_seed(request.seed) for request in requests]}
        said: Mapping[str, Any] = {
            "prompt": None if first.prompt is None else [request.prompt for request in requests],
            "class_labels": None if first.label is None else [request.label for request in requests],
            "negative_prompt": None if first.negative_prompt is None else [request.negative_prompt for request in requests],
            "num_inference_steps": first.steps or self.settings.steps,
            "width": first.width,
            "height": first.height,
            "guidance": first.guidance,
        }
        for name, value in said.items():
            if value is None:
                continue
            names = ALIASES["--cfg"] if name == "guidance" else (name,)
            parameter = next((each for each in names if each in known), None)
            if parameter is None:
                raise RequestError(f"{self.folder.class_name} takes no {name.removesuffix('_labels')}")
            arguments[parameter] = value
        needed = "class_labels" if "class_labels" in known else "prompt"
        if needed not in arguments:
            raise RequestError(f"{self.folder.class_name} needs a {needed.removesuffix('_labels')}")
        if "class_labels" in arguments:
            count = int(self.folder.denoiser_config().get("num_embeds_ada_norm") or 0)
            if wrong := [label for label in arguments["class_labels"] if count and label >= count]:
                raise RequestError(f"{self.folder.class_name}: class must be from 0 to {count - 1}, got {wrong[0]}")
        return arguments


def _png(image: Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()
