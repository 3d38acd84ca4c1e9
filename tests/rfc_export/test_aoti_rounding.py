"""Halves inside a float32 model are rounded in machine code as the model rounds them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from onnx_programs import CPU, manifest_of, parameters, small
from torch import Tensor, nn

from rfc_export import aoti


class Rotated(nn.Module):
    """Stands for Kandinsky's rotary embedding, which rounds to bfloat16 whatever the model computes in."""

    def __init__(self, dtype: torch.dtype, half: torch.dtype) -> None:
        super().__init__()
        self.weight, self.half_type = nn.Parameter(torch.linspace(0.5, 1.5, 8, dtype=dtype)), half

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return ((x * self.weight).to(self.half_type).to(x.dtype) * 3,)


@pytest.mark.parametrize(
    ("dtype", "half", "expected"),
    [
        (torch.float32, torch.bfloat16, True),
        (torch.float32, torch.float32, False),
        (torch.bfloat16, torch.float32, False),  # of a model in half precision Inductor rounds less than the model, within the tolerance
    ],
)
def test_only_a_model_without_halves_is_compiled_with_every_rounding(dtype: torch.dtype, half: torch.dtype, expected: bool) -> None:
    program = small(Rotated(dtype, half), torch.ones(2, 8, dtype=dtype))
    assert aoti.rounds_inside(program, torch.export.export(program.module, program.examples)) is expected


@pytest.mark.slow  # compiles
def test_a_program_rounds_where_the_model_does(tmp_path: Path) -> None:
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    program = small(Rotated(torch.float32, torch.bfloat16), x)
    report: Callable[[str], object] = lambda line: None  # noqa: E731
    built = aoti.build({"FULL": program}, parameters(program.module), tmp_path, CPU, report)["FULL"]
    manifest = manifest_of(program)
    manifest.sets[0].programs["FULL"].file, manifest.options = built.file, built.options
    contents = {built.file: (tmp_path / built.file).read_bytes()}
    session = aoti.open(tmp_path, contents, manifest.sets[0].programs, manifest, parameters(program.module), CPU)["FULL"]
    (found,) = session([x], {})
    assert torch.equal(found, program.module(x)[0])
