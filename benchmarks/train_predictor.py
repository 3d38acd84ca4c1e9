"""The command `python -m benchmarks.train_predictor`; see `benchmarks.training.predictor`."""

import typer

from benchmarks.training.predictor import main

if __name__ == "__main__":
    typer.run(main)
