"""The bench for an absent GPU (tests/cuda) keeps step with the package: what it compiles is made here on the CPU, by the same code."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True)
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).parent / "cuda")])
    import fakes
    import programs

    monkeypatch.setattr(fakes, "DEVICE", torch.device("cpu"))
    return programs


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("family", "way"), [("DiT", "hoisted"), ("DiT", "cond"), ("Mochi", "host")])
def test_programs_of_fakes_are_what_their_graphs_say(family: str, way: Any, bench: Any) -> None:
    from cases import FAMILIES, Case
    from fakes import strays

    (name,) = (name for name in FAMILIES if name.startswith(f"{family}Transformer"))
    made = bench.programs_of(Case(name, "rfe", "int8", "module", way))
    assert made.each
    for phase, program in made.each.items():
        assert strays(program.module, program.examples, made.mode) == [], phase


def test_every_pair_of_values_that_is_possible_is_a_case() -> None:
    from cases import CHOICES, everything, pairwise

    def pairs(cases: Any) -> set[Any]:
        return {((a, getattr(case, a)), (b, getattr(case, b))) for case in cases for a in CHOICES for b in CHOICES if a < b}

    assert pairs(pairwise()) == pairs(everything())


def test_what_passed_is_counted_over_processes(tmp_path: Path) -> None:
    from record import Found, Passed

    first, second = Passed(tmp_path), Passed(tmp_path)
    for passed, method in ((first, "taylor"), (second, "rfe")):
        found = Found(values={"family": "DiT", "method": method})
        found.counts.update({"programs": 2, "graphs that would be skipped": 0})
        passed.keep(f"test[{method}]", found)
    mark = first.compiled("a kernel", 90)
    mark.parent.mkdir()
    mark.touch()
    assert second.compiled("a kernel", 90).exists()
    assert Passed(tmp_path).totals() == {
        "values": {"family": 1, "method": 2},
        "pairs with a family": {"method": 2},
        "counts": {"graphs that would be skipped": 0, "programs": 4},
        "kernels": {"sm_90": 1},
    }
