"""`rfc-fx inspect`: what the transformation of a model looks like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rfc_fx.report.drawing import check_picture
from rfc_fx.tools import options
from rfc_fx.tools.arguments import dtype_named, new_config
from rfc_fx.tools.inputs import load_with_inputs
from rfc_fx.tools.inspect import inspect_model
from rfc_fx.tools.named_methods import MethodArguments, check_granularity, new_method
from rfc_fx.tools.terminal import terminal


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
    allow_pickle: options.AllowPickle = False,
    dtype: options.DType = "float32",
    device: options.Device = options.CPU,
) -> None:
    """Print a model's sites, what was rejected and why, state and FLOPs, and the guarded graph of one block."""
    instance = new_method(method, MethodArguments(order=order, preset=preset))
    config = new_config(granularity=granularity, state_dtype=state_dtype, state_budget=state_budget)
    check_granularity({method: instance}, config)
    if draw is not None:
        check_picture(draw)
    transformer, inputs = load_with_inputs(model, dtype_named(dtype), device)
    console = terminal(soft_wrap=True)
    for part in inspect_model(transformer, inputs, instance, config, block, draw):
        console.print(part)
