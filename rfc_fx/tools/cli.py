"""The command rfc-fx: the application, its commands that need no engine, and errors on one line.

`rfc_export.cli` adds the commands for engines, which nothing here may import; `rfc_export.main` is the entry point.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from rfc_fx.errors import RFCError
from rfc_fx.tools.commands.batch import batch
from rfc_fx.tools.commands.calibrate import calibrate
from rfc_fx.tools.commands.doctor import doctor
from rfc_fx.tools.commands.generate import generate
from rfc_fx.tools.commands.inspect import inspect
from rfc_fx.tools.commands.serve import serve
from rfc_fx.tools.commands.tune import tune
from rfc_fx.tools.load import one_line
from rfc_fx.tools.summary_json import installed_version


class _OneLineErrors(TyperGroup):
    """A user's error is one line on stderr and exit code 2; any other error is a defect and keeps its traceback."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        except RFCError as error:
            _fail(one_line(error, width=600))
        except typer.Abort:
            raise SystemExit(130) from None
        except Exception as error:
            if not hasattr(error, "format_message"):  # the parser's own errors have it; their base class is not public
                raise
            _fail(_parser_error(error))
        if standalone_mode:
            raise SystemExit(code if isinstance(code, int) else 0)
        return code


def _parser_error(error: Any) -> str:
    """What the parser says, and where the options are explained."""
    command = getattr(getattr(error, "ctx", None), "info_name", None)
    text = " ".join(error.format_message().replace("Value error, ", "").split()).rstrip(".")
    return f"{text}; see rfc-fx {f'{command} ' if command and error.ctx.parent else ''}--help"


def _fail(text: str) -> NoReturn:
    typer.echo(f"rfc-fx: error: {text}", err=True)
    raise SystemExit(2)


app = typer.Typer(
    cls=_OneLineErrors, add_completion=False, pretty_exceptions_enable=False, help="Feature caching for diffusion transformers, compiled."
)
for _command in (generate, batch, serve, calibrate, tune, inspect, doctor):
    app.command()(_command)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"rfc-fx {installed_version()}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version")] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
