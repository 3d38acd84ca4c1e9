"""The command `torchrun --nproc-per-node 2 -m benchmarks.scaleout`; see `benchmarks.scaleout.measure`."""

import typer

from benchmarks.scaleout.measure import main

if __name__ == "__main__":
    typer.run(main)
