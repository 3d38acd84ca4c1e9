"""The page at `/`: a prompt is typed, and the picture comes."""

from __future__ import annotations

import html
from pathlib import Path

from rfc_fx.tools.requests.request import Limits

TEMPLATE = Path(__file__).with_suffix(".html")


def page(model: str, takes_classes: bool, limits: Limits = Limits()) -> str:
    """The page of a model that takes prompts, or numbers of classes."""
    if takes_classes:
        values = {"label": "Class", "input": 'type="number" min="0" step="1" placeholder="3"', "field": "class", "convert": "Number"}
    else:
        values = {"label": "Prompt", "input": f'maxlength="{limits.prompt}"', "field": "prompt", "convert": "String"}
    text = TEMPLATE.read_text(encoding="utf-8")
    for name, value in {**values, "model": html.escape(model)}.items():
        text = text.replace("{{" + name + "}}", value)
    return text
