"""Entry point of the command rfc-fx: the application of `rfc_fx.tools.cli` with the commands for engines.

It stands here because `rfc_fx` imports nothing of `rfc_export`; both are in one wheel.
"""

from __future__ import annotations

import warnings

from rfc_export.commands.bench import bench
from rfc_export.commands.export import export
from rfc_export.commands.run import run
from rfc_export.commands.verify import verify
from rfc_fx.tools.cli import app

for _command in (export, run, verify, bench):
    app.command()(_command)


def main() -> None:
    """Run the command line, without libraries' warnings that are meant for programmers."""
    for category in (FutureWarning, DeprecationWarning):
        warnings.simplefilter("ignore", category)
    app()


if __name__ == "__main__":
    main()
