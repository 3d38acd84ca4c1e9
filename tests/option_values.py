"""Every option of every command, from the parser itself, with values that nobody should pass."""

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from click.testing import CliRunner
from command import made

from rfc_export.cli import app

ODD = {
    "empty": "",
    "nan": "nan",
    "infinite": "-inf",
    "huge": "9" * 400,
    "hugely negative": "-" + "9" * 30,
    "too large for a float": "1e309",
    "negative": "-1",
    "zero": "0",
    "a fraction": "1.5",
    "not ASCII": "ünïcödé",
    "no Unicode": "\ud800",
    "a null character": "a\0b",
    "blanks": " a b ",
    "elsewhere": "../x",
    "a device": "/dev/null",
    "long": "x" * 5000,
    "an escape": "\x1b[31m",
    "a format": "%s{0}",
    "a list": "[1, 2]",
    "another base": "0x10",
    "an option": "--",
}

LOADERS = (
    "rfc_fx.tools.sources.load_transformer",
    "rfc_fx.tools.inputs.load_transformer",
    "rfc_fx.tools.pipeline.folder.load_transformer",
    "rfc_fx.tools.pipeline.folder.PipelineFolder.load",
    "rfc_export.example_calls.load_transformer",
    "rfc_export.commands.run.load",
    "rfc_export.commands.verify.checks",
    "rfc_export.commands.bench.load",
    "rfc_fx.tools.commands.doctor.examine",
    "rfc_fx.tools.commands.batch.draw_here",
    "rfc_fx.tools.commands.batch.draw_with_ray",
    "rfc_fx.tools.commands.serve.imported",
)
"""Where a model or an engine is loaded, or minutes of work begin."""


class Loaded(BaseException):
    """The options were accepted: work would begin."""


@contextlib.contextmanager
def nothing_loads() -> Iterator[None]:
    """Whatever would load raises Loaded."""

    def load(*_: Any, **__: Any) -> Any:
        raise Loaded

    with contextlib.ExitStack() as held:
        for name in LOADERS:
            held.enter_context(mock.patch(name, load))
        yield


def calls(engine: Path, out: Path) -> dict[str, list[list[str]]]:
    """Calls of each command that are accepted as they stand; an option is added to them."""
    pipeline = ["--model", "emoji", "--prompt", "x"]
    out.mkdir(parents=True, exist_ok=True)
    prompts = out / "prompts.jsonl"
    prompts.write_text('{"prompt": "an apple"}\n')
    return {
        "generate": [["--out", str(out / "a")], [*pipeline, "--out", str(out / "b")]],
        "calibrate": [["digits", "--nfc", "8", "--out", str(out / "c.json")]],
        "tune": [["digits", "--speedup", "2", "--out", str(out / "h.json")]],
        "inspect": [["digits"]],
        "doctor": [[]],
        "export": [["digits", "--backend", "onnx", "--out", str(out / "d")]],
        "run": [[str(engine), "--out", str(out / "e")]],
        "verify": [[str(engine)]],
        "batch": [["emoji", "--prompts", str(prompts), "--out", str(out / "g")]],
        "serve": [["emoji"]],
        "bench": [["digits", "--out", str(out / "f")], [str(engine)]],
    }


def commands() -> dict[str, Any]:
    """The parser's commands by name."""
    return dict(made(app).commands)  # type: ignore[attr-defined]


def cases(engine: Path, out: Path, each: int, seed: int = 0) -> Iterator[list[str]]:
    """Command lines: every option with `each` odd values of its own choice, beside one of its command's calls, or all where it has more."""
    generator, own = random.Random(seed), calls(engine, out)
    values = list(ODD.values())
    for name, command in commands().items():
        for number, parameter in enumerate(command.params):
            options = [option for option in parameter.opts if option.startswith("-")]
            if not options or parameter.name == "help":
                continue
            for call in own[name] if each > 1 else [own[name][number % len(own[name])]]:
                if getattr(parameter, "is_flag", False):
                    yield [name, *call, options[0]]
                    yield [name, *call, f"{options[0]}=x"]
                    continue
                for value in generator.sample(values, min(each, len(values))):
                    yield [name, *call, options[0], value]


def outcome(arguments: list[str]) -> str:
    """loaded, refused, or what else happened."""
    try:
        result = CliRunner().invoke(made(app), arguments)
    except Loaded:
        return "loaded"
    lines = result.stderr.splitlines()
    if result.exit_code == 2 and len(lines) == 1 and lines[0].startswith("rfc-fx: error: ") and not result.stdout:
        return "refused"
    return f"exit code {result.exit_code}, {type(result.exception).__name__}: {str(result.exception)[:200]}; {lines[:3]}"
