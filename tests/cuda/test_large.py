"""Published sizes as fakes, which take no memory: FLUX.1 and DiT-XL/2 compile for the device, with their kernels and bytes counted."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from absent_gpu import DEVICE
from generated import triton_code
from kernels import anonymous, failures
from programs import STATIC, built_programs, fake_mode
from record import Found, Passed

import rfc
import rfc_fx
from benchmarks.gpu.workloads import FLUX, KINDS
from benchmarks.latency.workloads import WORKLOADS, Workload

pytestmark = [pytest.mark.cuda, pytest.mark.filterwarnings("default")]


def made(workload: Workload, mode: Any) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The model in bfloat16 and a call of one sample; no weight is ever drawn."""
    for kind in KINDS:  # what libraries make when they are imported is not made on the device
        getattr(diffusers, kind)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with mode, torch.device(DEVICE):
            # gates that start at zero are filled where they hold values, which fakes do not
            model = _unfilled(workload.model)
    finally:
        torch.set_default_dtype(torch.float32)
    calls = workload.calls(model, 1, 2)

    def there(tensor: torch.Tensor) -> torch.Tensor:
        fake = mode.from_tensor(tensor)
        with mode:
            return fake.to(DEVICE, torch.bfloat16 if tensor.is_floating_point() else tensor.dtype)

    return model, {name: there(tensor) for name, tensor in calls[0].items()}


def _unfilled(build: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.latency.workloads.filled", torch.nn.Module.eval)
        return build()


@pytest.mark.parametrize("workload", [WORKLOADS["dit-xl"], FLUX], ids=lambda workload: workload.name)
def test_a_published_size_compiles_for_the_device(workload: Workload, found: Found, passed: Passed, tmp_path: Path) -> None:
    mode = fake_mode()
    model, call = made(workload, mode)
    programs = built_programs(model, call, rfc.RFC(tau=0.1), rfc_fx.Config(hoist=True), mode)
    note = partial("{}: {}, {}".format, workload.name)
    found.counts[note("state", "MiB")] += programs.built.plan.state_bytes >> 20
    for phase, program in programs.each.items():
        static = [index for index, spec in enumerate(program.inputs) if spec.kind in STATIC]
        with mode:
            generated = triton_code(program.module, program.examples, static)
        assert generated.faults == [], phase
        found.counts[note(phase, "kernels")] += len(generated.kernels)
        assert [*failures({anonymous(body): body for body in generated.kernels.values()}, passed, tmp_path)] == [], phase
        found.counts[note(phase, "MiB that kernels read and write")] += generated.bytes >> 20
