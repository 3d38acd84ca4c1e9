"""The command `python -m benchmarks.train_flow_digits`; see `benchmarks.training.flow_digits`."""

import typer

from benchmarks.training.flow_digits import main

if __name__ == "__main__":
    typer.run(main)
