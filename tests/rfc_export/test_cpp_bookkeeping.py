"""The bookkeeping of the C++ program, and that of a compiled graph, against the host's: the same counts to the last bit."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rfc.counts import Counts, advance, observe

STEPS = st.lists(st.tuples(st.floats(0, 4, width=32), st.booleans()), min_size=1, max_size=30)

SOURCE = Path(__file__).parents[2] / "export" / "cpp"

MAIN = """
#include <cstdio>
#include "bookkeeping.h"
int main() {
  rfc::Counts counts;
  float eps;
  int is_full;
  while (std::scanf("%f %d", &eps, &is_full) == 2) {
    counts = rfc::advance(rfc::observe(counts, eps), is_full != 0);
    std::printf("%.9g %.9g %.9g %.9g\\n", counts.since, counts.gap, counts.anchors, counts.total);
  }
}
"""


def on_the_host(steps: list[tuple[float, bool]], *, accumulates: bool = True) -> list[tuple[float, ...]]:
    counts, rows = Counts(), []
    for eps, is_full in steps:
        counts = advance(observe(counts, eps, accumulates=accumulates), is_full)
        rows.append(tuple(float(value) for value in counts))
    return rows


@given(STEPS, st.booleans())
def test_the_bookkeeping_of_a_graph_is_the_hosts(steps: list[tuple[float, bool]], accumulates: bool) -> None:
    counts: Counts = Counts(*(torch.zeros(()) for _ in range(4)))
    for (eps, is_full), expected in zip(steps, on_the_host(steps, accumulates=accumulates), strict=True):
        counts = advance(observe(counts, torch.tensor(eps), accumulates=accumulates), torch.tensor(is_full))
        assert all(isinstance(value, Tensor) and value.dtype is torch.float32 for value in counts)
        assert tuple(float(value) for value in counts) == expected


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bookkeeping")
    (folder / "main.cpp").write_text(MAIN)
    command = ["g++", "-std=c++17", "-I", str(SOURCE), str(folder / "main.cpp"), "-o", str(folder / "main")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "main"


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@given(steps=STEPS)
def test_the_bookkeeping_of_the_c_program_is_the_hosts(program: Path, steps: list[tuple[float, bool]]) -> None:
    lines = "\n".join(f"{eps!r} {int(is_full)}" for eps, is_full in steps)
    done = subprocess.run([str(program)], input=lines, capture_output=True, text=True, check=True)
    rows = [tuple(float(torch.tensor(float(word))) for word in line.split()) for line in done.stdout.splitlines()]
    assert rows == on_the_host(steps)
