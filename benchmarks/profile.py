"""The command `python -m benchmarks.profile`; see `benchmarks.latency.profile`."""

import typer

from benchmarks.latency.profile import main

if __name__ == "__main__":
    typer.run(main)
