"""What differs between the versions of torch that are supported, 2.13 and 2.14, and what is wrong with older ones."""

from __future__ import annotations

import inspect
import traceback
import warnings
from collections.abc import Mapping
from typing import Any

import torch

TORCH = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
"""(major, minor)."""


def warn_of_wrong_code() -> None:
    """Warn where Inductor's C++ back end compiles FULL wrongly: that of torch 2.11 was seen to write differences of zero into the state."""
    if TORCH < (2, 13):
        warnings.warn(
            f"torch {torch.__version__}: rfc-fx needs torch 2.13 or later where programs are compiled: Inductor of 2.11 was seen to read "
            "state after it was overwritten; install a later torch, or run uncompiled (compile=False)",
            UserWarning,
            stacklevel=2,
        )


WITHOUT_TILING_ANALYSIS = {"triton.coalesce_tiling_analysis": False}
"""Setting of Inductor under which torch 2.13 compiles what its analysis of tilings fails on (pytorch#191603; mended in 2.14)."""


def way_out(error: BaseException) -> str | None:
    """What to do about an error that is a defect of this torch, in the plain model too; None where none is known."""
    failed = {frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)}
    if TORCH < (2, 14) and "solve_for_tiling" in failed:
        return (
            f"a defect of torch {torch.__version__} (pytorch#191603), for which the model itself does not compile either: set "
            "torch._inductor.config.triton.coalesce_tiling_analysis = False, or install torch 2.14"
        )
    return None


def known_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Of Inductor's options those that this torch has: not every version knows all of them."""
    known = set(torch._inductor.list_options())
    return {name: value for name, value in options.items() if name in known}


def isolated_recompiles() -> dict[str, bool]:
    """For `torch.compile` calls that share no compiled code with others; not every version has the setting."""
    return {"isolate_recompiles": True} if "isolate_recompiles" in inspect.signature(torch.compile).parameters else {}
