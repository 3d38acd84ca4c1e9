"""Doctor: whether this machine can do what the package needs, found out by doing it."""

from __future__ import annotations

import platform
import time
from importlib.metadata import PackageNotFoundError, version

import torch
from rich import box
from rich.table import Table

from rfc_fx.errors import RFCError
from rfc_fx.tools.load import one_line

PACKAGES = ("rfc-fx", "torch", "diffusers", "safetensors", "transformers")


class CompilerError(RFCError):
    """torch.compile does not work on this machine."""


def examine(device: torch.device) -> Table:
    """
    Compile and run one function on the device; return versions and seconds as a table.

    What torch prepares once per machine and torch version (the instruction set found, precompiled headers of the kernels) is in Inductor's
    cache afterwards, so the first real model compiles sooner. CompilerError: compilation failed, with the reason and the way out.
    """
    shown = Table(box=box.SIMPLE, show_header=False, padding=(0, 1, 0, 0))
    shown.add_row("python", platform.python_version())
    for name in PACKAGES:
        shown.add_row(name, torch.__version__ if name == "torch" else _version(name))  # with its build, such as +cu130
    shown.add_row("device", torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device}, {torch.get_num_threads()} threads")
    shown.add_row("torch.compile", f"works, {compile_seconds(device):.1f} s for one small function")
    return shown


def compile_seconds(device: torch.device) -> float:
    """Seconds of compiling and running a matrix product with a vectorized kernel behind it; CompilerError where that is not possible."""

    def small(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(x @ x).sum(-1)

    x = torch.linspace(-1, 1, 64 * 64, device=device).reshape(64, 64)
    start = time.perf_counter()
    try:
        with torch.no_grad():
            got = torch.compile(small, fullgraph=True)(x)
    except Exception as error:  # whatever a tool chain can do wrong
        raise CompilerError(
            f"torch.compile does not work on {device}: {one_line(error, width=300).partition('; Set TORCHDYNAMO')[0]}; "
            "install a C++ compiler (Debian: apt install g++), or pass --no-compile to rfc-fx generate"
        ) from error
    torch.testing.assert_close(got, small(x))
    return time.perf_counter() - start


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
