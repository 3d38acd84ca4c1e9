"""Reading an artefact: everything in rfc.json is checked, its signature too, before anything else is opened."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import ValidationError

from rfc.files import FileError, parse_json
from rfc_export.engine_files import EngineFiles
from rfc_export.errors import ArtifactError
from rfc_export.manifest import MANIFEST, SCHEMA_VERSION, Manifest
from rfc_export.seal import Key, check_checksum, check_signature


def read_manifest(files: EngineFiles, trusted: Iterable[Key] | None = None) -> Manifest:
    """The checked manifest; ArtifactError with the field that is wrong, TrustError where none of the `trusted` keys signed it."""
    where = f"{files.path / MANIFEST}"
    try:
        record = parse_json(files.manifest())
    except FileError as error:
        raise ArtifactError(f"{where}: {error}; copy the artefact again") from error
    version = record.get("schema_version") if isinstance(record, dict) else None
    if isinstance(record, dict) and "schema_version" in record and type(version) is not int:
        raise ArtifactError(f"{where}: schema_version: expected {SCHEMA_VERSION}, got {version!r}")
    if isinstance(version, int) and version != SCHEMA_VERSION:
        how = "update rfc-fx" if version > SCHEMA_VERSION else "export the model again with this rfc-fx"
        raise ArtifactError(f"{where}: schema version {version}, this rfc-fx reads {SCHEMA_VERSION}; {how}")
    if isinstance(record, dict) and version is not None:
        check_checksum(where, record)
        if trusted is not None:
            check_signature(where, record, trusted)
    manifest = _validated(where, record)
    files.check_names(manifest)
    return manifest


def _validated(where: str, record: object) -> Manifest:
    try:
        return Manifest.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "manifest"
        message = first["msg"].removeprefix("Value error, ")
        if not isinstance(first.get("input"), dict) or first["type"] != "value_error":  # the whole manifest, or a whole set, is no answer
            got = repr(first.get("input"))
            message += f", got {got if len(got) < 80 else got[:77] + '...'}"
        raise ArtifactError(f"{where}: {field}: {message}") from error
