"""Seal of a manifest: its checksum over the canonical form, and an Ed25519 signature by whoever exported it.

The canonical form is the record without checksum and signature, as JSON with sorted names and no blanks, in ASCII.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rfc.files import FileError, read_bytes
from rfc_export.errors import ArtifactError, BackendError, ExportError, TrustError

CHECKSUM, SIGNATURE = "checksum", "signature"
PURPOSE = b"rfc-fx engine manifest, version 3\n"
"""Stands before what is signed, so that no signature made for something else fits."""

MOST_KEY_BYTES = 16 << 10

Key = str | Path | bytes
"""A public key: a PEM file, its text, 64 hexadecimal digits, or its 32 bytes."""


def canonical(record: Mapping[str, Any]) -> bytes:
    """What checksum and signature are over."""
    content = {name: value for name, value in record.items() if name not in (CHECKSUM, SIGNATURE)}
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def checksum(record: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical form."""
    return hashlib.sha256(canonical(record)).hexdigest()


def sealed(record: Mapping[str, Any], key: Path | None = None) -> dict[str, Any]:
    """The record with its checksum, and signed where there is a private key."""
    signature = None if key is None else {"public_key": public_key(key), "ed25519": _private(key).sign(PURPOSE + canonical(record)).hex()}
    return {**record, CHECKSUM: checksum(record), SIGNATURE: signature}


def check_checksum(where: str, record: Mapping[str, Any]) -> None:
    """ArtifactError where the record is not what its own checksum is of."""
    if (own := checksum(record)) != record.get(CHECKSUM):
        raise ArtifactError(
            f"{where}: checksum: expected {str(record.get(CHECKSUM))[:12]!r}, got {own[:12]!r}: the file was changed; copy it again"
        )


def check_signature(where: str, record: Mapping[str, Any], trusted: Iterable[Key]) -> str:
    """The trusted key, in hexadecimal digits, that signed the record; TrustError where none did, ExportError for what is no key."""
    keys = {public_bytes(key).hex() for key in trusted}
    signature = record.get(SIGNATURE)
    if not isinstance(signature, dict):
        raise TrustError(f"{where}: is not signed, and only engines signed by a trusted key are loaded; export it with --sign")
    if (signer := signature.get("public_key")) not in keys:
        raise TrustError(f"{where}: is signed by {str(signer)[:16]}..., which is none of the {len(keys)} trusted keys; it is not opened")
    from cryptography.exceptions import InvalidSignature

    try:
        _library().Ed25519PublicKey.from_public_bytes(bytes.fromhex(signer)).verify(
            bytes.fromhex(str(signature.get("ed25519"))), PURPOSE + canonical(record)
        )
    except (InvalidSignature, ValueError) as error:
        raise TrustError(f"{where}: the signature of {signer[:16]}... does not fit: the file was changed; it is not opened") from error
    return str(signer)


def public_key(private: Path) -> str:
    """The public half of a private key's file, as 64 hexadecimal digits; ExportError where the file holds no Ed25519 key."""
    return str(_private(private).public_key().public_bytes_raw().hex())


def _library() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except Exception as error:  # a broken installation raises what it likes
        raise BackendError(f"signatures need the package cryptography: {error}; pip install 'rfc-fx[sign]'") from error
    return ed25519


def _private(path: Path) -> Any:
    library = _library()
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(read_bytes(path, MOST_KEY_BYTES), password=None)
    except (FileError, ValueError, TypeError) as error:
        raise ExportError(f"--sign {path}: no private key: {error}; openssl genpkey -algorithm ed25519 -out {path} makes one") from error
    if not isinstance(key, library.Ed25519PrivateKey):
        raise ExportError(f"--sign {path}: expected an Ed25519 key, got another kind; openssl genpkey -algorithm ed25519 makes one")
    return key


def public_bytes(key: Key) -> bytes:
    """The 32 bytes of a public key; ExportError for what is none."""
    if isinstance(key, bytes) and len(key) == 32:
        return key
    if isinstance(key, str) and len(key) == 64:
        try:
            return bytes.fromhex(key)
        except ValueError:
            pass
    library = _library()
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    shown = key if isinstance(key, Path) or (isinstance(key, str) and "\n" not in key) else "a text"
    try:
        text = key if isinstance(key, bytes) else key.encode() if "\n" in str(key) else read_bytes(Path(key), MOST_KEY_BYTES)  # type: ignore[union-attr]
        loaded = load_pem_public_key(text)
    except (FileError, ValueError, TypeError) as error:
        raise ExportError(f"trusted: {shown}: no public key: {error}; pass a PEM file or 64 hexadecimal digits") from error
    if not isinstance(loaded, library.Ed25519PublicKey):
        raise ExportError(f"trusted: {shown}: expected an Ed25519 key, got another kind")
    return bytes(loaded.public_bytes_raw())
