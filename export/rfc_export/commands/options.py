"""Options that the commands for engines share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rfc_export.seal import public_bytes


def _trusted_key(text: str) -> str:
    """A public key as 64 hexadecimal digits; ExportError where the text or the file it names is none."""
    return public_bytes(text).hex()


Engine = Annotated[Path, typer.Argument(metavar="ENGINE", help="what `rfc-fx export` wrote: a folder, or a .pt2 file")]
Trusted = Annotated[
    list[str] | None,
    typer.Option(
        parser=_trusted_key,
        metavar="KEY",
        help="public key, a PEM file or 64 hexadecimal digits: engines that none of these signed are refused; repeatable",
    ),
]
Trust = Annotated[bool, typer.Option("--trust", help="load machine code (aoti) that nobody signed without a warning")]
