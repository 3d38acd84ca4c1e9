"""AOTInductor: the same decisions and pictures as the model, one state and one set of weights for all programs, clear refusals."""

import shutil
import threading
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from digits_models import small_digits
from drawing import difference
from edited_engines import linked, with_manifest, with_weights
from safetensors.torch import load_file
from torch import Tensor, nn

import rfc
import rfc_export
import rfc_fx
from rfc_export import aoti
from rfc_export.artifact import file_spec
from rfc_export.errors import ArtifactError, BackendError, ExportError, MachineCodeWarning, TargetError
from rfc_export.manifest import MANIFEST, WEIGHTS
from rfc_export.runtime import Engine
from rfc_fx.tools.doctor import CompilerError
from rfc_fx.zoo import digits_noise

pytestmark = pytest.mark.compile

METHOD = rfc.RFC(tau=0.15)

WORST = 1e-4
"""Of a whole picture: Inductor rounds in another order (1e-6 a step), which estimates extrapolate; 3e-7 was measured."""

Draw = Callable[[Any, int], Tensor]


@pytest.fixture(scope="module")
def engine(aoti_digits: Path) -> Engine:
    return rfc_export.load(aoti_digits)


@pytest.fixture(scope="module")
def twin(digits: nn.Module, digits_inputs: dict[str, Tensor]) -> rfc_fx.CachedModel:
    return rfc_fx.transform(digits, METHOD, example_inputs=digits_inputs)


@pytest.fixture(autouse=True)
def _fresh(request: pytest.FixtureRequest) -> None:
    for name in ("engine", "twin"):
        if name in request.fixturenames:
            one = request.getfixturevalue(name)
            one.reset()
            one.method = METHOD


# ---- the same as the model -------------------------------------------------------------------------------------------


def test_whole_generations_take_the_same_decisions_and_give_the_same_pictures(engine: Engine, twin: rfc_fx.CachedModel, draw: Draw) -> None:
    for seed in (0, 1):  # the second follows without a reset
        assert difference(draw(engine, seed), draw(twin, seed)) < WORST
        assert engine.stats.phases == twin.stats.phases
        assert 12 <= engine.stats.nfc <= 16
        assert engine.stats.step == 50


def test_after_a_reset_in_the_middle_the_engine_begins_anew(engine: Engine, draw: Draw, digits_inputs: dict[str, Tensor]) -> None:
    expected = draw(engine, 0)
    engine(**digits_inputs)
    engine(**digits_inputs | {"timestep": torch.tensor([480, 480])})
    engine.reset()
    assert torch.equal(draw(engine, 0), expected)
    assert engine.stats.step == 50


def guided(model: Any, steps: int = 20) -> Tensor:
    """Guidance in separate passes that take turns, each with a context of its own."""
    x = digits_noise([5, 6])
    for step in range(steps):
        call = {"hidden_states": x, "timestep": torch.full((2,), 960 - 40 * step)}
        with model.cache_context("cond"):
            cond = model(**call, class_labels=torch.tensor([3, 7])).sample
        with model.cache_context("uncond"):
            uncond = model(**call, class_labels=torch.tensor([10, 10])).sample
        x = x - 0.05 * (uncond + 1.5 * (cond - uncond))
    return x


def test_two_contexts_that_take_turns_keep_apart(engine: Engine, twin: rfc_fx.CachedModel) -> None:
    assert difference(guided(engine), guided(twin)) < WORST
    for name in ("cond", "uncond"):
        assert engine.contexts[name].phases == twin.contexts[name].phases
        assert 0 < engine.contexts[name].nfc < 20


def test_another_threshold_needs_no_other_programs(engine: Engine, twin: rfc_fx.CachedModel, draw: Draw) -> None:
    counts = []
    for tau in (0.05, 0.4):
        engine.method = twin.method = rfc.RFC(tau=tau)
        assert difference(draw(engine, 0), draw(twin, 0)) < 10 * WORST
        assert engine.stats.phases == twin.stats.phases
        counts.append(engine.stats.nfc)
    assert counts[0] > 14 > counts[1]


def test_two_engines_and_a_thread_do_not_disturb_each_other(engine: Engine, aoti_digits: Path, draw: Draw) -> None:
    expected = draw(engine, 0)
    other = rfc_export.load(aoti_digits)
    drawn: list[Tensor] = []
    thread = threading.Thread(target=lambda: drawn.append(draw(other, 0)))
    thread.start()
    here = draw(engine, 0)
    thread.join()
    assert torch.equal(here, expected)
    assert torch.equal(drawn[0], expected)


# ---- what programs share ---------------------------------------------------------------------------------------------


def test_estimate_reads_what_full_wrote(engine: Engine, twin: rfc_fx.CachedModel, draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    program = engine.programs["ESTIMATE"]
    expected = draw(twin, 0)

    def lost(inputs: Sequence[Tensor], into: Mapping[int, Tensor]) -> Sequence[Tensor]:
        own = [torch.zeros_like(t) if spec.kind in ("state", "pool") else t for t, spec in zip(inputs, program.spec.inputs, strict=True)]
        return run(own, into)

    run = program.call
    monkeypatch.setitem(program.__dict__, "call", lost)
    assert difference(draw(engine, 0), expected) > 1000 * WORST


def test_programs_read_the_weights_that_they_were_handed_and_have_none_of_their_own(
    aoti_digits: Path, digits_inputs: dict[str, Tensor]
) -> None:
    engine = rfc_export.load(aoti_digits)
    engine.method = rfc.RFC(tau=float("inf"))
    calls: list[Any] = [engine.programs[phase].call for phase in ("FULL", "ESTIMATE")]
    shared = set(calls[0].weights) & set(calls[1].weights)
    assert {"proj_out_2.weight", "proj_out_2.bias"} <= shared
    assert all(calls[0].weights[name].data_ptr() == calls[1].weights[name].data_ptr() for name in shared)
    head = {name: calls[0].weights[name] for name in ("proj_out_2.weight", "proj_out_2.bias")}
    before = {name: tensor.clone() for name, tensor in head.items()}
    with torch.no_grad():
        head["proj_out_2.weight"].zero_()
        head["proj_out_2.bias"].fill_(0.5)
    outputs = [engine(**digits_inputs).sample for _ in range(5)]
    for name, tensor in head.items():  # engines of the same weights share them
        tensor.copy_(before[name])
    assert engine.stats.phases[-1] == "ESTIMATE"
    assert all(torch.equal(output, torch.full_like(output, 0.5)) for output in outputs)
    with zipfile.ZipFile(aoti_digits / aoti.PROGRAMS) as archive:
        code = b"".join(archive.read(entry) for entry in archive.namelist())
    large = {name: tensor for name, tensor in load_file(aoti_digits / WEIGHTS).items() if tensor.numel() > 64 and tensor.any()}
    assert large
    assert [name for name, tensor in large.items() if tensor.numpy().tobytes() in code] == []


# ---- a fixed rule, pools, one file -----------------------------------------------------------------------------------

FIXED = rfc.Method(estimator=rfc.Taylor(order=2), schedule=rfc.Every(interval=4))


@pytest.fixture(scope="module")
def fixed(digits_inputs: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file: Taylor forecasts, whose state lies in pools, every fourth step full."""
    path = tmp_path_factory.mktemp("engines") / "fixed.pt2"
    return rfc_export.export(
        small_digits(), path, backend="aoti", example_inputs=digits_inputs, method=FIXED, config=rfc_fx.Config(hoist=False)
    )


@pytest.mark.slow
def test_one_file_with_state_in_pools_does_what_the_model_does(fixed: Path, digits_inputs: dict[str, Tensor], draw: Draw) -> None:
    engine = rfc_export.load(fixed)
    assert engine.manifest.sets[0].pools
    assert set(engine.programs) == {"FULL", "ESTIMATE"}
    twin = rfc_fx.transform(small_digits(), FIXED, example_inputs=digits_inputs)
    for seed in (0, 1):
        assert difference(draw(engine, seed), draw(twin, seed)) < WORST
        assert engine.stats.phases == twin.stats.phases
    assert engine.stats.nfc == 14
    engine.close()


@pytest.mark.slow
def test_a_file_that_was_changed_is_refused(fixed: Path, tmp_path: Path) -> None:
    data = fixed.read_bytes()
    cut = tmp_path / "cut.pt2"
    cut.write_bytes(data[: len(data) // 2])
    with pytest.raises(ArtifactError, match=r"cut\.pt2: no artefact, or a damaged one"):
        rfc_export.load(cut)
    with zipfile.ZipFile(fixed) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    assert set(entries) == {f"rfc/{name}" for name in (MANIFEST, WEIGHTS, aoti.PROGRAMS)}
    programs = bytearray(entries[f"rfc/{aoti.PROGRAMS}"])
    programs[len(programs) // 2] ^= 1
    for changed, message in (
        ({f"rfc/{aoti.PROGRAMS}": bytes(programs)}, r"programs\.pt2: SHA-256"),
        ({"rfc/../outside": b""}, "holds 'rfc/../outside'"),
        ({"more": b""}, "holds 'more'"),
    ):
        other = tmp_path / "other.pt2"
        with zipfile.ZipFile(other, "w") as archive:
            for name, content in (entries | changed).items():
                archive.writestr(name, content)
        with pytest.raises(ArtifactError, match=message):
            rfc_export.load(other)


# ---- one stateful program --------------------------------------------------------------------------------------------

STEP_METHOD = rfc.RFC(tau=0.3)


@pytest.fixture(scope="module")
def step(digits_inputs: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engines") / "step"
    return rfc_export.export(
        small_digits(), path, backend="aoti", example_inputs=digits_inputs, method=STEP_METHOD, config=rfc_fx.Config(dispatch="cond")
    )


@pytest.mark.slow
def test_one_program_counts_decides_and_keeps_the_state(step: Path, digits_inputs: dict[str, Tensor], draw: Draw) -> None:
    engine = rfc_export.load(step)
    assert list(engine.programs) == ["STEP"]
    twin = rfc_fx.transform(small_digits(), STEP_METHOD, example_inputs=digits_inputs, config=rfc_fx.Config(dispatch="cond"))
    counts = []
    for tau in (0.3, 0.1):
        engine.method = twin.method = rfc.RFC(tau=tau)
        for seed in (0, 1):
            assert difference(draw(engine, seed), draw(twin, seed)) < WORST
            assert engine.stats.phases == twin.stats.phases
            assert engine.stats.step == 50
        counts.append(engine.stats.nfc)
    assert 3 < counts[0] < counts[1] < 50
    engine(**digits_inputs)
    engine.reset()
    twin.reset()
    assert difference(guided(engine), guided(twin)) < WORST
    assert all(engine.contexts[name].phases == twin.contexts[name].phases for name in ("cond", "uncond"))


def test_a_step_that_torch_compiles_wrongly_is_refused() -> None:
    once = "buf1 = std::move(true_graph_0_buf1);\nbuf2 = std::move(false_graph_0_buf1);\nauto buf4 = std::move(buf3);\n"
    aoti.check_source(once + "auto buf5 = std::move(buf3);")
    with pytest.raises(ExportError, match="dispatch='host'"):
        aoti.check_source(once + "buf6 = std::move(true_graph_0_buf1);")


# ---- refusals --------------------------------------------------------------------------------------------------------


def edited(source: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of an artefact with another manifest."""
    return with_manifest(linked(source, target), change)


def test_another_program_or_missing_weights_are_refused_by_name(aoti_digits: Path, tmp_path: Path) -> None:
    def swap(manifest: dict[str, Any]) -> None:
        manifest["sets"][0]["programs"]["FULL"]["entry"] = "ESTIMATE"

    def lose(manifest: dict[str, Any]) -> None:
        del manifest["sets"][0]["programs"]["ESTIMATE"]["weights"]["proj_out_2.bias"]

    def other_archive(manifest: dict[str, Any]) -> None:
        manifest["files"][aoti.PROGRAMS] = file_spec(tmp_path / "empty" / aoti.PROGRAMS).model_dump()

    with pytest.raises(ArtifactError, match=r"FULL: the manifest names ESTIMATE in programs\.pt2"):
        rfc_export.load(edited(aoti_digits, tmp_path / "swapped", swap))
    with pytest.raises(ArtifactError, match=r"ESTIMATE asks for weights that are not there: proj_out_2\.bias"):
        rfc_export.load(edited(aoti_digits, tmp_path / "lost", lose))
    empty = shutil.copytree(aoti_digits, tmp_path / "empty")
    with zipfile.ZipFile(empty / aoti.PROGRAMS, "w") as archive:
        archive.writestr("empty/version", "0")
    with pytest.raises(ArtifactError, match=r"programs\.pt2: \w+ cannot be loaded: .*; export again"):
        rfc_export.load(edited(empty, tmp_path / "replaced", other_archive))


def test_weights_of_another_type_or_shape_are_refused_before_the_code_is_loaded(aoti_digits: Path, tmp_path: Path) -> None:
    weight = load_file(aoti_digits / WEIGHTS)["proj_out_2.weight"]
    for index, changed in enumerate((weight.half(), weight[:, :64])):
        folder = with_weights(linked(aoti_digits, tmp_path / str(index)), {"proj_out_2.weight": changed})
        with pytest.raises(ArtifactError, match=r"programs\.pt2: \w+: declares the weight proj_out_2\.weight as float32 \[1, 128\]"):
            rfc_export.load(folder)


def test_machine_code_that_nobody_signed_is_loaded_with_a_warning(aoti_digits: Path) -> None:
    with pytest.warns(MachineCodeWarning, match="machine code, which runs with all your rights"):
        rfc_export.load(aoti_digits)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rfc_export.load(aoti_digits, trust=True)


def test_a_processor_without_the_instructions_is_refused_before_any_code_runs(aoti_digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    able = torch.cpu.get_capabilities()
    lost = next(name for name in aoti._processor() if name.startswith(("avx", "neon")))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {**able, lost: False})
    with pytest.raises(TargetError, match=rf"compiled for a processor with {lost}; export again on this machine"):
        rfc_export.load(aoti_digits)


def test_code_for_another_platform_or_device_is_refused() -> None:
    for name, value in (("AOTI_PLATFORM", "win32"), ("AOTI_MACHINE", "riscv"), ("AOTI_DEVICE_KEY", "cuda")):
        with pytest.raises(TargetError, match=f"FULL was compiled for {value}"):
            aoti._check_metadata("FULL", {name: value}, torch.device("cpu"))


def test_without_a_compiler_the_export_says_so_and_leaves_nothing(
    digits_inputs: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(device: torch.device) -> float:
        raise CompilerError("torch.compile does not work on cpu: no g++")

    monkeypatch.setattr(aoti, "compile_seconds", none)
    with pytest.raises(BackendError, match=r"aoti: torch\.compile does not work on cpu"):
        rfc_export.export(small_digits(), tmp_path / "e", backend="aoti", example_inputs=digits_inputs, method=METHOD)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_leaves_nothing(digits_inputs: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file: file write failed")

    monkeypatch.setattr(aoti, "_compiled", lambda program: {})
    monkeypatch.setattr(aoti, "compile_seconds", lambda device: 0.0)
    monkeypatch.setattr("torch.export.pt2_archive._package.package_pt2", full)
    with pytest.raises(ExportError, match=r"programs\.pt2 could not be written, nothing was left there"):
        rfc_export.export(small_digits(), tmp_path / "e", backend="aoti", example_inputs=digits_inputs, method=METHOD)
    assert not list(tmp_path.iterdir())


def test_weights_are_stored_once(aoti_digits: Path, digits: nn.Module) -> None:
    stored = load_file(aoti_digits / WEIGHTS)
    own = dict(digits.named_parameters()) | dict(digits.named_buffers())
    assert sum(t.nbytes for t in stored.values()) <= sum(t.nbytes for t in own.values())
    assert all(torch.equal(stored[name], own[name]) for name in stored)
