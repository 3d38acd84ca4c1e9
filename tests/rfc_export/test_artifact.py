"""Artefacts: what is damaged is refused by name before anything else is opened, and an export that fails leaves nothing."""

import copy
import errno
import json
import os
import resource
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from digits_models import small_digits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import rfc
import rfc_export
import rfc_fx
from rfc_export import ArtifactError, ExportError, TargetError, exporter, held_weights
from rfc_export.artifact import writing
from rfc_export.manifest import MANIFEST, WEIGHTS, Manifest
from rfc_export.methods import encode_method
from rfc_export.seal import sealed
from rfc_fx.errors import RFCError, SignatureError
from rfc_fx.io import atomic

pytestmark = pytest.mark.onnx

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def folder(onnx_small: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(onnx_small, tmp_path / "engine")


@pytest.fixture
def nothing_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading weights or opening a program fails the test."""

    def fail(*_: Any, **__: Any) -> Any:
        raise AssertionError("opened before it was checked")

    monkeypatch.setattr(held_weights, "weights_of", fail)
    monkeypatch.setattr("rfc_export.onnx.open", fail)


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / MANIFEST).read_text())  # type: ignore[no-any-return]


def changed(folder: Path, change: Change) -> None:
    data = manifest_of(folder)
    change(data)
    (folder / MANIFEST).write_text(json.dumps(sealed(data)))


def refused(path: Path, text: str, error: type[RFCError] = ArtifactError) -> None:
    with pytest.raises(error) as found:
        rfc_export.load(path)
    assert text in str(found.value)
    assert "\n" not in str(found.value)


def setting(path: str, value: Any) -> Change:
    """Give the field at that place another value; a list is entered at its first element."""
    *way, last = path.split(".")

    def change(data: Any) -> None:
        for key in way:
            data = data[0] if isinstance(data, list) else data[key]
        (data[0] if isinstance(data, list) else data)[last] = value

    return change


def removing(path: str) -> Change:
    *way, last = path.split(".")

    def change(data: Any) -> None:
        for key in way:
            data = data[0] if isinstance(data, list) else data[key]
        del (data[0] if isinstance(data, list) else data)[last]

    return change


def adding_set(change: Change) -> Change:
    """A second set of programs, which differs from the first."""

    def changed_copy(data: Any) -> None:
        change(one := copy.deepcopy(data["sets"][0]))
        data["sets"].append(one)

    return changed_copy


# ---- damaged files ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_is_opened")
def test_every_file_cut_off_or_missing_or_with_a_bit_flipped_is_refused_by_name(folder: Path) -> None:
    names = [path.name for path in folder.iterdir() if path.name != MANIFEST]
    assert {WEIGHTS, "prefix.onnx", "full.onnx", "estimate.onnx"} <= set(names)
    for name in names:
        path, whole = folder / name, (folder / name).read_bytes()
        path.write_bytes(whole[:-1])
        refused(folder, f"{path}: {len(whole) - 1} bytes, expected {len(whole)}")
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        path.write_bytes(flipped)
        refused(folder, f"{path}: SHA-256")
        path.unlink()
        refused(folder, f"{path}: missing")
        path.write_bytes(whole)


@pytest.mark.usefixtures("nothing_is_opened")
def test_a_program_in_the_place_of_another_is_refused(folder: Path) -> None:
    shutil.copy(folder / "full.onnx", folder / "estimate.onnx")
    refused(folder, f"{folder / 'estimate.onnx'}: ")


def test_a_program_that_the_manifest_takes_for_another_is_refused(folder: Path) -> None:
    changed(folder, lambda data: data["sets"][0]["programs"]["ESTIMATE"].update(file="full.onnx"))
    refused(folder, "full.onnx: ")


@pytest.mark.usefixtures("nothing_is_opened")
def test_a_link_is_no_file_of_an_artefact(folder: Path, tmp_path: Path) -> None:
    (folder / WEIGHTS).rename(tmp_path / "elsewhere")
    (folder / WEIGHTS).symlink_to(tmp_path / "elsewhere")
    refused(folder, f"{folder / WEIGHTS}: a link")
    (folder / MANIFEST).rename(tmp_path / "manifest")
    (folder / MANIFEST).symlink_to(tmp_path / "manifest")
    refused(folder, f"{folder / MANIFEST}: rfc.json is a link")


# ---- the manifest ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_is_opened")
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (setting("schema_version", 4), "schema version 4, this rfc-fx reads 3; update rfc-fx"),
        (setting("schema_version", 0), "schema version 0, this rfc-fx reads 3; export the model again"),
        (setting("schema_version", "1"), "schema_version: "),
        (setting("schema_version", True), "schema_version: "),
        (setting("schema_version", 1.0), "schema_version: "),
        (removing("schema_version"), "schema_version: Field required"),
        (removing("sets.0.programs"), "sets.0.programs: Field required"),
        (removing("sets.0.call.tree"), "sets.0.call.tree: Field required"),
        (removing("sets.0.programs.FULL"), "FULL missing"),
        (removing("files.full/onnx"), "full.onnx is not among the files"),
        (removing("files.weights/safetensors"), "weights.safetensors is missing"),
        (setting("surprise", 1), "surprise: "),
        (setting("model.surprise", 1), "model.surprise: "),
        (setting("sets.0.programs.FULL.file", "../full.onnx"), "sets.0.programs.FULL.file: "),
        (setting("sets.0.programs.FULL.file", "/etc/passwd"), "sets.0.programs.FULL.file: "),
        (setting("sets.0.programs.FULL.file", ".."), "sets.0.programs.FULL.file: "),
        (setting("sets.0.programs.FULL.file", "full.onnx\n"), "sets.0.programs.FULL.file: "),
        (lambda data: data["files"].update({"../secret": data["files"]["full/onnx"]}), "files.../secret"),
        (setting("sets.0.programs.FULL.flops", -1), "sets.0.programs.FULL.flops: "),
        (setting("sets.0.programs.FULL.flops", "many"), "sets.0.programs.FULL.flops: "),
        (
            setting("sets.0.programs.FULL.inputs.shape", [1 << 31, 1 << 31]),
            "sets.0.programs.FULL.inputs.0.shape: 4.6e+18 elements are too many",
        ),
        (setting("sets.0.programs.FULL.inputs.shape", [-1]), "sets.0.programs.FULL.inputs.0.shape.0: "),
        (setting("sets.0.programs.FULL.inputs.shape", [1] * 17), "sets.0.programs.FULL.inputs.0.shape: "),
        (setting("sets.0.programs.FULL.inputs.dtype", "complex64"), "sets.0.programs.FULL.inputs.0.dtype: "),
        (setting("sets.0.programs.FULL.inputs.kind", "output:0"), "sets.0.programs.FULL.inputs.0.kind: "),
        (setting("sets.0.state.shape", [1 << 31, 1 << 31]), "sets.0.state.0"),
        (setting("sets.0.state.shape", [2, 3.5]), "sets.0.state.0.shape.1: "),
        (setting("sets.0.state.init", "ones"), "sets.0.state.0.init: "),
        (setting("sets.0.state.pool", "nowhere"), "a pool needs a row"),
        (setting("sets.0.state.shape", [3]), "takes or gives state "),
        (setting("sets.0.state.dtype", "int8"), "takes or gives state "),
        (
            setting("sets.0.pools", [{"name": "p", "dtype": "int8", "shape": [1], "slots": ["nowhere"]}]),
            "pools.p: no state nowhere lies in it",
        ),
        (setting("sets", []), "sets: "),
        (setting("sets", {}), "sets: "),
        (lambda data: data["sets"].append(data["sets"][0]), "sets.1.call: is the call of sets.0"),
        (adding_set(lambda one: one["call"]["parameters"].append("x")), "sets.1.call.parameters: differs from that of sets.0"),
        (adding_set(lambda one: one["programs"]["FULL"].update(file="full-1.onnx")), "sets.1.programs.FULL.file: full-1.onnx is not among"),
        (setting("sets.0.call.timestep", "clock"), "call: no leaf lies in the argument clock"),
        (setting("sets.0.decision.program", "nowhere"), "decision.program: there is no program nowhere"),
        (setting("sets.0.call.leaves.shape", [1 << 31, 1 << 31]), "sets.0.call.leaves.0"),
        (setting("sets.0.call.leaves.dtype", None), "sets.0.call.leaves.0"),
        (
            setting("config.granularity", "atom"),
            "config: Config: granularity must be one of module, block, stack, output, prediction, blocks[a:b]",
        ),
        (setting("config.granularity", "blocks[1]"), "config: Config: granularity must be one of"),
        (setting("config.granularity", 1), "config: Config: granularity must be one of"),
        (setting("config.granularity", None), "config.granularity: expected that of the programs, got None"),
        (setting("config.state_dtype", "complex64"), "config: Config: state_dtype must be None or one of bfloat16, float16, int8"),
        (setting("config.regional", 1), "config: Config: regional must be True or False, got 1"),
        (setting("config.precision", 1), "config: Config: has no field 'precision'"),
        (setting("config", 1), "config: expected the fields of a configuration"),
        (setting("method.granularity", "stack"), "config.granularity: the method works on 'stack', the programs on 'module'"),
        (setting("sets.0.plan.phase_flops", {"VERIFY": -1}), "sets.0.plan.phase_flops.VERIFY: "),
        (setting("backend", "magic"), "backend: "),
        (setting("config", {"granularity": "module", "dispatch": "cond"}), "STEP missing"),
        (setting("files.weights/safetensors.sha256", "0" * 63), "sha256: "),
        (setting("files.weights/safetensors.bytes", 1.0), "bytes: "),
    ],
)
def test_an_invalid_manifest_is_refused_with_its_field(folder: Path, change: Change, text: str) -> None:
    data = manifest_of(folder)
    data["files"] = {name.replace(".", "/"): spec for name, spec in data["files"].items()}
    change(data)
    data["files"] = {name if name.startswith("..") else name.replace("/", "."): spec for name, spec in data["files"].items()}
    (folder / MANIFEST).write_text(json.dumps(sealed(data)))
    refused(folder, text)


@pytest.mark.usefixtures("nothing_is_opened")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no JSON"),
        ("{", "no JSON"),
        ("\x00" * 100, "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "manifest: "),
        ("null", "manifest: "),
        ('{"schema_version": 3}', "checksum: expected 'None', got"),
    ],
)
def test_text_that_is_no_manifest_is_refused(folder: Path, text: str, said: str) -> None:
    (folder / MANIFEST).write_text(text)
    refused(folder, said)
    (folder / MANIFEST).write_bytes(b"\xff\xfe" + text.encode())
    refused(folder, "no JSON")


@pytest.mark.parametrize(
    ("change", "text", "error"),
    [
        (setting("method", {}), "method: expected estimator and schedule, got nothing", ArtifactError),
        (setting("method.schedule.type", "Magic"), "method.schedule: type must be one of", ArtifactError),
        (setting("method.schedule.type", "RFE"), "method.schedule: type must be one of", ArtifactError),
        (setting("method.schedule.tau", -1.0), "method.schedule: RCS: tau must be", ArtifactError),
        (setting("method.schedule.tau", "much"), "method.schedule: ", ArtifactError),
        (setting("method.schedule.taus", 1.0), "has the fields", ArtifactError),
        (setting("method.schedule", encode_method(rfc.SpeCa())["schedule"]), "there is no program for VERIFY", ArtifactError),
        (setting("method", encode_method(rfc.DuCa())), "no program for PARTIAL_1, PARTIAL_2,", ArtifactError),
        (setting("method.estimator.order", 9), "method.estimator: RFE: order must be", ArtifactError),
        (setting("method.estimator", [1]), "method.estimator: type must be one of", ArtifactError),
        (setting("sets.0.call.tree", "[]"), "call.tree: ", ArtifactError),
        (setting("sets.0.call.tree", "no JSON"), "call.tree: no tree", ArtifactError),
        (
            setting("sets.0.call.tree", '[1, {"type": "os.system", "context": null, "children_spec": []}]'),
            "call.tree: no tree",
            ArtifactError,
        ),
        (setting("sets.0.call.parameters", ["a", "a"]), "call.parameters: duplicate parameter name: 'a'", ArtifactError),
        (setting("sets.0.call.parameters", ["hidden_states", "timestep"]), "call: there is no parameter class_labels", ArtifactError),
        (setting("sets.0.call.parameters", ["../x"]), "call.parameters: '../x' is not a valid parameter name", ArtifactError),
        (setting("sets.0.call.outputs", '[99, {"type": null}]'), "call.outputs: no tree", ArtifactError),
        (setting("target.device", "cuda"), "built for cuda, asked to run on cpu", TargetError),
    ],
)
def test_a_method_a_call_or_a_target_that_cannot_be_is_refused(folder: Path, change: Change, text: str, error: type[RFCError]) -> None:
    changed(folder, change)
    refused(folder, text, error)


def test_machine_code_of_another_torch_or_processor_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def aoti(data: dict[str, Any]) -> None:
        data["backend"] = "aoti"

    changed(folder, lambda data: (aoti(data), data["built_with"].update(torch="2.1.0")))
    refused(folder, "built with torch 2.1, this is torch", TargetError)
    changed(folder, setting("target.name", "abacus"))
    refused(folder, "built for abacus processors", TargetError)
    changed(folder, lambda data: data["target"].update(name=os.uname().machine, cpu_isa="AMX"))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    refused(folder, "built with AMX instructions, this processor has AVX2", TargetError)


PLAIN = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    PLAIN | st.text(max_size=8) | st.sampled_from(["../x", "/etc/passwd", "full.onnx", "inf", "float16", "RFE", "cond", "aoti"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def watched() -> Iterator[list[str]]:
    """Names of the files that Python opens while the list is not empty."""
    seen: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if seen and event == "open" and isinstance(arguments[0], str):
            seen.append(arguments[0])

    sys.addaudithook(hook)
    yield seen
    seen.clear()


@given(data=st.data())
@settings(max_examples=40)
def test_no_change_of_a_single_field_raises_anything_else_or_opens_a_file_elsewhere(
    data: st.DataObject, onnx_small: Path, tmp_path_factory: pytest.TempPathFactory, watched: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("mutated")
    try:
        for path in onnx_small.iterdir():
            os.link(path, folder / path.name)
        whole = manifest_of(folder)
        place: Any = whole
        while True:
            key = data.draw(st.sampled_from(sorted(place)) if isinstance(place, dict) else st.integers(0, len(place) - 1))
            if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.integers(0, 3)) == 0:
                break
            place = place[key]
        place[key] = data.draw(VALUES)
        (folder / MANIFEST).unlink()
        (folder / MANIFEST).write_text(json.dumps(sealed(whole)))
        watched.append("")
        with suppress(RFCError):
            rfc_export.load(folder).close()
    finally:  # hypothesis may end an example at any draw, and a second link to the weights makes onnx.checker refuse them
        names = [Path(name) for name in watched if name.endswith((".onnx", ".safetensors", "passwd", "x", MANIFEST))]
        watched.clear()
        shutil.rmtree(folder)
    assert names
    assert all(name.parent == folder for name in names)


# ---- one file --------------------------------------------------------------------------------------------------------


@pytest.fixture
def archive(onnx_small: Path, tmp_path: Path) -> Path:
    """The same in one file."""
    path = tmp_path / "engine.pt2"
    with writing(path) as folder:
        shutil.copytree(onnx_small, folder, dirs_exist_ok=True)
    return path


def test_one_file_is_the_same_engine_and_leaves_nothing_unpacked(
    archive: Path, onnx_small: Path, digits_inputs: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    with torch.no_grad():
        engine = rfc_export.load(archive)
        assert not list((tmp_path / "tmp").iterdir())
        assert torch.equal(engine(**digits_inputs).sample, rfc_export.load(onnx_small)(**digits_inputs).sample)
    engine.close()
    with pytest.raises(SignatureError, match="this engine was closed; load it again"):
        engine(**digits_inputs)


@pytest.mark.usefixtures("nothing_is_opened")
@pytest.mark.parametrize("name", ["../evil", "rfc/../evil", "/evil", "rfc/a/b", "rfc/..", "rfc/.hidden", "evil", "rfc/"])
def test_an_archive_with_names_that_lead_elsewhere_is_refused(archive: Path, name: str, tmp_path: Path) -> None:
    before = {path.name for path in tmp_path.iterdir()}
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(name, "")
    refused(archive, f"holds {name!r}")
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.usefixtures("nothing_is_opened")
def test_an_archive_that_is_cut_off_or_altered_or_none_is_refused(archive: Path, tmp_path: Path) -> None:
    whole = archive.read_bytes()
    for kept in (0, 10, len(whole) // 2, len(whole) - 10):
        archive.write_bytes(whole[:kept])
        refused(archive, f"{archive}: no artefact, or a damaged one")
    altered = bytearray(whole)
    altered[len(whole) // 2] ^= 1
    archive.write_bytes(altered)
    refused(archive, f"{archive}: no artefact, or a damaged one")
    refused(tmp_path / "nowhere", "no such artefact")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", f"{MANIFEST} is missing")


# ---- writing ---------------------------------------------------------------------------------------------------------


def written(path: Path, **changes: Any) -> None:
    with writing(path, **changes) as folder:
        (folder / MANIFEST).write_text("new")
        (folder / "new.onnx").write_text("new")


def entries(folder: Path) -> dict[str, Any]:
    return {path.name: entries(path) if path.is_dir() else path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["engine", "engine.pt2"])
def test_an_artefact_is_replaced_whole_or_not_at_all(name: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / name
    written(path)
    before = entries(path.parent)
    with pytest.raises(ExportError, match="exists; pass another path, or overwrite"):
        written(path)
    assert entries(path.parent) == before
    if path.is_dir():
        (path / "old.onnx").touch()
    written(path, overwrite=True)
    assert [one.name for one in path.parent.iterdir()] == [name]
    if path.is_dir():
        assert entries(path) == {MANIFEST: b"new", "new.onnx": b"new"}


def test_files_and_folders_that_are_no_artefact_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder.pt2").mkdir()
    before = entries(tmp_path)
    for name, text in (
        ("mine", "not an artefact"),
        ("file", "is a file"),
        ("folder.pt2", "is a folder"),
        ("file/engine", "cannot be written"),
    ):
        with pytest.raises(ExportError, match=text):
            written(tmp_path / name, overwrite=True)
        assert entries(tmp_path) == before


@pytest.mark.parametrize("name", ["engine", "engine.pt2"])
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("point", ["inside", "replace", "second replace", "exchange", "mkdir"])
@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=["full", "ctrl-c"])
def test_a_full_disk_or_an_interrupt_at_any_point_leaves_what_was_there(
    name: str, old: bool, point: str, failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    if old:
        written(path)
    before = entries(tmp_path)
    replace, calls = os.replace, []

    def fails(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == (2 if point == "second replace" and old and name == "engine" else 1):
            raise failure
        replace(*arguments)

    def never(*_: Any, **__: Any) -> Any:
        raise failure

    if point == "mkdir":
        monkeypatch.setattr(Path, "mkdir", never)
    elif point == "exchange" and old and name == "engine":
        monkeypatch.setattr(atomic, "exchange", never)
    elif point != "inside":
        monkeypatch.setattr(atomic, "exchange", lambda *_: False)
        monkeypatch.setattr(atomic.os, "replace", fails)

    def write() -> None:
        with writing(path, overwrite=True) as folder:
            (folder / MANIFEST).write_text("half")
            if point == "inside":
                raise failure

    expected: Any = ExportError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match=f"{name}.*No space left on device" if expected is ExportError else None):
        write()
    assert entries(tmp_path) == before


@pytest.fixture(scope="module")
def cached(digits_inputs: dict[str, Tensor]) -> rfc_fx.CachedModel:
    """Captured once."""
    return rfc_fx.transform(small_digits(), rfc.RFC(tau=0.15), example_inputs=digits_inputs)


@pytest.mark.parametrize("limit", [1 << 20, 1 << 10])
def test_an_export_that_cannot_write_its_weights_leaves_nothing(
    limit: int, cached: rfc_fx.CachedModel, digits_inputs: dict[str, Tensor], tmp_path: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(ExportError, match="engine could not be written, nothing was left there"):
            rfc_export.export(cached, tmp_path / "engine", backend="onnx", example_inputs=digits_inputs)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stage", ["build", "write_manifest", "load", "check_parity"])
def test_a_failure_at_any_stage_leaves_nothing(
    stage: str,
    cached: rfc_fx.CachedModel,
    digits_inputs: dict[str, Tensor],
    onnx_small: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from rfc_export import onnx
    from rfc_export.backends import Built

    def build(programs: Any, weights: Any, folder: Path, device: Any, report: Any, suffix: str) -> dict[str, Built]:
        for path in onnx_small.glob("*.onnx"):
            shutil.copy(path, folder)
        if stage == "build":
            raise OSError(errno.ENOSPC, "No space left on device")
        return {phase: Built(f"{phase.lower()}.onnx", phase) for phase in programs}

    def fail(*_: Any, **__: Any) -> Any:
        raise ExportError(f"export: {stage} failed")

    monkeypatch.setattr(onnx, "build", build)
    if stage != "build":
        monkeypatch.setattr(exporter, stage, fail)
    with pytest.raises(ExportError, match="No space left" if stage == "build" else f"{stage} failed"):
        rfc_export.export(cached, tmp_path / "engine", backend="onnx", example_inputs=digits_inputs)
    assert not list(tmp_path.iterdir())


def test_a_manifest_reads_as_it_was_written(onnx_small: Path) -> None:
    data = manifest_of(onnx_small)
    assert json.loads(json.dumps(Manifest.model_validate(copy.deepcopy(data)).model_dump(mode="json"))) == data
    assert set(data["files"]) == {path.name for path in onnx_small.iterdir()} - {MANIFEST}
