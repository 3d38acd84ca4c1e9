"""The shipped digits model with its first blocks alone."""

import json
from functools import cache
from typing import Any

from rfc_fx.zoo import DIGITS, NULL_CLASS, load_digits
from rfc_fx.zoo.digits_pipeline import DigitsPipeline


def first_blocks(number: int) -> tuple[Any, Any]:
    """(model, scheduler): trained weights, so few blocks that a test may trace them many times."""
    model, scheduler = load_digits()
    model.transformer_blocks = model.transformer_blocks[:number]
    model.register_to_config(num_layers=number)
    return model, scheduler


def small_pipeline() -> DigitsPipeline:
    """A pipeline of the first block; all have the same one, and a scheduler of their own."""
    blocks, scheduler = _first_block()
    pipe = DigitsPipeline(blocks, type(scheduler).from_config(scheduler.config))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@cache
def _first_block() -> tuple[Any, Any]:
    return first_blocks(1)


def digits_sampler() -> dict[str, Any]:
    """What an artefact says of how digits are drawn."""
    scheduler = json.loads((DIGITS / "scheduler_config.json").read_text())
    return {"kind": "digits", "scheduler": scheduler, "cfg": 1.5, "null_class": NULL_CLASS}
