"""The command `python -m benchmarks.host`; see `benchmarks.latency.host`."""

import typer

from benchmarks.latency.host import main

if __name__ == "__main__":
    typer.run(main)
