"""Commands as a shell calls them."""

from collections.abc import Callable
from typing import Any

from typer import Typer
from typer.testing import CliRunner, Result


def invoke(main: Callable[..., Any], *arguments: object) -> Result:
    """Run a command's function with options from strings."""
    app = Typer()
    app.command()(main)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def said(result: Result) -> str:
    """What a command printed, without the frame around errors and the breaks of lines."""
    return " ".join(result.output.replace("│", " ").split())
