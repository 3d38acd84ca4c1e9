"""Files of an artefact, each opened once: what is hashed is what is used. Of an archive nothing is unpacked."""

from __future__ import annotations

import hashlib
import io
import mmap
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from rfc.files import FileError, open_regular
from rfc_export.errors import ArtifactError
from rfc_export.manifest import MANIFEST, Manifest
from rfc_export.specs import FileSpec
from rfc_fx.tools.load import path_problem

MOST_MANIFEST_BYTES = 64 << 20
MOST_ENTRIES, MOST_READ = 4096, 1 << 20
"""Files in an archive, and bytes of its table of contents, which is read at once."""

CHUNK = 1 << 20
FOLDER = "rfc/"
"""What the names in an archive begin with."""

ODD_ZIP = (zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError, OSError, ValueError, OverflowError, struct.error, zlib.error)
"""What `zipfile` raises of archives that are damaged or hostile."""


class EngineFiles:
    """The files of an artefact that is a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def _stream(self, name: str) -> Iterator[tuple[BinaryIO, int]]:
        """The file and its length."""
        try:
            with open_regular(self.path / name, follow=False) as stream:
                yield stream, os.fstat(stream.fileno()).st_size
        except FileError as error:
            what = {"is a link": "a link, which no artefact has", "is missing": "missing"}.get(str(error), str(error))
            raise ArtifactError(f"{self.path / name}: {what}; copy the artefact again") from error
        except OSError as error:
            raise ArtifactError(f"{self.path / name}: cannot be read: {error.strerror or error}") from error

    def manifest(self) -> bytes:
        """The content of rfc.json, not yet checked."""
        where = self.path / MANIFEST
        if where.is_symlink() or not where.exists():
            whole = "a whole pipeline; pass one of its engines, such as its folder transformer"
            what = whole if (self.path / "model_index.json").is_file() else "no artefact of rfc-fx export"
            raise ArtifactError(f"{where}: {MANIFEST} is {'a link' if where.is_symlink() else 'missing'}; this is {what}")
        with self._stream(MANIFEST) as (stream, size):
            if size > MOST_MANIFEST_BYTES:
                raise ArtifactError(f"{where}: {size} bytes, more than any manifest has")
            return stream.read(MOST_MANIFEST_BYTES)

    def check_names(self, manifest: Manifest) -> None:
        """ArtifactError where there is more than the manifest lists; a folder may hold what is never opened."""

    def read(self, name: str, spec: FileSpec) -> Tensor:
        """A file's bytes (uint8, one axis); ArtifactError where it is missing, of another length or content, or no regular file."""
        with self._stream(name) as (stream, size):
            self._check_length(name, spec, size)
            content = torch.empty(size, dtype=torch.uint8)
            memory, digest, done = content.numpy().data, hashlib.sha256(), 0
            while count := stream.readinto(part := memory[done : done + CHUNK]):  # type: ignore[attr-defined]
                digest.update(part[:count])
                done += count
        self._check_content(name, spec, done, digest.hexdigest())
        return content

    def check(self, name: str, spec: FileSpec, target: Path | None = None) -> None:
        """ArtifactError as of `read`; the file is hashed piece by piece, and copied to `target` where there is one."""
        with self._stream(name) as (stream, size), open(os.devnull if target is None else target, "wb") as copy:
            self._check_length(name, spec, size)
            digest, done = hashlib.sha256(), 0
            while part := stream.read(CHUNK):
                digest.update(part)
                copy.write(part)
                done += len(part)
        self._check_content(name, spec, done, digest.hexdigest())

    def mapped(self, name: str, spec: FileSpec) -> Tensor:
        """As `read`, but the bytes stay in the file's pages: who may write to the file can change them afterwards."""
        with self._stream(name) as (stream, size):
            self._check_length(name, spec, size)
            pages = mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_COPY) if size else bytearray()
        self._check_content(name, spec, size, hashlib.sha256(pages).hexdigest())
        return torch.frombuffer(pages, dtype=torch.uint8)

    def _check_length(self, name: str, spec: FileSpec, size: int) -> None:
        if size != spec.bytes:
            raise ArtifactError(
                f"{self.path / name}: {size} bytes, expected {spec.bytes}: cut off or another file; copy the artefact again"
            )

    def _check_content(self, name: str, spec: FileSpec, done: int, digest: str) -> None:
        if done != spec.bytes or digest != spec.sha256:
            raise ArtifactError(
                f"{self.path / name}: SHA-256 {digest[:12]}..., expected {spec.sha256[:12]}...: the file was changed; "
                "copy the artefact again"
            )


class ArchiveFiles(EngineFiles):
    """The files of an artefact in one .pt2 archive: stored as they are, each once, nothing but regular files."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, size: int) -> None:
        super().__init__(path)
        self._archive, self._entries = archive, self._checked(archive.infolist(), size)

    def _checked(self, entries: list[zipfile.ZipInfo], size: int) -> dict[str, zipfile.ZipInfo]:
        if len(entries) > MOST_ENTRIES or sum(entry.file_size for entry in entries) > size:
            raise ArtifactError(f"{self.path}: lists {len(entries)} files that are longer than the archive or too many; it is not opened")
        checked: dict[str, zipfile.ZipInfo] = {}
        for entry in entries:
            name = entry.filename.removeprefix(FOLDER)
            kind = stat.S_IFMT(entry.external_attr >> 16)
            if not entry.filename.startswith(FOLDER) or not name or name != Path(name).name or name.startswith("."):
                raise ArtifactError(f"{self.path}: holds {entry.filename!r}, which no artefact has; it is not opened")
            if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size or entry.flag_bits & 0x2061:
                raise ArtifactError(f"{self.path}: {entry.filename!r} is compressed or encrypted, which no artefact is; it is not opened")
            if kind not in (0, stat.S_IFREG):
                raise ArtifactError(f"{self.path}: {entry.filename!r} is a link or a device, which no artefact has; it is not opened")
            if name in checked:
                raise ArtifactError(f"{self.path}: holds {entry.filename!r} twice; it is not opened")
            checked[name] = entry
        return checked

    @contextmanager
    def _stream(self, name: str) -> Iterator[tuple[BinaryIO, int]]:
        if (entry := self._entries.get(name)) is None:
            raise ArtifactError(f"{self.path}: {name} is missing; copy the artefact again")
        with _reading(self.path), self._archive.open(entry) as stream:
            yield stream, entry.file_size  # type: ignore[misc]

    def manifest(self) -> bytes:
        if (entry := self._entries.get(MANIFEST)) is None:
            raise ArtifactError(f"{self.path}: {MANIFEST} is missing; this is no artefact of rfc-fx export")
        if entry.file_size > MOST_MANIFEST_BYTES:
            raise ArtifactError(f"{self.path}: {MANIFEST} has {entry.file_size} bytes, more than any manifest has")
        with self._stream(MANIFEST) as (stream, size):
            return stream.read(size)

    def mapped(self, name: str, spec: FileSpec) -> Tensor:
        raise ArtifactError(f"{self.path}: weights in an archive cannot be mapped; load it without mapped=True, or export a folder")

    def check_names(self, manifest: Manifest) -> None:
        if strange := sorted(set(self._entries) - set(manifest.files) - {MANIFEST}):
            raise ArtifactError(f"{self.path}: holds {FOLDER + strange[0]!r}, which {MANIFEST} does not list; it is not opened")


class _BoundedReads(io.BufferedReader):
    """An archive of which nobody reads more at once than a table of contents has."""

    def read(self, size: int | None = -1, /) -> bytes:
        is_bounded = size is not None and 0 <= size <= MOST_READ
        content = super().read(size if is_bounded else MOST_READ + 1)
        if len(content) > MOST_READ:
            raise zipfile.BadZipFile(f"its table of contents has more than {MOST_READ} bytes")
        return content


@contextmanager
def opened(path: Path) -> Iterator[EngineFiles]:
    """The files of an artefact for the time of the block; ArtifactError where there is none, or an archive that no export wrote."""
    if (problem := path_problem(path)) is not None:
        raise ArtifactError(f"{str(path)[:80]}: no such artefact: {problem}; pass a folder with {MANIFEST}, or a .pt2 file")
    if path.is_dir():
        yield EngineFiles(path)
        return
    if not path.exists():
        raise ArtifactError(f"{path}: no such artefact; pass a folder with {MANIFEST}, or a .pt2 file")
    with ExitStack() as held:
        with _reading(path):
            stream = held.enter_context(_BoundedReads(held.enter_context(open_regular(path)).raw))  # type: ignore[attr-defined]
            archive = held.enter_context(zipfile.ZipFile(stream))
        yield ArchiveFiles(path, archive, os.fstat(stream.fileno()).st_size)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever `zipfile` raises inside is one ArtifactError that names the archive."""
    try:
        yield
    except ArtifactError:
        raise
    except (FileError, *ODD_ZIP) as error:
        raise ArtifactError(f"{path}: no artefact, or a damaged one: {error}; copy it again") from error
