"""On a CUDA device every program is one CUDA graph there, and its kernels compile for every architecture."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from cases import Case, every_value, everything, pairwise
from fakes import strays
from generated import checked_inputs, triton_code
from kernels import ARCHITECTURES, anonymous, architecture, compile_kernel
from programs import programs_of

from rfc_export.portable import STEP
from rfc_fx.ir.layout import ALIGNMENT

pytestmark = [pytest.mark.cuda, pytest.mark.filterwarnings("default")]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        option = metafunc.config.getoption
        cases = [*everything()] if option("--every-combination") else every_value() if option("--every-value") else pairwise()
        metafunc.parametrize("case", cases, ids=str)


def test_every_program_is_one_graph_on_the_device(case: Case, counts: Counter[str], kernels: dict[str, str]) -> None:
    """No result on the CPU, no reason to leave CUDA graphs, one partition, and everything that is written keeps its address.

    A decision in the graph (cond) is read by the host: such a step is no CUDA graph, and says so (README of rfc_fx).
    """
    programs = programs_of(case)
    counts["combinations of family, method, state, granularity and dispatch"] += 1
    for phase, program in programs.each.items():
        assert strays(program.module, program.examples, programs.mode) == [], phase
        with programs.mode:
            made = triton_code(program.module, program.examples, programs.static(phase))
        faults = made.faults
        if phase == STEP:
            assert all(reason.startswith("control flow operator") for reason in made.reasons)
            faults = [fault for fault in faults if not fault.startswith(("no CUDA graph", "partitions"))]
        counts["programs"] += 1
        counts["steps with a decision in the graph"] += phase == STEP
        counts["graphs that would be skipped"] += len(made.reasons) if phase != STEP else 0
        assert faults == [], phase
        assert program.written == () or made.written
        kernels |= {anonymous(body): body for body in made.kernels.values()}


def test_what_an_engine_writes_begins_where_its_code_takes_it_to_begin(case: Case, counts: Counter[str]) -> None:
    """AOTInductor hands a misaligned argument on as a copy, in which writes are lost: each that it checks has to begin at 16 bytes."""
    programs = programs_of(case)
    slots, pools = programs.layout.allocate(torch.device("cpu"))
    for phase, program in programs.each.items():
        with programs.mode:
            checked = checked_inputs(program.module, program.examples)
        specs = [program.inputs[index] for index in checked]
        begin = {spec.name: (slots | pools)[spec.name].data_ptr() % ALIGNMENT for spec in specs if spec.name in slots | pools}
        counts["arguments of engines whose address is checked"] += len(begin)
        assert begin == dict.fromkeys(begin, 0), phase


@pytest.mark.parametrize("capability", ARCHITECTURES)
def test_every_kernel_compiles(capability: int, counts: Counter[str], kernels: dict[str, str], tmp_path: Path) -> None:
    """Eight-bit floats are refused below sm_89 before any kernel is made (`check_types`)."""
    assert kernels
    failed = []
    with architecture(capability, tmp_path):
        for body in kernels.values():
            is_float8 = "fp8e4nv" in body or "float8e4nv" in body
            if is_float8 and capability < 89:
                continue
            try:
                compile_kernel(body, capability)
                counts[f"kernels compiled to sm_{capability}"] += 1
            except Exception as error:
                failed.append(f"{type(error).__name__}: {str(error)[-300:]}")
    assert failed == []
