"""Files of records: each is written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rfc_fx.io.atomic import write_atomically

Record = dict[str, Any]
"""What a file of JSON holds."""


RESULTS = Path(__file__).parent / "results"
"""The committed records."""


def write_text(path: Path, text: str) -> None:
    """Write a text file in a folder that is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda part: part.write_text(text))


def write_json(path: Path, record: Mapping[str, Any] | list[Any]) -> None:
    """Write a record as indented JSON."""
    write_text(path, json.dumps(record, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """The record in a file."""
    return json.loads(path.read_text())
