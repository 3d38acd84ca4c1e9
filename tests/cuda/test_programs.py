"""On a CUDA device every program is one CUDA graph there, and its kernels compile for every architecture."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from cases import Case, every_value, everything, pairwise
from fakes import strays
from generated import checked_arguments, checked_inputs, triton_code
from kernels import anonymous, failures
from programs import Programs, plain_program, programs_of
from record import Found, Passed
from torch._inductor import config
from torch._inductor.exc import InductorError

from rfc_export.portable import STEP
from rfc_fx.ir.layout import ALIGNMENT
from rfc_fx.ir.torch_versions import TORCH, WITHOUT_TILING_ANALYSIS

pytestmark = [pytest.mark.cuda, pytest.mark.filterwarnings("default")]

FAILING = ("CogVideoXTransformer3DModel",) if TORCH < (2, 14) else ()
"""Families whose plain model fails in this torch's analysis of tilings: they are compiled without it (`WITHOUT_TILING_ANALYSIS`)."""


READ = every_value()
"""Cases whose C++ is generated too."""


def around(case: Case) -> AbstractContextManager[None]:
    return config.patch(WITHOUT_TILING_ANALYSIS) if case.family in FAILING else nullcontext()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        option = metafunc.config.getoption
        cases = [*everything()] if option("--every-combination") else every_value() if option("--every-value") else pairwise()
        metafunc.parametrize("case", cases, ids=str, scope="module")


@pytest.fixture(scope="module")
def captured() -> dict[Case, Programs]:
    """The programs of the case that was looked at last: its tests come one after the other."""
    return {}


def programs(case: Case, captured: dict[Case, Programs]) -> Programs:
    if case not in captured:
        captured.clear()
        captured[case] = programs_of(case)
    return captured[case]


def test_every_program_is_one_graph_on_the_device(case: Case, found: Found, captured: dict[Case, Programs]) -> None:
    """No result on the CPU, no reason to leave CUDA graphs, one partition, and everything that is written keeps its address.

    A decision in the graph (cond) is read by the host: such a step is no CUDA graph, and says so (README of rfc_fx).
    """
    made = programs(case, captured)
    found.values |= asdict(case)
    found.counts["combinations whose programs are one graph each"] += 1
    found.counts["of these without the tiling analysis, in which the plain model fails"] += case.family in FAILING
    for phase, program in made.each.items():
        assert strays(program.module, program.examples, made.mode) == [], phase
        with made.mode, around(case):
            generated = triton_code(program.module, program.examples, made.static(phase))
        faults = generated.faults
        if phase == STEP:
            assert all(reason.startswith("control flow operator") for reason in generated.reasons)
            faults = [fault for fault in faults if not fault.startswith(("no CUDA graph", "partitions"))]
        found.counts["programs"] += 1
        found.counts["steps with a decision in the graph"] += phase == STEP
        found.counts["graphs that would be skipped"] += len(generated.reasons) if phase != STEP else 0
        assert faults == [], phase
        assert program.written == () or generated.written
        found.kernels |= {anonymous(body): body for body in generated.kernels.values()}


def test_what_an_engine_writes_begins_where_its_code_takes_it_to_begin(case: Case, found: Found, captured: dict[Case, Programs]) -> None:
    """AOTInductor hands a misaligned argument on as a copy, in which writes are lost: each that it checks has to begin at 16 bytes.

    Which these are is read from its C++ where every value occurs once, and asked of Inductor for the other combinations.
    """
    made = programs(case, captured)
    found.counts["combinations whose engines lose no write"] += 1
    slots, pools = made.layout.allocate(torch.device("cpu"))
    for phase, program in made.each.items():
        if not program.written:
            continue
        with made.mode, around(case):
            checked = checked_arguments(program.examples)
            if case in READ:
                assert checked_inputs(program.module, program.examples) == checked, phase
                found.counts["programs whose C++ was searched for copies"] += 1
        specs = [program.inputs[index] for index in checked]
        begin = {spec.name: (slots | pools)[spec.name].data_ptr() % ALIGNMENT for spec in specs if spec.name in slots | pools}
        found.counts["arguments of engines whose address is checked"] += len(begin)
        assert begin == dict.fromkeys(begin, 0), phase


def test_every_kernel_of_it_compiles_to_every_architecture(case: Case, found: Found, passed: Passed, tmp_path: Path) -> None:
    """Equal kernels of several combinations are compiled once."""
    kernels = passed.kernels_of(f"{test_every_program_is_one_graph_on_the_device.__name__}[{case}]")
    assert kernels
    found.counts["combinations whose kernels compile"] += 1
    assert [*failures(kernels, passed, tmp_path)] == []


@pytest.mark.parametrize("family", FAILING)
def test_a_family_that_needs_another_setting_needs_it_for_the_plain_model(family: str, found: Found) -> None:
    program, arguments, mode = plain_program(family)
    with mode, pytest.raises(InductorError):
        triton_code(program, arguments, [])
    with mode, config.patch(WITHOUT_TILING_ANALYSIS):
        assert triton_code(program, arguments, []).faults == []
    found.counts["families whose plain model fails in Inductor's tiling analysis (pytorch#191603)"] += 1
