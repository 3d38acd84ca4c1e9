"""The command `python -m benchmarks.classifier`; see `benchmarks.quality.classifier`."""

import typer

from benchmarks.quality.classifier import main

if __name__ == "__main__":
    typer.run(main)
