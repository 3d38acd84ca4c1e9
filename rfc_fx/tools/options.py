"""Options that several commands share, each written once: type, range, parser and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from rfc_fx.ir.config import Decision, Dispatch
from rfc_fx.tools.arguments import (
    GRANULARITIES,
    MOST_SEED,
    MOST_SEEDS,
    DTypeName,
    StateDTypeName,
    finite,
    parse_budget,
    parse_class,
    parse_device,
    parse_granularity_option,
    parse_nfc,
    parse_speedup,
)
from rfc_fx.tools.load import pickles_allowed
from rfc_fx.tools.named_methods import DIGITS_TAU, METHODS, taking
from rfc_fx.tools.parallel import Degrees, parse_parallel
from rfc_fx.tools.requests.request import Limits

CPU = torch.device("cpu")

_SOURCE = "digits, emoji, a folder in diffusers' layout (digits or pipeline), or a Hub id"
_GRANULARITIES = ", ".join(GRANULARITIES).replace("[", r"\[")  # help is markup

# ---- the model, and what is drawn with it ----------------------------------------------------------------------------

SourceOption = Annotated[str, typer.Option("--model", help=_SOURCE)]
SourceArgument = Annotated[str, typer.Argument(metavar="MODEL", help=_SOURCE)]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="digits, emoji, a folder in diffusers' layout (transformer or pipeline), or a Hub id")
]
Steps = Annotated[int, typer.Option(min=1, max=10_000, help="sampling steps")]
Guidance = Annotated[
    float | None,
    typer.Option(parser=finite("--cfg"), metavar="NUMBER", help="guidance (default: 1.5 for digits, else the pipeline's own)"),
]
Classes = Annotated[str | None, typer.Option(help="such as 0-9 or 3,7 (default: 0-9 for digits, else 0-3)")]
Prompts = Annotated[list[str] | None, typer.Option(help="for text pipelines; repeatable")]
Seed = Annotated[int, typer.Option(min=0, max=MOST_SEED, help="first seed")]
Seeds = Annotated[int, typer.Option(min=1, max=MOST_SEEDS, help="seeds per class or prompt")]
OwnSteps = Annotated[int | None, typer.Option(min=1, max=10_000, help="sampling steps (default: 50 for digits, else the pipeline's own)")]
RequestSteps = Annotated[
    int | None, typer.Option("--steps", min=1, max=Limits().steps, help="sampling steps of a request that says none (default: as generate)")
]
OwnSeeds = Annotated[int | None, typer.Option(min=1, max=MOST_SEEDS, help="seeds per class or prompt (default: 4 for classes, else 1)")]

# ---- the call of a pipeline ------------------------------------------------------------------------------------------

Call = Annotated[
    list[str] | None,
    typer.Option(
        "--call",
        metavar="NAME=VALUE",
        help=r"any argument of the pipeline's call: a number, a text, none, true, a list \[1,2], a picture or a tensor file; repeatable",
    ),
]
NegativePrompt = Annotated[str | None, typer.Option(help="what the samples shall not show")]
Width = Annotated[int | None, typer.Option(min=1, max=65_536, help="of pictures and videos, in pixels")]
Height = Annotated[int | None, typer.Option(min=1, max=65_536, help="of pictures and videos, in pixels")]
Frames = Annotated[int | None, typer.Option(min=1, max=100_000, help="of a video")]
Images = Annotated[list[Path] | None, typer.Option("--image", help="picture that a pipeline edits or begins with; repeatable")]
FramesPerSecond = Annotated[float | None, typer.Option(min=1, max=240, help="of .mp4 files (default: the pipeline's frame rate, else 16)")]

# ---- the method ------------------------------------------------------------------------------------------------------

METHOD = f"{', '.join(METHODS)}, a .json file of calibrate, or package.module:name"
Method = Annotated[str, typer.Option(help=METHOD)]
Preset = Annotated[
    str | None, typer.Option(help="take the settings published for this model, such as flux.1-dev (rfc.PRESETS); other options change them")
]
Tau = Annotated[
    float | None,
    typer.Option(help=f"threshold of {', '.join(taking('tau'))} (default: {DIGITS_TAU} for digits, else the method's own)"),
]
Threshold = Annotated[float | None, typer.Option(help=f"threshold of {', '.join(taking('threshold'))} (default: the method's own)")]
Order = Annotated[int | None, typer.Option(help="order of the forecast (default: the method's own)")]
Interval = Annotated[
    int | None, typer.Option(help=f"{', '.join(taking('interval'))}: every so many steps one is full (default: the method's own)")
]
NFC = Annotated[
    float | None,
    typer.Option(
        parser=parse_nfc,
        metavar="NUMBER",
        help=f"{', '.join(taking('nfc'))}: how many steps of a generation are full, such as 8, or which share of them (default: 0.28)",
    ),
]
Speedup = Annotated[
    float | None,
    typer.Option(
        parser=parse_speedup,
        metavar="NUMBER",
        help=f"pipelines, {', '.join(taking('nfc'))}: in the place of --nfc, how many times faster than full computation, such as 2.5; "
        "a generation measures the steps first",
    ),
]

MethodClasses = Annotated[
    list[type] | None,
    typer.Option(
        "--class",
        parser=parse_class,
        metavar="MODULE:NAME",
        help="class of the method that is not the package's, as package.module:name; repeatable",
    ),
]

# ---- the transformation ----------------------------------------------------------------------------------------------

Granularity = Annotated[
    str | None,
    typer.Option(
        parser=parse_granularity_option,
        metavar="NAME",
        help=f"{_GRANULARITIES} (default: the method's own, else module, or the finest that fits --state-budget)",
    ),
]
StateDType = Annotated[StateDTypeName | None, typer.Option(help="of the differences (default: the model's)")]
StateBudget = Annotated[
    int | None, typer.Option(parser=parse_budget, metavar="SIZE", help="most bytes of state a context may take, such as 2GiB")
]
DispatchOption = Annotated[Dispatch, typer.Option(help="who chooses the program of a step: host, or cond, one graph with torch.cond")]
DecisionOption = Annotated[Decision, typer.Option(help="whether a batch decides by its mean, or each sample for itself")]


def _pickles(context: typer.Context, allowed: bool) -> bool:
    """Let pickles be read while the command runs."""
    context.with_resource(pickles_allowed(allowed))
    return allowed


AllowPickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle", callback=_pickles, help="read weights in pickles (.bin, .pt), which can hold code, where a folder has no others"
    ),
]

# ---- the machine -----------------------------------------------------------------------------------------------------

DType = Annotated[DTypeName, typer.Option(help="of the model")]
Parallel = Annotated[
    Degrees | None,
    typer.Option(
        parser=parse_parallel,
        metavar="DEGREES",
        help="pipelines under torchrun: the ranks that one sequence is split over, such as ulysses=2 or ulysses=2,ring=2",
    ),
]
StoredDType = Annotated[DTypeName | None, typer.Option(help="of the model (default: as its file has it)")]
DeviceHere = Annotated[
    torch.device | None,
    typer.Option(parser=parse_device, metavar="DEVICE", help="cpu, cuda, cuda:1, mps, ... (default: what is there)"),
]
Device = Annotated[torch.device, typer.Option(parser=parse_device, metavar="DEVICE", help="cpu, cuda, cuda:1, ...")]
Pictures = Annotated[Path, typer.Option(help="folder for pictures, videos, sound and summary.json")]
