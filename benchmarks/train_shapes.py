"""The command `python -m benchmarks.train_shapes`; see `benchmarks.training.shapes`."""

import typer

from benchmarks.training.shapes import main

if __name__ == "__main__":
    typer.run(main)
