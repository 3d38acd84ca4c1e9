"""The command `python -m benchmarks.scaling`; see `benchmarks.latency.scaling`."""

import typer

from benchmarks.latency.scaling import main

if __name__ == "__main__":
    typer.run(main)
