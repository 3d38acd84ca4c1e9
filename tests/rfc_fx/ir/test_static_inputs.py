"""What CUDA graphs ask of a program's arguments, asked without a device: they begin at 16 bytes, and what is written keeps its address."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from choosing import turns
from families import moved, shared_model
from torch._inductor.compile_fx import compile_fx
from torch._inductor.utils import remove_unaligned_input_idxs

import rfc
import rfc_fx
from rfc_fx.ir.layout import ALIGNMENT

pytestmark = pytest.mark.usefixtures("captured_once")

ESTIMATORS = {
    "taylor": rfc.Taylor(order=2),
    "rfe": rfc.RFE(order=1),
    "sketched": rfc.RFE(order=1, sketch=4),
    "projective": rfc.Projective(order=2),
    "int8": rfc.Stored(estimator=rfc.Taylor(order=1), differences=torch.int8, outputs=torch.int8),
    "sketched int8": rfc.Stored(estimator=rfc.RFE(order=1, sketch=4), differences=torch.int8, outputs=torch.int8),
    "float8": rfc.Stored(estimator=rfc.Taylor(order=1), differences=torch.float8_e4m3fn, outputs=torch.float8_e4m3fn),
}


def method(name: str) -> rfc.Method:
    return rfc.Method(estimator=ESTIMATORS[name], schedule=rfc.RCS(tau=float("inf"), warmup=3))


@pytest.mark.parametrize(("family", "name"), turns(["dit", "flux"], ESTIMATORS))
def test_every_slot_begins_at_a_multiple_of_16_bytes(family: str, name: str) -> None:
    model, kwargs = shared_model(family)
    cached = rfc_fx.transform(model, method(name), example_inputs=moved(kwargs, 0))
    slots, pools = cached.compiled.layout.allocate(torch.device("cpu"))
    assert {slot: tensor.data_ptr() % ALIGNMENT for slot, tensor in (slots | pools).items()} == dict.fromkeys(slots | pools, 0)


def five_steps(cached: rfc_fx.CachedModel, kwargs: dict[str, Any], inner: Callable[..., Any]) -> None:
    """Compile every program in place, its code by `inner` in Inductor's place, and take five steps."""
    torch._dynamo.reset()
    cached.compile(backend=lambda module, inputs: compile_fx(module, inputs, inner_compile=inner), fullgraph=True)
    with torch.no_grad():
        for step in range(5):
            cached(**moved(kwargs, step))


@pytest.mark.parametrize("name", [pytest.param("taylor", marks=pytest.mark.slow), "sketched int8"])
def test_no_program_is_left_out_of_cuda_graphs_for_what_it_writes(name: str) -> None:
    """Every program goes through AOTAutograd as Inductor calls it; then torch's own two questions before it records a graph."""
    model, kwargs = shared_model("dit")
    cached = rfc_fx.transform(model, method(name), example_inputs=moved(kwargs, 0))
    asked: list[tuple[int, Any]] = []

    def inner(module: torch.fx.GraphModule, inputs: list[Any], **settings: Any) -> Any:
        def run(arguments: list[Any]) -> Any:
            static = settings.get("static_input_idxs", ())
            kept = remove_unaligned_input_idxs(arguments, static)
            written = {
                index
                for index, node in enumerate(module.graph.find_nodes(op="placeholder"))
                if any(user.target is torch.ops.aten.copy_.default and user.args[0] is node for user in node.users)
            }
            asked.append((len(written), sorted(written - set(kept))))
            return torch.fx.Interpreter(module).boxed_run(arguments)

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    five_steps(cached, kwargs, inner)
    assert {*cached.stats.phases} == {"FULL", "ESTIMATE"}
    assert sum(count for count, _ in asked) > 0
    assert all(not lost for _, lost in asked)


@pytest.mark.parametrize("hoist", [pytest.param(False, marks=pytest.mark.slow), True])
def test_only_what_a_step_brings_moves_in_programs_compiled_in_place(hoist: bool) -> None:
    """Weights, state and clock keep their addresses, so that no CUDA graph copies them: Inductor is told so, program by program."""
    model, kwargs = shared_model("dit")
    cached = rfc_fx.transform(model, method("taylor"), config=rfc_fx.Config(hoist=hoist), example_inputs=moved(kwargs, 0))
    moving: list[int] = []

    def inner(module: torch.fx.GraphModule, inputs: list[Any], **settings: Any) -> Any:
        def run(arguments: list[Any]) -> Any:
            return torch.fx.Interpreter(module).boxed_run(arguments)

        moving.append(len(inputs) - len(settings["static_input_idxs"]))
        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    five_steps(cached, kwargs, inner)
    brought = {name: sum(kind in ("input", "carry") for kind, _ in program.arguments) for name, program in cached.programs.items()}
    assert {"PREFIX", "FULL", "ESTIMATE"} | ({"TIMESTEP"} if hoist else set()) <= brought.keys()
    assert sorted(moving) == sorted(brought.values())
