"""Engines on a CUDA device, tried without one: which device, which stream, what the host waits for, archives that lack a program."""

import threading
import zipfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from digits_models import small_digits
from torch import Tensor

import rfc_export
from rfc_export import aoti
from rfc_export.aoti_constants import declared_constants
from rfc_export.calls import ExpectedCall
from rfc_export.errors import ArtifactError
from rfc_export.onnx.queue import Queue
from rfc_export.target import is_on, numbered
from rfc_fx.errors import SignatureError

CPU, FIRST, SECOND = torch.device("cpu"), torch.device("cuda", 0), torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("device", "settings"), [(CPU, (False, 1, -1)), (torch.device("cuda"), (True, 1, -1)), (SECOND, (True, 1, 1))], ids=str
)
def test_machine_code_waits_for_no_run_before_on_cuda(device: torch.device, settings: Any) -> None:
    assert aoti.loader_settings(device) == settings


def test_machine_code_runs_on_its_own_device_and_one_thread_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[torch.device] = []
    inside: list[tuple[list[torch.device], bool]] = []

    @contextmanager
    def turned(device: torch.device) -> Any:
        current.append(device)
        yield
        current.pop()

    class Loader:
        def boxed_run(self, inputs: list[Tensor]) -> list[Tensor]:
            inside.append((list(current), runner.lock.locked()))
            return inputs

    monkeypatch.setattr(torch.cuda, "device", turned)
    runner = aoti._Runner(Loader(), {}, SECOND)
    threads = [threading.Thread(target=runner, args=([torch.zeros(1)], {})) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inside == [([SECOND], True)] * 2


def test_onnx_runtime_works_on_the_engines_device_between_the_callers_work_and_the_host_waits_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order: list[str] = []

    class Stream:
        def __init__(self, name: str) -> None:
            self.name, self.cuda_stream = name, 4096

        def wait_stream(self, other: "Stream") -> None:
            order.append(f"{self.name} waits for {other.name}")

    caller = Stream("caller")
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(f"session on {device}"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: caller)
    entries: dict[str, str] = {}
    runtime = SimpleNamespace(RunOptions=lambda: SimpleNamespace(add_run_config_entry=entries.__setitem__))
    queue = Queue(SECOND)
    assert queue.providers == [("CUDAExecutionProvider", {"device_id": "1", "user_compute_stream": "4096"})]
    queue.options(runtime)
    assert entries == {"disable_synchronize_execution_providers": "1"}
    with queue.turn():
        order.append("run")
    assert order == ["session on cuda:1 waits for caller", "run", "caller waits for session on cuda:1"]
    assert Queue(CPU).providers == ["CPUExecutionProvider"]


@pytest.mark.parametrize(
    ("device", "wanted", "fits"),
    [(CPU, CPU, True), (FIRST, FIRST, True), (FIRST, SECOND, False), (SECOND, torch.device("cuda"), True), (CPU, FIRST, False)],
    ids=str,
)
def test_a_device_is_compared_with_its_number(device: torch.device, wanted: torch.device, fits: bool) -> None:
    assert is_on(device, wanted) is fits


@pytest.mark.parametrize("device", ["foo", "cuda:", "cpu:one"])
def test_a_device_that_is_none_is_named(device: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^load: device must be one of torch's, such as 'cpu' or 'cuda:1', got '{device}'$"):
        rfc_export.load(tmp_path, device=device)


def test_an_engine_stays_on_the_device_that_was_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert [numbered(torch.device(name)) for name in ("cuda", "cuda:0", "cpu")] == [SECOND, FIRST, CPU]


def test_an_engine_refuses_tensors_and_moves_to_another_device(
    onnx_small: Path, digits_inputs: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = rfc_export.load(onnx_small)
    expected = engine.loaded.expected
    spec = next(leaf for leaf in expected.spec.leaves if leaf.argument == "hidden_states")
    there = torch.empty(spec.shape, device="meta")
    monkeypatch.setattr(type(there), "device", SECOND, raising=False)
    with pytest.raises(SignatureError, match=r"expected float32 .* on cuda:0, got .* on cuda:1"):
        expected._check(there, spec, FIRST)
    expected._check(there, spec, SECOND)
    monkeypatch.undo()
    monkeypatch.setattr(type(engine), "device", FIRST)
    assert engine.to("cuda") is engine
    with pytest.raises(SignatureError, match=r"an engine stays torch\.float32 on cuda:0; export another for cuda:1"):
        engine.to("cuda:1")


def test_a_value_that_is_fixed_is_compared_once_for_each_tensor(
    onnx_small: Path, digits_inputs: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = rfc_export.load(onnx_small).loaded.expected.spec
    leaves = [leaf.model_copy(update={"fixed": "fixed.2"}) if leaf.argument == "class_labels" else leaf for leaf in spec.leaves]
    call = ExpectedCall(spec.model_copy(update={"leaves": leaves}), type(small_digits()).__name__, {"fixed.2": torch.tensor([3, 10])})
    compared: list[int] = []
    equal = torch.equal
    monkeypatch.setattr(torch, "equal", lambda a, b: (compared.append(1), equal(a, b))[1])
    for _ in range(3):
        call.match((), digits_inputs, CPU)
    assert len(compared) == 1
    digits_inputs = digits_inputs | {"class_labels": torch.tensor([4, 10])}
    with pytest.raises(SignatureError, match="class_labels has other values than the engine was built for"):
        call.match((), digits_inputs, CPU)


def test_a_program_that_is_not_in_the_archive_is_refused_before_torch_looks_for_it(tmp_path: Path) -> None:
    """The loader of torch 2.11 crashes there."""
    path = tmp_path / aoti.PROGRAMS
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("programs/data/aotinductor/ESTIMATE/a.wrapper.cpp", "")
        archive.writestr("programs/data/aotinductor/ESTIMATE/a.wrapper.so", "")
        archive.writestr("programs/data/aotinductor/FULL/b.wrapper.cpp", "")
    constants = declared_constants(aoti.PROGRAMS, path.read_bytes())
    assert list(constants) == ["ESTIMATE"]
    programs: Any = {"FULL": SimpleNamespace(file=aoti.PROGRAMS, entry="FULL")}
    with pytest.raises(ArtifactError, match=r"programs\.pt2: FULL cannot be loaded: the archive has no such program; export again"):
        aoti._loaded(tmp_path, tmp_path, programs, None, constants, {}, CPU)  # type: ignore[arg-type]  # no manifest
