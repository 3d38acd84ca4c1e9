"""Seals: a manifest that was changed is refused by its own checksum, and an engine that no trusted key signed before it is opened."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import command
import pytest
from edited_engines import linked, put, with_manifest
from hypothesis import given
from hypothesis import strategies as st

import rfc_export
from rfc_export import ArtifactError, BackendError, ExportError, MachineCodeWarning, TrustError, engine_files, runtime, seal
from rfc_export.artifact import write_manifest
from rfc_export.cli import app
from rfc_export.manifest import MANIFEST, Manifest

pytest.importorskip("cryptography", reason="pip install 'rfc-fx[sign]'")
pytestmark = pytest.mark.onnx

Keys = tuple[Path, str]


def new_key(path: Path) -> Keys:
    """A private key in a file, and its public half."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    path.write_bytes(Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path, seal.public_key(path)


@pytest.fixture
def key(tmp_path: Path) -> Keys:
    return new_key(tmp_path / "key.pem")


@pytest.fixture
def signed(onnx_small: Path, tmp_path: Path, key: Keys) -> Path:
    return with_manifest(linked(onnx_small, tmp_path / "signed"), lambda record: None, key[0])


@pytest.fixture
def nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading any file but the manifest fails the test."""

    def fail(*_: Any) -> Any:
        raise AssertionError("read before it was trusted")

    for reader in ("read", "check", "mapped"):
        monkeypatch.setattr(engine_files.EngineFiles, reader, fail)


def leaves(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, inner in pairs for found in leaves(inner, (*way, key))] or [way]


@given(data=st.data())
def test_no_number_or_text_of_a_manifest_changes_unseen(
    data: st.DataObject, onnx_small: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    record = json.loads((onnx_small / MANIFEST).read_text())
    *way, last = data.draw(st.sampled_from(leaves(record)))
    place = record
    for key in way:
        place = place[key]
    value = place[last]
    place[last] = value + 1 if type(value) in (int, float) else "x" if value is None else f"{value}x" if isinstance(value, str) else [value]
    folder = linked(onnx_small, tmp_path_factory.mktemp("changed") / "engine")
    put(folder / MANIFEST, json.dumps(record).encode())
    with pytest.raises(ArtifactError, match=r"checksum: expected|schema"):
        rfc_export.load(folder)


def test_the_checksum_is_of_what_is_said_and_not_of_how_it_is_written(onnx_small: Path, tmp_path: Path) -> None:
    record = json.loads((onnx_small / MANIFEST).read_text())
    folder = linked(onnx_small, tmp_path / "engine")
    put(folder / MANIFEST, json.dumps(dict(reversed(record.items())), indent=7).encode())
    rfc_export.load(folder)


def test_a_signed_engine_is_loaded_by_who_trusts_the_key_in_any_form(signed: Path, key: Keys, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    public: Any = load_pem_private_key(key[0].read_bytes(), None).public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "public.pem").write_bytes(pem)
    for form in (key[1], bytes.fromhex(key[1]), pem, pem.decode(), tmp_path / "public.pem", str(tmp_path / "public.pem")):
        rfc_export.load(signed, trusted=[form])
    rfc_export.load(signed)


@pytest.mark.usefixtures("nothing_is_read")
def test_what_no_trusted_key_signed_is_refused_before_anything_is_read(onnx_small: Path, signed: Path, key: Keys, tmp_path: Path) -> None:
    def refused(folder: Path, *trusted: str, said: str) -> None:
        with pytest.raises(TrustError, match=said):
            rfc_export.load(folder, trusted=trusted)

    refused(onnx_small, key[1], said="is not signed")
    refused(signed, said="none of the 0 trusted keys")
    other = new_key(tmp_path / "other.pem")
    refused(signed, other[1], said="none of the 1 trusted keys")
    record = json.loads((signed / MANIFEST).read_text())
    changes: list[Callable[[dict[str, Any]], object]] = [
        lambda r: r["sets"][0]["plan"].update(full_flops=1),
        lambda r: r.update(signature={**record["signature"], "ed25519": "00" * 64}),
        lambda r: r.update(signature={**record["signature"], "ed25519": None}),
        lambda r: r.update(signature={**record["signature"], "ed25519": "no digits"}),
    ]
    for change in changes:
        changed = json.loads((signed / MANIFEST).read_text())
        change(changed)
        put(signed / MANIFEST, json.dumps({**changed, "checksum": seal.checksum(changed)}).encode())
        refused(signed, key[1], said="does not fit")


def test_what_is_no_key_is_refused_by_its_name(key: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text").write_text("no key")
    for path, said in ((tmp_path / "text", "no private key"), (tmp_path / "none", "is missing"), (tmp_path, "is no regular file")):
        with pytest.raises(ExportError, match=f"--sign {path}: .*{said}"):
            seal.public_key(path)
    with pytest.raises(ExportError, match="trusted: nowhere: no public key: is missing"):
        seal.public_bytes("nowhere")
    with pytest.raises(ExportError, match="no public key"):
        seal.public_bytes(key[0])
    monkeypatch.setitem(__import__("sys").modules, "cryptography.hazmat.primitives.asymmetric", None)
    with pytest.raises(BackendError, match=r"pip install 'rfc-fx\[sign\]'"):
        seal.public_key(key[0])


def test_machine_code_says_so_unless_it_is_signed_or_trusted(onnx_small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Path] = []
    monkeypatch.setattr(runtime, "warn_of_machine_code", said.append)
    rfc_export.load(onnx_small)
    assert not said
    monkeypatch.undo()
    with pytest.warns(MachineCodeWarning, match="runs with all your rights; load only what you or somebody you trust exported"):
        runtime.warn_of_machine_code(Path("engine"))


def test_commands_sign_and_ask_for_signatures(onnx_small: Path, signed: Path, key: Keys) -> None:
    assert "signed by " + key[1][:16] in command.run(app, "verify", signed, "--trusted", key[1]).stdout
    assert "is not signed" in command.one_line_error(app, "verify", onnx_small, "--trusted", key[1])
    assert "is not signed" in command.one_line_error(app, "run", onnx_small, "--trusted", key[1])
    assert "no public key" in command.one_line_error(app, "verify", onnx_small, "--trusted", "nowhere")


def test_a_manifest_is_written_with_its_signature(onnx_small: Path, key: Keys, tmp_path: Path) -> None:
    folder = linked(onnx_small, tmp_path / "engine")
    record = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).unlink()
    write_manifest(folder, Manifest.model_validate(record), key[0])
    rfc_export.load(folder, trusted=[key[1]])


@pytest.mark.slow
def test_export_signs_with_the_key_and_prints_its_public_half(key: Keys, tmp_path: Path) -> None:
    from digits_models import digits_folder

    model, out = digits_folder(tmp_path / "model", noise=0.1), tmp_path / "engine"
    export = ("export", model, "--backend", "onnx", "--batch", "1", "--no-hoist", "--out", out)
    done = command.run(app, *export, "--sign", key[0])
    assert done.exit_code == 0, done.output
    assert f"--trusted {key[1]}" in done.stdout
    rfc_export.load(out, trusted=[key[1]])
