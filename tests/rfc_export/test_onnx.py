"""ONNX: the same decisions and pictures as the model, weights in memory and on disk once, state that is carried, clear refusals."""

import ctypes
import json
import logging
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from drawing import difference
from families import FAMILIES, dit, moved, sample
from onnx_programs import build, opened, small, spec
from torch import Tensor, nn
from torch.nn import functional as F

import rfc
import rfc_export
import rfc_fx
from rfc_export import onnx as backend
from rfc_export.engine_context import EngineContext
from rfc_export.errors import ArtifactError, BackendError, ExportError
from rfc_export.manifest import WEIGHTS
from rfc_export.onnx import writer
from rfc_export.onnx.writer import value_name
from rfc_export.parity import TOLERANCE, compare
from rfc_export.parity import moved as moved_call

pytest.importorskip("onnxruntime", reason="pip install 'rfc-fx[onnx]'")
pytestmark = [pytest.mark.onnx, pytest.mark.usefixtures("captured_once")]

CPU = torch.device("cpu")
METHOD = rfc.RFC(tau=0.15)
STEPS = 12

Draw = Callable[[Any, int], Tensor]


@pytest.fixture(scope="module")
def twin(digits: nn.Module, digits_inputs: dict[str, Tensor]) -> rfc_fx.CachedModel:
    """The model that the engine was made from, in this process."""
    return rfc_fx.transform(digits, METHOD, example_inputs=digits_inputs, config=rfc_fx.Config(hoist=True))


@pytest.fixture(scope="module")
def engine(onnx_digits: Path) -> rfc_export.Engine:
    """One engine for the tests that leave it as they found it."""
    return rfc_export.load(onnx_digits)


# ---- the same steps --------------------------------------------------------------------------------------------------


def test_whole_generations_have_the_model_s_phases_and_pictures(engine: rfc_export.Engine, twin: rfc_fx.CachedModel, draw: Draw) -> None:
    for seed in (0, 1, 0):  # the third begins from what the second left behind
        drawn = []
        for model in (engine, twin):
            model.reset()
            drawn.append((draw(model, seed), model.stats.phases, model.stats.eps))
        (picture, phases, eps), (wanted, wanted_phases, wanted_eps) = drawn
        assert phases == wanted_phases
        assert 10 <= phases.count("FULL") <= 18
        assert eps[5:] == pytest.approx(wanted_eps[5:], rel=1e-4)
        assert difference(picture, wanted) < TOLERANCE["float32"]


def test_prepared_timesteps_change_no_decision(engine: rfc_export.Engine, draw: Draw, digits_inputs: dict[str, Tensor]) -> None:
    engine.reset()
    plain, phases = draw(engine, 3), engine.stats.phases
    engine.reset()
    engine.prepare(torch.arange(980, -1, -20))
    try:
        prepared = draw(engine, 3)
    finally:
        engine.prepare(None)
    assert engine.stats.phases == phases
    assert difference(prepared, plain) < TOLERANCE["float32"]


def loose(path: Path) -> rfc_export.Engine:
    """An engine that estimates about every second step of a short generation."""
    engine = rfc_export.load(path)
    engine.method = rfc.RFC(tau=1.0)
    return engine


def calls(inputs: dict[str, Any], shift: float = 0.0, steps: int = STEPS) -> list[dict[str, Any]]:
    """A short generation."""
    begin = {**inputs, "hidden_states": inputs["hidden_states"] + shift}
    return [moved_call(begin, step, steps, "timestep") for step in range(steps)]


def alone_of(engine: Any, inputs: list[dict[str, Any]]) -> list[Tensor]:
    """A generation of its own."""
    with engine.generation():
        return run(engine, inputs, "alone")


def run(engine: Any, inputs: list[dict[str, Any]], name: str) -> list[Tensor]:
    with engine.cache_context(name):
        return [sample(engine(**call)) for call in inputs]


@pytest.mark.parametrize("fullgraph", [False, True])
def test_torch_compile_leaves_an_engine_as_it_is(
    fullgraph: bool, engine: rfc_export.Engine, draw: Draw, caplog: pytest.LogCaptureFixture
) -> None:
    torch._dynamo.utils.counters.clear()
    drawn, phases = [], []
    for model in (engine, torch.compile(engine, fullgraph=fullgraph)):
        with engine.generation():
            drawn.append(draw(model, 0))
        phases.append(engine.stats.phases)
    assert torch.equal(*drawn)
    assert phases[0] == phases[1]
    assert not torch._dynamo.utils.counters["frames"]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]  # such as that of the limit of recompiles
    engine.compile()
    assert engine.compile_settings is None


def test_interleaved_contexts_engines_and_a_thread_do_not_touch_each_other(onnx_digits: Path, digits_inputs: dict[str, Tensor]) -> None:
    engine, other = loose(onnx_digits), loose(onnx_digits)
    a, b = calls(digits_inputs), calls(digits_inputs, shift=1.0)
    alone = [alone_of(engine, a), alone_of(engine, b)]
    assert not torch.equal(alone[0][-1], alone[1][-1])
    assert {"FULL", "ESTIMATE"} == set(engine.stats.phases)
    threaded: list[Tensor] = []
    thread = threading.Thread(target=lambda: threaded.extend(alone_of(engine, a)))
    thread.start()
    together: list[list[Tensor]] = [[], [], []]
    with engine.generation(), other.generation():
        for one, two in zip(a, b, strict=True):
            together[0] += run(engine, [one], "a")
            together[1] += run(engine, [two], "b")
            together[2] += run(other, [one], "a")
    thread.join()
    for found, wanted in zip((*together, threaded), (*alone, alone[0], alone[0]), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(found, wanted, strict=True))


# ---- state -----------------------------------------------------------------------------------------------------------


def test_full_writes_beside_the_old_state_and_the_two_change_places(onnx_digits: Path, digits_inputs: dict[str, Tensor]) -> None:
    engine = loose(onnx_digits)
    seen: list[tuple[int, ...]] = []
    with engine.generation() as generation:
        for call in calls(digits_inputs):
            engine(**call)
            context = generation.latest
            assert context is not None
            read = {name: tensor.data_ptr() for name, tensor in context.state.items()}
            assert not set(read.values()) & {tensor.data_ptr() for tensor in context.beside.values()}
            seen.append(tuple(read.values()))
            if engine.stats.phases[-1] == "ESTIMATE":  # its session reads the state where it lies
                bound = engine.programs["ESTIMATE"].call._bound
                assert {name: bound[f"state:{name}"] for name in read if f"state:{name}" in bound}.items() <= read.items()
                assert sum(f"state:{name}" in bound for name in read) > 5
    phases = engine.stats.phases
    assert set(phases) == {"FULL", "ESTIMATE"}
    assert len(set(seen)) == 2
    assert [x != y for x, y in pairwise(seen)] == [phase == "FULL" for phase in phases[1:]]


def test_the_check_at_export_finds_state_that_is_not_exchanged(
    onnx_digits: Path, twin: rfc_fx.CachedModel, digits_inputs: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rfc_export.parity import check_parity

    engine = rfc_export.load(onnx_digits)
    check_parity(engine, twin, digits_inputs)
    monkeypatch.setattr(EngineContext, "ran", lambda self, phase: None)
    with pytest.raises(ExportError, match=r"of the engine is off by|the engine decided"):
        check_parity(rfc_export.load(onnx_digits), twin, digits_inputs)


# ---- weights ---------------------------------------------------------------------------------------------------------


def test_all_sessions_read_one_copy_of_each_weight(onnx_digits: Path) -> None:
    engine = rfc_export.load(onnx_digits)
    programs = {phase: program for phase, program in engine.programs.items() if program.spec.weights}
    assert set(programs) == {"PREFIX", "TIMESTEP", "FULL", "ESTIMATE"}
    shared = [program.call.shared for program in programs.values()]
    assert all(one is shared[0] for one in shared)
    for program in programs.values():  # a weight that changes under the session changes what it computes: it has no copy
        generator = torch.Generator().manual_seed(0)
        given = [
            torch.randn(one.shape, generator=generator) if one.dtype == "float32" else torch.ones(one.shape, dtype=torch.int64)
            for one in program.spec.inputs
        ]

        def outputs(program: Any = program, given: list[Tensor] = given) -> list[Tensor]:
            into = {i: torch.empty(one.shape) for i, one in enumerate(program.spec.outputs) if one.kind == "next"}
            return [*program.call(given, into), *into.values()]

        before = outputs()
        for weight in program.spec.weights.values():
            value = shared[0][weight]
            old = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
            ctypes.memset(value.data_ptr(), 0, len(old))
            after = outputs()
            ctypes.memmove(value.data_ptr(), old, len(old))
            if len(value.shape()) == 2:
                assert any(not torch.equal(x, y) for x, y in zip(before, after, strict=True)), weight
        assert all(torch.equal(x, y) for x, y in zip(before, outputs(), strict=True))


def test_files_hold_no_weights_and_stand_on_their_own(onnx_digits: Path, engine: rfc_export.Engine) -> None:
    import onnx
    import onnxruntime

    stored = (onnx_digits / WEIGHTS).stat().st_size
    assert sum(path.stat().st_size for path in onnx_digits.glob("*.onnx")) < stored / 20
    for phase, program in engine.programs.items():
        path = onnx_digits / program.spec.file
        onnx.checker.check_model(str(path), full_check=True)
        onnx.shape_inference.infer_shapes(onnx.load(str(path)), check_type=True, strict_mode=True)
        model = onnx.load(str(path), load_external_data=False)
        assert [(one.domain, one.version) for one in model.opset_import] == [("", 20)]
        props = {one.key: one.value for one in model.metadata_props}
        assert props["rfc.phase"] == phase
        written = [one.name for one in engine.manifest.sets[0].state] if phase == "FULL" else []
        assert json.loads(props["rfc.state"]) == written
        assert not any(node.metadata_props for node in model.graph.node)  # would name paths of the machine that exported
        inside = [one.name for one in model.graph.initializer if one.data_location != onnx.TensorProto.EXTERNAL]
        assert not set(inside) & set(program.spec.weights)

    spec = engine.programs["PREFIX"].spec
    given = [torch.ones(one.shape, dtype=getattr(torch, one.dtype)) for one in spec.inputs]
    alone = onnxruntime.InferenceSession(str(onnx_digits / spec.file), providers=["CPUExecutionProvider"])
    names = {one.name for one in alone.get_inputs()}
    feed = {value_name(one): t.numpy() for one, t in zip(spec.inputs, given, strict=True) if value_name(one) in names}
    wanted = engine.programs["PREFIX"].call(given, {})
    for x, y in zip(alone.run([value_name(one) for one in spec.outputs], feed), wanted, strict=True):
        torch.testing.assert_close(torch.from_numpy(x), y)


# ---- building, on programs of a few lines ----------------------------------------------------------------------------


class Affine(nn.Module):
    """A linear layer over tokens, whose weight an exporter may transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(96, 64))
        self.bias = nn.Parameter(torch.randn(96))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (F.linear(x, self.weight, self.bias).squeeze(1) + F.linear(x.squeeze(0), self.weight),)


def test_linear_layers_read_the_weight_as_it_lies_in_the_file(tmp_path: Path) -> None:
    import onnxruntime

    program = small(Affine(), x := torch.randn(1, 5, 64))
    path = build(tmp_path, program)
    assert path.stat().st_size < 4096
    found = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"input:x0": x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found), program.module(x)[0], rtol=1e-4, atol=1e-4)


def test_weights_of_types_that_onnxruntime_takes_from_no_other_library_are_copied(tmp_path: Path) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.arange(2000) % 3 == 0)
            self.register_buffer("scale", torch.rand(2000))

        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (torch.where(self.mask, x, self.scale),)

    program = small(Masked(), x := torch.randn(2000))
    assert build(tmp_path, program).stat().st_size < 2048
    run = opened(tmp_path, program)
    assert torch.equal(run([x], {})[0], program.module(x)[0])


def test_another_program_s_file_is_refused(tmp_path: Path) -> None:
    program = small(Affine(), torch.randn(1, 5, 64))
    build(tmp_path, program)
    for change, reason in (
        ({"shape": [1, 5, 32]}, r"its inputs are not those of FULL: input:x0 has shape \[1, 5, 64\], expected \[1, 5, 32\]"),
        ({"name": "y"}, r"its inputs are not those of FULL: input:x0 has shape .*, expected None"),
    ):
        other = replace(program, inputs=[program.inputs[0].model_copy(update=change)])
        with pytest.raises(ArtifactError, match=reason):
            opened(tmp_path, other)
    more = replace(program, outputs=[*program.outputs, spec("next", "slot", torch.zeros(3))])
    with pytest.raises(ArtifactError, match=r"its outputs are not those of FULL: next:slot has shape None, expected \[3\]"):
        opened(tmp_path, more)


def test_large_constants_that_are_no_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Folded(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (x + torch.arange(600.0),)

    monkeypatch.setattr(writer, "MOST_INSIDE", 64)
    with pytest.raises(ExportError, match=r"FULL as ONNX holds .* MiB that are no weights of the model"):
        build(tmp_path, small(Folded(), torch.randn(600)))
    assert not (tmp_path / "full.onnx").exists()


def test_a_program_that_writes_in_place_is_refused(tmp_path: Path) -> None:
    class Writes(nn.Module):
        def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor]:
            state.view(-1).copy_(x.view(-1))
            return (x * 2,)

    with pytest.raises(ExportError, match=r"FULL writes state in place; ONNX would freeze it"):
        build(tmp_path, small(Writes(), torch.randn(4), torch.zeros(4)))


def test_a_program_that_loses_an_output_is_refused(tmp_path: Path) -> None:
    program = small(Affine(), torch.randn(1, 5, 64))
    program.outputs.append(spec("next", "slot", torch.zeros(3)))
    with pytest.raises(ExportError, match=r"1 inputs and 1 outputs, expected 1 and 2: state would be lost"):
        build(tmp_path, program)


def test_weights_above_two_gigabytes_never_enter_the_protobuf(tmp_path: Path) -> None:
    rows, width = 300_000, 2048
    size = rows * width * 4
    assert size > 1 << 31
    header = json.dumps({"table": {"dtype": "F32", "shape": [rows, width], "data_offsets": [0, size]}}).encode()
    with (tmp_path / WEIGHTS).open("wb") as stream:  # a file of holes: neither disk nor memory holds the zeros
        stream.write(struct.pack("<Q", len(header)) + header)
        stream.truncate(8 + len(header) + size)

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            table = torch.from_file(str(tmp_path / WEIGHTS), shared=False, size=rows * width, dtype=torch.float32)
            self.table = nn.Parameter(table.view(rows, width), requires_grad=False)

        def forward(self, i: Tensor) -> tuple[Tensor]:
            return (F.embedding(i, self.table),)

    path = build(tmp_path, small(Table(), torch.tensor([1, 2])))
    assert path.stat().st_size < 4096


def test_the_exporter_s_log_of_packages_that_are_not_installed_is_silent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    level = logging.getLogger("torch.onnx").level
    build(tmp_path, small(Affine(), torch.randn(1, 5, 64)))
    assert not [record for record in caplog.records if "torchvision" in record.getMessage()]
    assert logging.getLogger("torch.onnx").level == level


# ---- types and other kinds of state ----------------------------------------------------------------------------------


def shortened(family: Callable[..., Any] = dit, **kwargs: Any) -> Any:
    model, inputs = family(**kwargs)
    return model, [moved(inputs, step) for step in range(STEPS)]


def exported_and_compared(
    path: Path, cached: rfc_fx.CachedModel, inputs: list[dict[str, Any]], config: rfc_fx.Config | None = None
) -> rfc_export.Engine:
    """The engine, after its phases and outputs over a generation were found equal to the model's."""
    engine = rfc_export.load(rfc_export.export(cached, path, backend="onnx", example_inputs=inputs[0], config=config))
    found = compare(engine, cached, inputs)
    assert found.phases == found.expected_phases
    assert 0 < found.phases.count("ESTIMATE") < STEPS
    assert found.worst < TOLERANCE[engine.manifest.model.dtype]
    return engine


def test_one_model_with_if_decides_and_carries_its_state(tmp_path: Path) -> None:
    import onnx

    model, inputs = shortened(layers=1)
    cached = rfc_fx.transform(model, rfc.RFC(tau=0.5), example_inputs=inputs[0], config=rfc_fx.Config(dispatch="cond"))
    engine = exported_and_compared(tmp_path / "cond", cached, inputs)
    assert list(engine.programs) == ["STEP"]
    graph = onnx.load(str(tmp_path / "cond" / "step.onnx"), load_external_data=False).graph
    branches = [attribute.g for node in graph.node if node.op_type == "If" for attribute in node.attribute]
    assert len(branches) == 2
    assert not any(branch.initializer for branch in branches)  # weights come from the outer scope, one copy for both
    stored = {one.name for one in graph.initializer if one.data_location == onnx.TensorProto.EXTERNAL}
    assert stored <= set(engine.programs["STEP"].spec.weights)
    assert {f"next:{slot.name}" for slot in engine.manifest.sets[0].state} <= {one.name for one in graph.output}

    outputs = [run(engine, inputs, "alone")]
    engine.reset()
    both: list[list[Tensor]] = [[], []]
    for call in inputs:
        both[0] += run(engine, [call], "alone")
        both[1] += run(engine, [{**call, "hidden_states": call["hidden_states"] * 2}], "other")
    assert all(torch.equal(x, y) for x, y in zip(both[0], outputs[0], strict=True))


@pytest.mark.slow
def test_state_in_smaller_types_is_carried(tmp_path: Path) -> None:
    method = rfc.Method(estimator=rfc.Stored(estimator=rfc.RFE(sketch=4), differences=torch.int8), schedule=rfc.RCS(tau=0.5))
    model, inputs = shortened(layers=1)
    engine = exported_and_compared(
        tmp_path / "small", rfc_fx.transform(model, method, example_inputs=inputs[0]), inputs, rfc_fx.Config(hoist=False)
    )
    assert "int8" in {slot.dtype for slot in engine.manifest.sets[0].state}


def halved(dtype: torch.dtype) -> Any:
    model, inputs = shortened(layers=1)
    given = [{name: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for name, x in call.items()} for call in inputs]
    return model.to(dtype), given


@pytest.mark.slow  # the next has the type that the provider computes less of
def test_float16_runs_on_the_cpu_provider(tmp_path: Path) -> None:
    model, inputs = halved(torch.float16)
    engine = exported_and_compared(
        tmp_path / "half", rfc_fx.transform(model, rfc.RFC(tau=0.5), example_inputs=inputs[0]), inputs, rfc_fx.Config(hoist=False)
    )
    assert sample(engine(**inputs[0])).dtype == torch.float16


def test_bfloat16_runs_on_the_cpu_provider(tmp_path: Path) -> None:
    model, inputs = halved(torch.bfloat16)
    engine = exported_and_compared(
        tmp_path / "half", rfc_fx.transform(model, rfc.RFC(tau=0.5), example_inputs=inputs[0]), inputs, rfc_fx.Config(hoist=False)
    )
    assert sample(engine(**inputs[0])).dtype == torch.bfloat16
    assert {weight.dtype for weight in engine.manifest.weights.values()} >= {"bfloat16"}
    assert "bfloat16" in {slot.dtype for slot in engine.manifest.sets[0].state}


def test_a_type_that_the_provider_does_not_compute_in_is_refused_by_name() -> None:
    with pytest.raises(BackendError, match=r"CPUExecutionProvider does not compute in float8_e4m3fn.*float16, or with backend='aoti'"):
        backend.check_types(torch.device("cpu"), [torch.float32, torch.bfloat16, torch.float8_e4m3fn])


def test_a_kernel_that_the_provider_lacks_is_named(tmp_path: Path) -> None:
    class Chosen(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (torch.where(x > 0, x, -x),)

    program = small(Chosen(), torch.ones(3, dtype=torch.int16))
    build(tmp_path, program)
    with pytest.raises(BackendError, match=r"CPUExecutionProvider has no kernel for a part of FULL: .*implementation for Where"):
        opened(tmp_path, program)


@pytest.mark.slow
@pytest.mark.parametrize("dispatch", ["host", "cond"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_runs(tmp_path: Path, family: str, dispatch: Any) -> None:
    model, inputs = shortened(FAMILIES[family])
    exported_and_compared(
        tmp_path / family,
        rfc_fx.transform(model, rfc.RFC(tau=0.5), example_inputs=inputs[0], config=rfc_fx.Config(dispatch=dispatch)),
        inputs,
    )


@pytest.mark.slow
def test_whole_generations_of_the_model_with_if(tmp_path: Path, digits: nn.Module, digits_inputs: dict[str, Tensor], draw: Draw) -> None:
    cached = rfc_fx.transform(digits, METHOD, example_inputs=digits_inputs, config=rfc_fx.Config(dispatch="cond"))
    path = rfc_export.export(cached, tmp_path / "cond", backend="onnx", example_inputs=digits_inputs, config=rfc_fx.Config(dispatch="cond"))
    engine = rfc_export.load(path)
    for seed in (0, 1):
        drawn = []
        for model in (engine, cached):
            model.reset()
            drawn.append((draw(model, seed), model.stats.phases))
        assert drawn[0][1] == drawn[1][1]
        assert difference(drawn[0][0], drawn[1][0]) < TOLERANCE["float32"]


# ---- what is not there -----------------------------------------------------------------------------------------------


def test_a_missing_or_broken_onnxruntime_is_a_backend_error(onnx_digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match=r"pip install 'rfc-fx\[onnx\]'"):
        rfc_export.load(onnx_digits)
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace())
    with pytest.raises(BackendError, match=r"onnxruntime is broken, it has no InferenceSession"):
        rfc_export.load(onnx_digits)


def test_exporting_without_onnx_is_refused_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(BackendError, match=r"pip install 'rfc-fx\[onnx\]'"):
        build(tmp_path, small(Affine(), torch.randn(1, 5, 64)))
    assert [path.name for path in tmp_path.iterdir()] == [WEIGHTS]


def test_cuda_without_its_provider_is_refused() -> None:
    with pytest.raises(BackendError, match=r"none for cuda; pip install 'rfc-fx\[onnx-gpu\]' in an environment without \[onnx\]"):
        backend.check(torch.device("cuda"))


def test_falling_back_to_the_cpu_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    program = small(Affine(), torch.randn(1, 5, 64))
    build(tmp_path, program)
    asked: list[Any] = []

    class Fallen(onnxruntime.InferenceSession):  # type: ignore[misc]
        def __init__(self, program: bytes, options: Any, providers: list[Any]) -> None:
            asked.append((providers, options.get_session_config_entry("session.disable_cpu_ep_fallback")))
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "0")
            super().__init__(program, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", Fallen)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: SimpleNamespace(cuda_stream=64))
    with pytest.raises(BackendError, match=r"asked for CUDAExecutionProvider, ONNX Runtime fell back to CPUExecutionProvider"):
        opened(tmp_path, program, torch.device("cuda"))
    assert asked == [([("CUDAExecutionProvider", {"device_id": "0", "user_compute_stream": "64"})], "1")]


HEAVY = ("onnx", "onnx_ir", "onnxscript", "onnxruntime", "torch_tensorrt", "tensorrt", "tensorrt_rtx")

BROKEN = f"""
import importlib.abc, importlib.machinery, sys, torch

class Broken(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name in {HEAVY!r} else None

    def create_module(self, spec):
        raise RuntimeError(f"{{spec.name}} is broken")

    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Broken())
import rfc_export
from rfc_export.backends import backend
from rfc_export.errors import BackendError
assert not set({HEAVY!r}) & set(sys.modules)
for name, device in (("onnx", "cpu"), ("tensorrt", "cuda")):
    try:
        backend(name).check(torch.device(device))
    except BackendError as error:
        assert "is broken" in str(error), error
    else:
        raise AssertionError(name)
backend("aoti").check(torch.device("cpu"))
"""


def test_the_package_imports_whatever_state_the_heavy_libraries_are_in() -> None:
    done = subprocess.run([sys.executable, "-c", BROKEN], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
