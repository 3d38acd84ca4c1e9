"""The command `python -m benchmarks.shapes`; see `benchmarks.training.shapes_data`."""

import typer

from benchmarks.training.shapes_data import main

if __name__ == "__main__":
    typer.run(main)
