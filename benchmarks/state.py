"""The command `python -m benchmarks.state`; see `benchmarks.latency.state`."""

import typer

from benchmarks.latency.state import main

if __name__ == "__main__":
    typer.run(main)
