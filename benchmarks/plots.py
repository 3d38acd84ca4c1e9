"""The command `python -m benchmarks.plots`; see `benchmarks.latency.plots`."""

import typer

from benchmarks.latency.plots import main

if __name__ == "__main__":
    typer.run(main)
