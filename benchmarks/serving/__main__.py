"""The command `python -m benchmarks.serving`; see `benchmarks.serving.load`."""

import typer

from benchmarks.serving.load import main

if __name__ == "__main__":
    typer.run(main)
