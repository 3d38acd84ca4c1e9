"""Options that the commands for engines share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Engine = Annotated[Path, typer.Argument(metavar="ENGINE", help="what `rfc-fx export` wrote: a folder, or a .pt2 file")]
