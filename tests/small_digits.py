"""The shipped digits model with its first blocks alone."""

from typing import Any

from rfc_fx.zoo import load_digits


def first_blocks(number: int) -> tuple[Any, Any]:
    """(model, scheduler): trained weights, so few blocks that a test may trace them many times."""
    model, scheduler = load_digits()
    model.transformer_blocks = model.transformer_blocks[:number]
    model.register_to_config(num_layers=number)
    return model, scheduler
