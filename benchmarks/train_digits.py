"""The command `python -m benchmarks.train_digits`; see `benchmarks.training.digits`."""

import typer

from benchmarks.training.digits import main

if __name__ == "__main__":
    typer.run(main)
