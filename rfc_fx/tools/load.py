"""Load: a model by name, and how to draw from it. A name is "digits", a folder in diffusers' layout, or a Hub id."""

from __future__ import annotations

import inspect
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rfc_fx.errors import RFCError
from rfc_fx.zoo import DIGITS, NULL_CLASS, digits_noise, sample_digits

Layout = Literal["digits", "transformer", "pipeline"]


Tick = Callable[[], object]


_DIGITS_CONFIG = {"in_channels": 1, "out_channels": 1, "sample_size": 8, "num_embeds_ada_norm": NULL_CLASS}


class LoadError(RFCError):
    """A model that cannot be found, read, or drawn from."""


class Source(Protocol):
    """A model and how to draw from it: `groups` of samples (a class, a prompt), each once per seed."""

    name: str
    seeds: list[int]

    @property
    def model(self) -> nn.Module: ...
    @property
    def groups(self) -> list[str]: ...

    def draw(self, model: nn.Module, seed: int, steps: int, tick: Tick) -> Float[Tensor, "N C H W"]:
        """One sample of every group, in one batch: pixels in [-1, 1], float32 on the CPU; `tick` is called once a step."""
        ...


@dataclass(kw_only=True)
class DigitsSource:
    """A folder in the layout of the digits model: config.json, safetensors, scheduler_config.json."""

    name: str
    model: nn.Module
    scheduler: Any
    classes: list[int]
    seeds: list[int]
    cfg: float

    @property
    def groups(self) -> list[str]:
        return [str(label) for label in self.classes]

    def draw(self, model: nn.Module, seed: int, steps: int, tick: Tick) -> Float[Tensor, "N C H W"]:
        weights = next(self.model.parameters())
        labels = torch.tensor(self.classes, device=weights.device)
        noise = digits_noise([seed] * len(self.classes), weights.dtype).to(weights.device)
        return sample_digits(model, self.scheduler, labels, noise, steps=steps, cfg=self.cfg, progress=tick).float().cpu()


@dataclass(kw_only=True)
class PipelineSource:
    """A diffusers pipeline whose transformer is exchanged for the time of a call."""

    name: str
    pipe: Any
    classes: list[int]
    prompts: list[str]
    seeds: list[int]
    cfg: float | None
    """None: the pipeline's own default."""

    @property
    def model(self) -> nn.Module:
        return self.pipe.transformer  # type: ignore[no-any-return]

    @property
    def groups(self) -> list[str]:
        return self.prompts or [str(label) for label in self.classes]

    def arguments(self, seed: int, steps: int) -> dict[str, Any]:
        """What the pipeline is called with; noise comes from CPU generators, one a sample, so it is the same on every device."""
        wanted: list[Any] = list(self.prompts or self.classes)
        generators = [torch.Generator().manual_seed(seed) for _ in self.groups]
        guidance = {} if self.cfg is None else {"guidance_scale": self.cfg}
        what = "prompt" if self.prompts else "class_labels"
        return {what: wanted, "generator": generators, "num_inference_steps": steps, "output_type": "np", **guidance}

    def draw(self, model: nn.Module, seed: int, steps: int, tick: Tick) -> Float[Tensor, "N C H W"]:
        arguments = self.arguments(seed, steps)

        def count(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            tick()
            return tensors

        reports = "callback_on_step_end" in inspect.signature(self.pipe.__call__).parameters
        if reports:
            arguments["callback_on_step_end"] = count
        with self.exchanged(model):
            images = self.pipe(**arguments).images
        for _ in range(0 if reports else steps):
            tick()
        return torch.as_tensor(images).permute(0, 3, 1, 2).float() * 2 - 1

    @contextmanager
    def exchanged(self, model: nn.Module) -> Iterator[None]:
        """The pipeline with `model` for a transformer."""
        own = self.pipe.transformer
        self.pipe.transformer = model
        if callable(follow := getattr(model, "follow", None)) and hasattr(self.pipe, "scheduler"):
            follow(self.pipe)
        try:
            yield
        finally:
            self.pipe.transformer = own


def locate(name: str) -> Path | str:
    """Return the folder that `name` means, or `name` itself when it can only be a Hub id."""
    if name == "digits":
        if not DIGITS.is_dir():
            raise LoadError(f"digits: the folder {DIGITS} is not there; install the package again, or pass a folder")
        return DIGITS
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise LoadError(f"{name}: expected a folder, got a file; pass the folder that holds config.json or model_index.json")
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        return name
    raise LoadError(f"{name}: no such folder; pass digits, a folder in diffusers' layout, or a Hub id such as facebook/DiT-XL-2-256")


def layout(where: Path | str) -> Layout:
    """Tell what a folder holds; a Hub id is taken for a pipeline."""
    if isinstance(where, str) or (where / "model_index.json").exists():
        return "pipeline"
    if not (where / "config.json").exists():
        raise LoadError(f"{where}: expected config.json (a transformer) or model_index.json (a pipeline), found neither")
    return "digits" if (where / "scheduler_config.json").exists() else "transformer"


@contextmanager
def _reading(where: Path | str) -> Iterator[None]:
    """Whatever goes wrong inside is one LoadError of one line."""
    try:
        with warnings.catch_warnings():  # e.g. torch_dtype is deprecated: older diffusers know no other name
            warnings.simplefilter("ignore")
            yield
    except LoadError:
        raise
    except Exception as error:
        hint = "" if isinstance(where, Path) else "; there is no such folder here, and a Hub id needs the network or a cached copy"
        raise LoadError(f"{where}: cannot be loaded: {type(error).__name__}: {one_line(error)}{hint}") from error


def one_line(error: BaseException, width: int = 300) -> str:
    """An error's text on one line."""
    text = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
    return text if len(text) <= width else text[: width - 3] + "..."


def _quiet() -> None:
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of every retry


def _class(where: Path | str, name: Any) -> Any:
    import diffusers

    found = getattr(diffusers, str(name), None)
    if not inspect.isclass(found) or not issubclass(found, nn.Module):
        raise LoadError(f"{where}: _class_name is {name!r}, expected the name of a diffusers model class")
    return found


def load_transformer(where: Path | str, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Return the transformer of a folder of any layout, or of a pipeline on the Hub, without its pipeline."""
    _quiet()
    with _reading(where):
        inside: dict[str, Any] = {}
        if layout(where) == "pipeline":
            from diffusers import DiffusionPipeline

            index = DiffusionPipeline.load_config(where)
            if "transformer" not in index:
                raise LoadError(f"{where}: the pipeline has {', '.join(k for k in index if k[0] != '_')}, but no transformer to cache")
            name, inside = index["transformer"][1], {"subfolder": "transformer"}
        else:
            assert isinstance(where, Path)
            config = json.loads((where / "config.json").read_text())
            name = config.get("_class_name") if isinstance(config, dict) else None
        # without accelerate the default of low_cpu_mem_usage warns
        options = {"torch_dtype": dtype, "low_cpu_mem_usage": False, "output_loading_info": True, **inside}
        model, info = _class(where, name).from_pretrained(where, **options)
        if info["missing_keys"]:
            some = ", ".join(sorted(info["missing_keys"])[:3])
            raise LoadError(f"{where}: {len(info['missing_keys'])} weights that config.json asks for are not in the file, such as {some}")
        ready: nn.Module = model.to(device).eval()
        return ready


def load_pipeline(where: Path | str, dtype: torch.dtype, device: torch.device, **parts: Any) -> Any:
    """Return the diffusers pipeline of a folder or a Hub id, silent and on `device`; `parts` that are loaded already are used."""
    from diffusers import DiffusionPipeline

    _quiet()
    with _reading(where):
        pipe = DiffusionPipeline.from_pretrained(where, torch_dtype=dtype, low_cpu_mem_usage=False, **parts)
        if getattr(pipe, "transformer", None) is None:
            raise LoadError(f"{where}: {type(pipe).__name__} has no transformer to cache")
        pipe.set_progress_bar_config(disable=True)
        return pipe.to(device)


def load_source(
    name: str,
    *,
    classes: list[int] | None,
    prompts: list[str],
    seeds: list[int],
    cfg: float | None,
    dtype: torch.dtype,
    device: torch.device,
) -> DigitsSource | PipelineSource:
    """Return the model `name` and how to draw from it; `classes` None is all ten digits, or a pipeline's first four."""
    where = locate(name)
    kind = layout(where)
    if kind == "transformer":
        raise LoadError(f"{name}: a transformer alone cannot draw images; pass its pipeline folder, or add scheduler_config.json (digits)")
    if kind == "digits":
        if prompts:
            raise LoadError(f"{name}: --prompt is for text pipelines; this model draws classes, pass --classes")
        assert isinstance(where, Path)
        model, scheduler = load_transformer(where, dtype, device), load_scheduler(where)
        found = {key: getattr(model.config, key, None) for key in _DIGITS_CONFIG}
        if found != _DIGITS_CONFIG:
            raise LoadError(f"{name}: config.json has {found}, the digits layout needs {_DIGITS_CONFIG}; pass a pipeline folder instead")
        chosen = _checked_classes(name, list(range(NULL_CLASS)) if classes is None else classes, NULL_CLASS)
        return DigitsSource(name=name, model=model, scheduler=scheduler, classes=chosen, seeds=seeds, cfg=1.5 if cfg is None else cfg)
    pipe = load_pipeline(where, dtype, device)
    parameters = inspect.signature(pipe.__call__).parameters
    if "class_labels" in parameters:
        if prompts:
            raise LoadError(f"{name}: {type(pipe).__name__} takes classes, not prompts; pass --classes")
        chosen = _checked_classes(name, list(range(4)) if classes is None else classes, pipe.transformer.config.num_embeds_ada_norm)
        return PipelineSource(name=name, pipe=pipe, classes=chosen, prompts=[], seeds=seeds, cfg=cfg)
    if classes is not None or not prompts:
        raise LoadError(f"{name}: {type(pipe).__name__} takes prompts; pass --prompt TEXT (once or several times) and no --classes")
    return PipelineSource(name=name, pipe=pipe, classes=[], prompts=prompts, seeds=seeds, cfg=cfg)


def load_scheduler(where: Path | str) -> Any:
    """The scheduler of a pipeline, or the DDIM one of a folder in the digits layout; LoadError for a transformer alone."""
    import diffusers

    kind = layout(where)
    if kind == "transformer":
        raise LoadError(f"{where}: a transformer alone has no scheduler; pass its pipeline folder")
    with _reading(where):
        if kind == "digits":
            return diffusers.DDIMScheduler.from_pretrained(where)
        name = diffusers.DiffusionPipeline.load_config(where).get("scheduler", (None, None))[1]
        if not hasattr(diffusers, str(name)):
            raise LoadError(f"{where}: model_index.json has the scheduler {name!r}, which diffusers does not have")
        return getattr(diffusers, name).from_pretrained(where, subfolder="scheduler")


def _checked_classes(name: str, classes: list[int], count: int) -> list[int]:
    if wrong := [label for label in classes if not 0 <= label < count]:
        raise LoadError(f"{name}: --classes must lie in 0-{count - 1}, got {', '.join(map(str, wrong))}")
    return classes


def example_inputs(name: str, model: nn.Module) -> dict[str, Tensor]:
    """Inputs of one guided sample for a class-conditional transformer, from its config; LoadError for any other class."""
    config: Any = getattr(model, "config", {})
    needed = ("in_channels", "sample_size", "num_embeds_ada_norm")
    takes = inspect.signature(model.forward).parameters
    if any(getattr(config, key, None) is None for key in needed) or "class_labels" not in takes or "timestep" not in takes:
        raise LoadError(
            f"{name}: inputs of {type(model).__name__} cannot be made from its config (only those of class-conditional DiTs can); "
            "pass the folder of its pipeline (with model_index.json)"
        )
    weights = next(model.parameters())
    size = (2, config.in_channels, config.sample_size, config.sample_size)
    whole = torch.zeros(2, dtype=torch.long, device=weights.device)
    return {
        "hidden_states": torch.zeros(size, dtype=weights.dtype, device=weights.device),
        "timestep": whole,
        "class_labels": whole.clone(),
    }


class _CalledError(Exception):
    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.arguments = arguments


class _Recorder(nn.Module):
    """Stands where the transformer stood and raises what it is called with."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.signature = inspect.signature(model.forward)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise _CalledError(dict(self.signature.bind(*args, **kwargs).arguments))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)


def pipeline_inputs(source: PipelineSource) -> dict[str, Any]:
    """What the pipeline passes to its transformer in the first step; nothing heavy runs but the text encoders."""
    try:
        source.draw(_Recorder(source.model), source.seeds[0], 1, lambda: None)
    except _CalledError as call:
        return call.arguments
    raise LoadError(f"{source.name}: {type(source.pipe).__name__} never called its transformer")
