"""Commands as a shell calls them."""

from collections.abc import Callable
from functools import cache
from typing import Any

from click.testing import CliRunner, Result
from typer import Typer
from typer.main import get_command


def invoke(main: Callable[..., Any], *arguments: object) -> Result:
    """Run a command's function with options from strings."""
    app = Typer()
    app.command()(main)
    return CliRunner().invoke(get_command(app), [str(argument) for argument in arguments])


def said(result: Result) -> str:
    """What a command printed, without the frame around errors and the breaks of lines."""
    return " ".join(result.output.replace("│", " ").split())


def run(app: Typer, *arguments: object) -> Result:
    """Run an application with its commands; a defect raises."""
    return CliRunner().invoke(made(app), [str(argument) for argument in arguments], catch_exceptions=False)


made = cache(get_command)
"""An application's commands, made once: each time takes a tenth of a second."""


def one_line_error(app: Typer, *arguments: object) -> str:
    """Stderr of a command of rfc-fx that must fail as a user's error does."""
    result = run(app, *arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("rfc-fx: error: ")
    return str(line)
