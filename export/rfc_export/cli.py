"""The command rfc-fx: the application of `rfc_fx.tools.cli` with the commands for engines; `rfc_export.main` runs it.

It stands here because `rfc_fx` imports nothing of `rfc_export`; both are in one wheel.
"""

from __future__ import annotations

from rfc_export.commands.bench import bench
from rfc_export.commands.export import export
from rfc_export.commands.run import run
from rfc_export.commands.verify import verify
from rfc_fx.tools.cli import app as app

for _command in (export, run, verify, bench):
    app.command()(_command)
