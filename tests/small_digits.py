"""The shipped digits model with its first blocks alone."""

import json
from typing import Any

from rfc_fx.zoo import DIGITS, NULL_CLASS, load_digits


def first_blocks(number: int) -> tuple[Any, Any]:
    """(model, scheduler): trained weights, so few blocks that a test may trace them many times."""
    model, scheduler = load_digits()
    model.transformer_blocks = model.transformer_blocks[:number]
    model.register_to_config(num_layers=number)
    return model, scheduler


def digits_sampler() -> dict[str, Any]:
    """What an artefact says of how digits are drawn."""
    scheduler = json.loads((DIGITS / "scheduler_config.json").read_text())
    return {"kind": "digits", "scheduler": scheduler, "cfg": 1.5, "null_class": NULL_CLASS}
