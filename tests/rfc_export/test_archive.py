"""One-file engines: the manifest first, listed names only, stored as they are, within limits; nothing is unpacked."""

import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from edited_engines import packed

import rfc_export
from rfc_export import ArtifactError
from rfc_export.artifact import writing
from rfc_export.manifest import MANIFEST, WEIGHTS

pytestmark = pytest.mark.onnx


@pytest.fixture
def archive(onnx_small: Path, tmp_path: Path) -> Path:
    return packed(onnx_small, tmp_path / "engine.pt2")


def refused(path: Path, said: str) -> None:
    with pytest.raises(ArtifactError, match=said) as error:
        rfc_export.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_an_archive_begins_with_the_manifest(onnx_small: Path, tmp_path: Path) -> None:
    with writing(tmp_path / "engine.pt2") as folder:
        for path in onnx_small.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
    with zipfile.ZipFile(tmp_path / "engine.pt2") as made:
        assert made.namelist()[0] == f"rfc/{MANIFEST}"
        assert {entry.compress_type for entry in made.infolist()} == {zipfile.ZIP_STORED}


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_what_is_compressed_is_refused_before_it_is_read(compression: int, onnx_small: Path, tmp_path: Path) -> None:
    path = packed(onnx_small, tmp_path / "bomb.pt2", compression, bomb=bytes(9 << 20))
    tracemalloc.start()
    try:
        refused(path, "longer than the archive|is compressed")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_files_that_the_manifest_does_not_list_are_refused(onnx_small: Path, tmp_path: Path) -> None:
    refused(packed(onnx_small, tmp_path / "engine.pt2", extra=b"x"), "holds 'rfc/extra', which rfc.json does not list")


def test_two_files_of_one_name_are_refused(archive: Path) -> None:
    with zipfile.ZipFile(archive, "a") as file, pytest.warns(UserWarning, match="Duplicate name"):
        file.writestr(f"rfc/{WEIGHTS}", b"other")
    refused(archive, "holds 'rfc/weights.safetensors' twice")


def test_links_and_devices_are_refused(onnx_small: Path, archive: Path) -> None:
    for kind in (0o120777, 0o010644, 0o060644, 0o040755):
        with zipfile.ZipFile(archive, "w") as file:
            for path in onnx_small.iterdir():
                entry = zipfile.ZipInfo(f"rfc/{path.name}")
                entry.external_attr = (kind if path.name == WEIGHTS else 0o100644) << 16
                file.writestr(entry, path.read_bytes())
        refused(archive, "'rfc/weights.safetensors' is a link or a device")


def test_a_table_of_contents_that_is_too_long_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "many.pt2"
    with zipfile.ZipFile(path, "w") as file:
        for index in range(30_000):
            file.writestr(zipfile.ZipInfo(f"rfc/{index}"), b"")
    refused(path, "its table of contents has more than")
    with zipfile.ZipFile(path, "w") as file:
        for index in range(5_000):
            file.writestr(zipfile.ZipInfo(f"rfc/{index}"), b"")
    refused(path, "5000 files that are longer than the archive or too many")


def _flag(bit: int) -> Callable[[bytearray, int], None]:
    def change(data: bytearray, at: int) -> None:
        data[at : at + 2] = struct.pack("<H", struct.unpack("<H", data[at : at + 2])[0] | bit)

    return change


@pytest.mark.parametrize(
    ("local", "central", "change", "said"),
    [
        (6, 8, _flag(1), "encrypted"),
        (6, 8, _flag(1 << 5), "encrypted"),
        (6, 8, _flag(1 << 6), "encrypted"),
        (8, 10, _flag(9), "compressed"),
        (4, 6, _flag(0xFF), "damaged"),
        (None, 24, _flag(0x7000), "longer than the archive|compressed"),
        (None, 42, _flag(0x7777), "damaged"),
    ],
    ids=["encrypted", "patched", "strongly encrypted", "method 9", "version 255", "length", "place"],
)
def test_odd_headers_are_refused_in_one_line(
    archive: Path, local: int | None, central: int, change: Callable[[bytearray, int], None], said: str
) -> None:
    data = bytearray(archive.read_bytes())
    for magic, offset in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
        at = -1
        while offset is not None and (at := data.find(magic, at + 1)) != -1:
            change(data, at + offset)
    archive.write_bytes(data)
    refused(archive, said)
