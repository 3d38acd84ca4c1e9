"""The command `python -m benchmarks.smoke`; see `benchmarks.latency.smoke`."""

import typer

from benchmarks.latency.smoke import main

if __name__ == "__main__":
    typer.run(main)
