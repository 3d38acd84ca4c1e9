"""Load: a model, a pipeline or a scheduler by name. A name is "digits", "emoji", a folder in diffusers' layout, or a Hub id."""

from __future__ import annotations

import inspect
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from rfc.files import read_json
from rfc_fx.errors import RFCError
from rfc_fx.tools.model_files import ModelFilesError, check_files, check_sizes
from rfc_fx.tools.stored_dtype import stored_dtype
from rfc_fx.zoo import DIGITS, EMOJI

ModelKind = Literal["digits", "transformer", "pipeline"]
"""digits: a class-conditional transformer with its scheduler; transformer: alone; pipeline: of diffusers."""


SHIPPED = {"digits": DIGITS, "emoji": EMOJI}
"""Folders of the models that ship with the package."""


class LoadError(RFCError):
    """A model that cannot be found, read, or drawn from."""


def locate(name: str) -> Path | str:
    """Return the folder that `name` means, or `name` itself when it can only be a Hub id."""
    if (shipped := SHIPPED.get(name)) is not None:
        if not shipped.is_dir():
            raise LoadError(f"{name}: the folder {shipped} is not there; install the package again, or pass a folder")
        return shipped
    if (problem := path_problem(name)) is not None:
        raise LoadError(f"{name[:80]}: no name of a folder: {problem}; pass digits, emoji, a folder in diffusers' layout, or a Hub id")
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise LoadError(f"{name}: expected a folder, got a file; pass the folder that holds config.json or model_index.json")
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        return name
    raise LoadError(f"{name}: no such folder; pass digits, emoji, a folder in diffusers' layout, or a Hub id such as facebook/DiT-XL-2-256")


def path_problem(name: str | Path) -> str | None:
    """Why the system cannot even look for a path: too long, a null character, letters it has no bytes for; None where it can."""
    if not str(name):
        return "it is empty"
    try:
        os.lstat(Path(name).expanduser())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RuntimeError) as error:
        return None if isinstance(error, NotADirectoryError) else str(getattr(error, "strerror", None) or error)
    return None


def model_kind(where: Path | str) -> ModelKind:
    """What a folder holds, its files checked (`check_files`); a Hub id is taken for a pipeline."""
    if isinstance(where, str):
        return "pipeline"
    check_files(where, allow_pickle=PICKLES_ALLOWED.get())
    if (where / "model_index.json").exists():
        return "pipeline"
    if not (where / "config.json").exists():
        if (where / "rfc.json").exists():
            raise LoadError(
                f"{where}: is an engine, not a model; pass the model that it was exported from, or draw and check with rfc-fx run, verify "
                "and bench"
            )
        raise LoadError(f"{where}: expected config.json (a transformer) or model_index.json (a pipeline), found neither")
    return "digits" if (where / "scheduler_config.json").exists() else "transformer"


@contextmanager
def reading(where: Path | str) -> Iterator[None]:
    """Whatever goes wrong inside is one LoadError of one line."""
    try:
        with warnings.catch_warnings():  # e.g. torch_dtype is deprecated: older diffusers know no other name
            warnings.simplefilter("ignore")
            yield
    except (LoadError, ModelFilesError):
        raise
    except Exception as error:
        hint = "" if isinstance(where, Path) else "; there is no such folder here, and a Hub id needs the network or a cached copy"
        if "keep_in_fp32_modules" in str(error):
            hint = "; parts of this model stay in float32, which needs the package accelerate: pip install accelerate"
        raise LoadError(f"{where}: cannot be loaded: {type(error).__name__}: {one_line(error)}{hint}") from error


def one_line(error: BaseException, width: int = 300) -> str:
    """An error's text on one line."""
    text = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
    return text if len(text) <= width else text[: width - 3] + "..."


def quiet() -> None:
    """Let diffusers, transformers and the Hub's client report errors alone."""
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    if find_spec("transformers") is not None:
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of every retry


def _class(where: Path | str, name: Any) -> Any:
    import diffusers

    model_class = getattr(diffusers, str(name), None)
    if not inspect.isclass(model_class) or not issubclass(model_class, nn.Module):
        raise LoadError(f"{where}: _class_name is {name!r}, expected the name of a diffusers model class")
    return model_class


PICKLES_ALLOWED: ContextVar[bool] = ContextVar("PICKLES_ALLOWED", default=False)


@contextmanager
def pickles_allowed(allowed: bool) -> Iterator[None]:
    """Whether weights in pickles are read, for the time of the block."""
    token = PICKLES_ALLOWED.set(allowed)
    try:
        yield
    finally:
        PICKLES_ALLOWED.reset(token)


def loading_options() -> dict[str, Any]:
    """What `from_pretrained` is told: safetensors alone, unless pickles are allowed, and its default for memory, which needs accelerate."""
    own: dict[str, Any] = {} if PICKLES_ALLOWED.get() else {"use_safetensors": True}
    return own if find_spec("accelerate") is not None else {**own, "low_cpu_mem_usage": False}  # without accelerate the default warns


def transformer_class(where: Path | str) -> Any:
    """The name of its transformer's class, as a folder of any layout or a pipeline on the Hub says it; LoadError where it has none."""
    with reading(where):
        if model_kind(where) != "pipeline":
            config = read_json(Path(where) / "config.json", finite=False)
            return config.get("_class_name") if isinstance(config, dict) else None
        from diffusers import DiffusionPipeline

        index = DiffusionPipeline.load_config(where)
        if "transformer" not in index:
            raise LoadError(f"{where}: the pipeline has {', '.join(k for k in index if k[0] != '_')}, but no transformer to cache")
        return index["transformer"][1]


def load_transformer(where: Path | str, dtype: torch.dtype | None, device: torch.device) -> nn.Module:
    """Return the transformer of a folder of any layout, or of a pipeline on the Hub, without its pipeline; `dtype` None: as stored."""
    quiet()
    name = transformer_class(where)
    with reading(where):
        inside: dict[str, Any] = {"subfolder": "transformer"} if model_kind(where) == "pipeline" else {}
        if isinstance(where, Path):
            check_sizes(where / inside.get("subfolder", ""))
            dtype = dtype or stored_dtype(where / inside.get("subfolder", ""))
        options = {"torch_dtype": dtype or torch.float32, "output_loading_info": True, **loading_options(), **inside}
        model, info = _class(where, name).from_pretrained(where, **options)
        if info["missing_keys"]:
            some = ", ".join(sorted(info["missing_keys"])[:3])
            raise LoadError(f"{where}: {len(info['missing_keys'])} weights that config.json asks for are not in the file, such as {some}")
        ready: nn.Module = model.to(device).eval()
        return ready


def load_scheduler(where: Path | str) -> Any:
    """The scheduler of a pipeline, or the DDIM one of a folder in the digits layout; LoadError for a transformer alone."""
    import diffusers

    kind = model_kind(where)
    if kind == "transformer":
        raise LoadError(f"{where}: a transformer alone has no scheduler; pass its pipeline folder")
    with reading(where):
        if kind == "digits":
            return diffusers.DDIMScheduler.from_pretrained(where)
        name = diffusers.DiffusionPipeline.load_config(where).get("scheduler", (None, None))[1]
        if not hasattr(diffusers, str(name)):
            raise LoadError(f"{where}: model_index.json has the scheduler {name!r}, which diffusers does not have")
        return getattr(diffusers, name).from_pretrained(where, subfolder="scheduler")
