"""`rfc-fx inspect`: what the transformation of a model looks like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rfc.storage import stored
from rfc_fx.tools import options
from rfc_fx.tools.arguments import dtype_named
from rfc_fx.tools.inputs import load_with_inputs
from rfc_fx.tools.inspect import inspect_model
from rfc_fx.tools.named_methods import MethodArguments, check_granularity, new_method


def inspect(
    model: options.ModelArgument = "digits",
    method: options.Method = "rfc",
    preset: options.Preset = None,
    order: options.Order = None,
    granularity: options.Granularity = None,
    state_dtype: options.StateDType = None,
    state_budget: options.StateBudget = None,
    block: Annotated[str | None, typer.Option(help="print the graph of this module path, e.g. transformer_blocks.0")] = None,
    draw: Annotated[Path | None, typer.Option(help="draw that graph to a .svg, .png or .pdf file")] = None,
    dtype: options.DType = "float32",
    device: options.Device = options.CPU,
) -> None:
    """Print a model's sites, what was rejected and why, state and FLOPs, and the guarded graph of one block."""
    state_type = None if state_dtype is None else dtype_named(state_dtype)
    instance = stored(new_method(method, MethodArguments(order=order, preset=preset)), state_type)
    check_granularity({method: instance}, granularity, state_budget)
    transformer, inputs = load_with_inputs(model, dtype_named(dtype), device)
    console = Console(soft_wrap=True)
    for part in inspect_model(transformer, inputs, instance, granularity, block, draw, state_budget):
        console.print(part)
