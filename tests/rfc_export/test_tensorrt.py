"""TensorRT: what can be said without it: reasons for refusals, the key of the cache, and that TensorRT-RTX builds every ONNX program."""

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from families import dit
from torch import nn

import rfc
import rfc_export
import rfc_fx
from rfc_export import tensorrt
from rfc_export.errors import BackendError, ExportError
from rfc_export.portable import Portable
from rfc_export.specs import TensorSpec
from rfc_export.tensorrt import builder, cache, engine, libraries, rtx
from rfc_export.tensorrt.rtx import build_with_rtx

CUDA = torch.device("cuda")


def pretend(monkeypatch: pytest.MonkeyPatch, name: str, failure: Exception | None) -> None:
    """Install a library that raises this when it is imported."""
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)

    def find_spec(asked: str) -> Any:
        return module.__spec__ if asked == name else None

    def import_module(asked: str) -> Any:
        assert asked == name
        if failure is not None:
            raise failure
        return module

    monkeypatch.setattr(libraries, "find_spec", find_spec)
    monkeypatch.setattr(libraries, "import_module", import_module)


def test_a_missing_library_is_named() -> None:
    with pytest.raises(
        BackendError, match=r"torch-tensorrt is not installed; pip install 'rfc-fx\[tensorrt\]' where NVIDIA's package index"
    ):
        tensorrt.check(CUDA)


@pytest.mark.parametrize(
    "failure",
    [
        Exception("import error when try to import _TensorRTProxyModule, got error Could not find libnvinfer.so.11"),
        AssertionError("Torch not compiled with CUDA enabled"),
        RuntimeError("Found no NVIDIA driver on your system"),
        OSError("Could not load this library: libtorchtrt.so"),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_the_reason_of_a_broken_library_is_kept(failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "torch_tensorrt", failure)
    with pytest.raises(BackendError, match=type(failure).__name__) as raised:
        tensorrt.check(CUDA)
    assert str(failure) in str(raised.value)
    assert raised.value.__cause__ is failure


def test_torch_tensorrt_without_tensorrt_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "torch_tensorrt", None)
    with pytest.raises(BackendError, match=r"^tensorrt: tensorrt is not installed"):
        tensorrt.check(CUDA)


def test_a_half_removed_package_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = ModuleType("torch_tensorrt")
    broken.__spec__ = None
    monkeypatch.setitem(sys.modules, "torch_tensorrt", broken)
    with pytest.raises(BackendError, match=r"torch-tensorrt cannot be looked up: ValueError"):
        tensorrt.check(CUDA)


def test_a_model_on_the_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "installed", lambda module, package: "2.13.0")
    monkeypatch.setattr(libraries, "imported", lambda module, version: ModuleType(module))
    with pytest.raises(BackendError, match=r"the model is on cpu; move it with"):
        tensorrt.check(torch.device("cpu"))


def test_export_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    model, inputs = dit(layers=1)
    with pytest.raises(BackendError, match=r"torch-tensorrt is not installed"):
        rfc_export.export(model, tmp_path / "engine", backend="tensorrt", example_inputs=inputs, method=rfc.RFC(tau=0.5))
    assert not list(tmp_path.iterdir())


class Adds(nn.Module):
    def __init__(self, writes: bool = False) -> None:
        super().__init__()
        self.writes = writes

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        if self.writes:
            x.view(-1).add_(1)
        return (x + 1,)


def program(module: nn.Module, phase: str = "FULL") -> Portable:
    specs = [TensorSpec(kind=kind, name="x", dtype="float32", shape=[2, 2]) for kind in ("state", "next")]
    return Portable(phase, module, specs[:1], specs[1:], (torch.zeros(2, 2),), {"a": "a"}, 0, ())


def test_the_cache_s_key_names_all_that_an_engine_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    one = program(Adds())
    plain: tuple[Any, ...] = (one, "graph", "weights", {"tensorrt": "11.0"}, ["H100", "9.0"])
    larger = replace(one, inputs=[one.inputs[0].model_copy(update={"shape": [4, 2]})])
    others = [
        (0, larger),
        (0, replace(one, weights={"a": "b"})),
        (1, "graph 2"),
        (2, "weights 2"),
        (3, {"tensorrt": "11.1"}),
        (4, ["H100", "9.1"]),
    ]
    keys = {cache.cache_key(*plain[:place], other, *plain[place + 1 :]) for place, other in others}
    assert len(keys) == len(others)
    assert cache.cache_key(*plain) == cache.cache_key(*plain)
    assert cache.cache_key(*plain) not in keys


def test_the_cache_s_folder_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RFC_FX_CACHE", str(tmp_path / "chosen"))
    assert cache.cache_folder() == tmp_path / "chosen" / "tensorrt"
    monkeypatch.delenv("RFC_FX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / "rfc-fx" / "tensorrt"
    (tmp_path / "file").touch()
    monkeypatch.setenv("RFC_FX_CACHE", str(tmp_path / "file"))
    with pytest.raises(ExportError, match=r"cannot be made: .*set RFC_FX_CACHE to another folder"):
        cache.cache_folder()


def build(folder: Path, one: Portable) -> Any:
    (folder / "weights.safetensors").write_bytes(b"weights")
    return tensorrt.build({one.phase: one}, {}, folder, torch.device("cpu"), lambda line: None)


def test_an_engine_is_built_once_and_then_taken_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RFC_FX_CACHE", str(tmp_path / "cache"))
    asked: list[dict[str, Any]] = []

    class Dynamo:
        @staticmethod
        def convert_exported_program_to_serialized_trt_engine(exported: Any, **options: Any) -> bytes:
            asked.append(options)
            return b"engine"

    monkeypatch.setattr(builder, "import_module", lambda name: type("TorchTensorRT", (), {"dynamo": Dynamo}))
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        built = build(folder, program(Adds()))
        assert (folder / built["FULL"].file).read_bytes() == b"engine"
    assert len(asked) == 1
    assert asked[0]["require_full_compilation"] is True
    assert os.path.dirname(asked[0]["timing_cache_path"]) == str(tmp_path / "cache" / "tensorrt")
    assert not [path for path in (tmp_path / "cache" / "tensorrt").iterdir() if path.name.startswith(".")]


def test_what_cannot_be_built_or_would_be_frozen_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RFC_FX_CACHE", str(tmp_path / "cache"))
    with pytest.raises(BackendError, match=r"torch-tensorrt has no torch.cond .* dispatch='host'"):
        build(tmp_path, program(Adds(), "STEP"))
    with pytest.raises(ExportError, match=r"FULL writes in place; TensorRT would freeze that state"):
        build(tmp_path, program(Adds(writes=True)))

    class Dynamo:
        @staticmethod
        def convert_exported_program_to_serialized_trt_engine(exported: Any, **options: Any) -> bytes:
            raise RuntimeError("Conversion of module\n not currently fully supported")

    monkeypatch.setattr(builder, "import_module", lambda name: type("TorchTensorRT", (), {"dynamo": Dynamo}))
    with pytest.raises(BackendError, match=r"FULL cannot be built: RuntimeError: Conversion of module not currently"):
        build(tmp_path, program(Adds()))


# ---- running, with a stand-in for CUDA and TensorRT ------------------------------------------------------------------


class Recorded:
    """A CUDA graph: what was started while it was recorded."""

    now: "Recorded | None" = None

    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []

    def replay(self) -> None:
        for one in self.work:
            one()


@contextmanager
def recording(graph: Recorded) -> Iterator[None]:
    Recorded.now = graph
    yield
    Recorded.now = None


class Counts:
    """An execution context of an engine with out = x * 2, next = state + x, on single numbers in host memory."""

    def __init__(self) -> None:
        self.at: dict[str, int] = {}
        self.started = 0

    def set_tensor_address(self, name: str, address: int) -> None:
        self.at[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        x, state, out, after = (ctypes.c_float.from_address(self.at[name]) for name in ("x", "state", "out", "next"))

        def work() -> None:
            out.value, after.value = x.value * 2, state.value + x.value

        if Recorded.now is not None:
            Recorded.now.work.append(work)
        else:
            self.started += 1
            work()
        return True


def test_state_changes_places_and_each_set_of_addresses_is_recorded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorded)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
    inputs = [TensorSpec(kind=kind, name=name, dtype="float32", shape=[1]) for kind, name in (("input", "x"), ("state", "state"))]
    outputs = [TensorSpec(kind=kind, name=name, dtype="float32", shape=[1]) for kind, name in (("output", "out"), ("next", "state"))]
    spec: Any = SimpleNamespace(inputs=inputs, outputs=outputs)
    context = Counts()
    run = engine.GraphedEngine(context, ["x", "state"], ["out", "next"], spec, torch.device("cpu"))
    state, other = torch.zeros(1), torch.zeros(1)
    returned = []
    for step in range(6):
        returned += run([torch.tensor([float(step)]), state], {1: other})
        state, other = other, state
    assert [float(out) for out in returned] == [0, 2, 4, 6, 8, 10]
    assert float(state) == sum(range(6))
    assert context.started == 2

    for _ in range(2 * engine.MOST_GRAPHS):
        returned.append(extra := torch.zeros(1))  # kept, so that each lies elsewhere
        run([torch.ones(1), extra], {1: other})
    assert len(run._graphs) == engine.MOST_GRAPHS


# ---- TensorRT-RTX ----------------------------------------------------------------------------------------------------


def test_the_layer_that_tensorrt_rtx_cannot_build_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)

    class Builder:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def create_network(self, flags: int) -> None:
            pass

        def create_builder_config(self) -> Any:
            return SimpleNamespace(set_compute_capability=lambda capability, index: None)

        def build_serialized_network(self, network: Any, config: Any) -> None:
            self.logger.log(severity.WARNING, "slow")
            self.logger.log(severity.ERROR, "node_If: no implementation")

    library = SimpleNamespace(
        Builder=Builder,
        ComputeCapability=SimpleNamespace(SM89=1),
        ILogger=type("ILogger", (), {"Severity": severity}),
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=0),
        OnnxParser=lambda network, logger: SimpleNamespace(parse_from_file=lambda path: True),
    )
    monkeypatch.setattr(rtx, "import_module", lambda name: library)
    assert build_with_rtx("full.onnx") == "node_If: no implementation"


@pytest.mark.tensorrt
def test_tensorrt_rtx_builds_every_program_of_host_dispatch(onnx_digits: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'rfc-fx[tensorrt-rtx]'")
    built = {path.stem: build_with_rtx(path) for path in sorted(onnx_digits.glob("*.onnx"))}
    assert set(built) == {"full", "estimate", "prefix", "timestep"}
    assert all(isinstance(size, int) and size > 1000 for size in built.values()), built


@pytest.mark.tensorrt
def test_tensorrt_rtx_says_why_it_does_not_build(onnx_digits: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'rfc-fx[tensorrt-rtx]'")
    alone = tmp_path / "full.onnx"
    alone.write_bytes((onnx_digits / "full.onnx").read_bytes())  # without weights.safetensors
    reason = build_with_rtx(alone)
    assert isinstance(reason, str)
    assert "Failed to import initializer" in reason
    with pytest.raises(BackendError, match=r"expected a compute capability of SM.*, got SM90"):
        build_with_rtx(alone, "9.0")


@pytest.mark.tensorrt
@pytest.mark.slow
def test_tensorrt_rtx_builds_the_model_with_if(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'rfc-fx[tensorrt-rtx]'")
    model, inputs = dit()
    path = rfc_export.export(
        model, tmp_path / "cond", backend="onnx", example_inputs=inputs, method=rfc.RFC(tau=0.5), config=rfc_fx.Config(dispatch="cond")
    )
    assert isinstance(build_with_rtx(path / "step.onnx"), int)
