"""The call of a pipeline: what options say, checked against the signature before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from inspect import Parameter
from pathlib import Path
from typing import Any

import torch

from rfc_fx.tools.arguments import OptionError
from rfc_fx.tools.load import LoadError
from rfc_fx.tools.pipeline.folder import PipelineFolder
from rfc_fx.tools.pipeline.values import parse_value

_SET_BY = {
    "prompt": "--prompt",
    "class_labels": "--classes",
    "generator": "--seed",
    "num_inference_steps": "--steps",
    **dict.fromkeys(("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt", "num_designs_per_prompt"), "--seeds"),
    **dict.fromkeys(("output_type", "return_dict", "callback", "callback_steps"), "the command"),
    **dict.fromkeys(("callback_on_step_end", "callback_on_step_end_tensor_inputs"), "the command"),
}
"""Parameters that other options give their values."""

ALIASES = {
    "--negative-prompt": ("negative_prompt",),
    "--width": ("width",),
    "--height": ("height",),
    "--frames": ("num_frames", "frames", "video_length"),
    "--image": ("image", "images", "input_images", "cond_image", "reference_images"),
    "--cfg": ("guidance_scale", "true_cfg_scale"),
}
"""The parameters that an option stands for; the first that a pipeline has."""


@dataclass(frozen=True, kw_only=True)
class CallOptions:
    """What the command line says about the call of a pipeline."""

    prompts: Sequence[str] = ()
    classes: list[int] | None = None
    negative_prompt: str | None = None
    cfg: float | None = None
    width: int | None = None
    height: int | None = None
    frames: int | None = None
    images: Sequence[Path] = ()
    steps: int | None = None
    assignments: Sequence[str] = ()
    """Texts `name=value`."""

    def by_option(self) -> dict[str, Any]:
        """The options that were used and stand for a parameter."""
        values = {
            "--negative-prompt": self.negative_prompt,
            "--width": self.width,
            "--height": self.height,
            "--frames": self.frames,
            "--image": list(self.images) or None,
            "--cfg": self.cfg,
        }
        return {option: value for option, value in values.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class PipelineCall:
    """What a pipeline is called with, but for seeds; one call for each prompt, or one for all classes."""

    parameters: Mapping[str, Parameter]
    arguments: dict[str, Any]
    prompts: list[str] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    steps: int
    """Sampling steps that are asked for."""

    @property
    def groups(self) -> list[str]:
        """One sample of each is drawn for every seed."""
        return self.prompts or [str(label) for label in self.classes] or ["sample"]

    @property
    def batches(self) -> list[tuple[dict[str, Any], int]]:
        """For each call its own arguments, and how many samples it gives."""
        if self.classes:
            return [({"class_labels": self.classes}, len(self.classes))]
        return [({"prompt": prompt}, 1) for prompt in self.prompts] or [({}, 1)]

    def value(self, name: str) -> Any:
        """The value that a parameter will have: its own, else the default; None where there is none."""
        default = self.parameters[name].default if name in self.parameters else None
        return self.arguments.get(name, None if default is Parameter.empty else default)

    def keywords(self, own: Mapping[str, Any], samples: int, seed: int, steps: int) -> dict[str, Any]:
        """All arguments of one call; noise comes from CPU generators, one a sample, so that it is the same on every device."""
        generators = [torch.Generator().manual_seed(seed) for _ in range(samples)]
        given = {
            "generator": generators if "class_labels" in own else generators[0],
            "num_inference_steps": steps,
            # pictures as floating-point numbers; frames and sound come so by themselves
            "output_type": "np" if self.value("output_type") in ("pil", "latent") else self.value("output_type"),
        }
        return {**{name: value for name, value in given.items() if name in self.parameters}, **self.arguments, **own}


def pipeline_call(folder: PipelineFolder, options: CallOptions) -> PipelineCall:
    """The call of a pipeline; OptionError or LoadError for what its class does not take or cannot do without."""
    arguments = _aliased(folder, options)
    for name, value in _assigned(folder, options.assignments).items():
        if name in arguments:
            raise OptionError(f"--call {name}: another option says it already; leave one out")
        arguments[name] = value
    prompts, classes = _groups(folder, options, arguments)
    for name, parameter in folder.parameters.items():
        if parameter.default is Parameter.empty and name not in arguments and name not in _SET_BY:
            option = next((option for option, names in ALIASES.items() if name in names), f"--call {name}=VALUE")
            raise OptionError(f"{folder.name}: {folder.class_name} needs {name}; pass {option}")
    own_steps = folder.parameters.get("num_inference_steps")
    if own_steps is None and options.steps is not None:
        raise OptionError(f"--steps: {folder.class_name} takes no number of steps; pass what it takes with --call")
    default = 50 if own_steps is None or not isinstance(own_steps.default, int) else own_steps.default
    return PipelineCall(parameters=folder.parameters, arguments=arguments, prompts=prompts, classes=classes, steps=options.steps or default)


def _aliased(folder: PipelineFolder, options: CallOptions) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for option, value in options.by_option().items():
        name = next((name for name in ALIASES[option] if name in folder.parameters), None)
        if name is None:
            raise OptionError(f"{option}: {folder.class_name} does not take {ALIASES[option][0]}; {_nearest(folder, ALIASES[option][0])}")
        if option == "--image":
            pictures = [parse_value(option, name, str(path), "Image") for path in value]
            value = pictures if len(pictures) > 1 or "list" in str(folder.types.get(name)).lower().split("|")[0] else pictures[0]
        arguments[name] = value
    return arguments


def _assigned(folder: PipelineFolder, assignments: Sequence[str]) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name.isidentifier():
            raise OptionError(f"--call {text}: expected name=value, such as guidance_scale=4.5")
        if name in _SET_BY and name in folder.parameters:
            raise OptionError(f"--call {name}: is set by {_SET_BY[name]}")
        if name not in folder.parameters:
            raise OptionError(f"--call {name}: {folder.class_name} has no such argument; {_nearest(folder, name)}")
        if name in arguments:
            raise OptionError(f"--call {name}: passed twice; a list is written name=[a,b]")
        arguments[name] = parse_value(f"--call {name}", name, value.strip(), folder.types.get(name, Parameter.empty))
    return arguments


def _nearest(folder: PipelineFolder, name: str) -> str:
    """The arguments that a user may have meant."""
    names = [known for known in folder.parameters if known not in _SET_BY]
    near = get_close_matches(name, names, n=3, cutoff=0.6)
    if near:
        return f"the nearest names: {', '.join(near)}"
    return f"it takes {', '.join(names)}"


def _groups(folder: PipelineFolder, options: CallOptions, arguments: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """The prompts or the classes; LoadError for those that the pipeline has no use for or needs."""
    prompts, classes = list(options.prompts), options.classes
    if "class_labels" in folder.parameters:
        if prompts:
            raise LoadError(f"{folder.name}: {folder.class_name} takes classes, not prompts; pass --classes")
        count = folder.denoiser_config().get("num_embeds_ada_norm")
        return [], checked_classes(folder.name, list(range(10 if folder.is_flat else 4)) if classes is None else classes, count)
    if "prompt" not in folder.parameters:
        if prompts or classes is not None:
            raise LoadError(f"{folder.name}: {folder.class_name} takes neither prompts nor classes; pass what it takes with --call")
        return [], []
    embedded = any(name.startswith("prompt_embeds") and value is not None for name, value in arguments.items())
    if classes is not None or not (prompts or embedded):
        raise LoadError(f"{folder.name}: {folder.class_name} takes prompts; pass --prompt TEXT (once or several times) and no --classes")
    if prompts and embedded:
        raise OptionError("--prompt: the prompt's embeddings are passed with --call already; leave one out")
    return prompts, []


def checked_classes(name: str, classes: list[int], count: int | None) -> list[int]:
    """The classes; LoadError where the model has no such class."""
    wrong = [] if count is None else [label for label in classes if not 0 <= label < count]
    if count is not None and wrong:
        some = ", ".join(map(str, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
        raise LoadError(f"{name}: --classes must lie in 0-{count - 1}, got {some}")
    return classes
