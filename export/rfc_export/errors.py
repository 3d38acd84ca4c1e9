"""Errors of export and of engines: where, what was expected, what came, what to do."""

from __future__ import annotations

import re

from rfc_fx.errors import RFCError


def short(error: Exception) -> str:
    """A library's error on one line of at most 300 characters; of the errors that torch.onnx packs into one another the innermost."""
    inner: BaseException = error
    while type(inner).__module__.startswith("torch.onnx.") and inner.__cause__ is not None:
        inner = inner.__cause__
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(inner)).split())
    return text if len(text) < 300 else text[:297] + "..."


class ExportError(RFCError):
    """An export that was refused; nothing was written."""


class ArtifactError(RFCError):
    """An artefact that is damaged, incomplete, from another schema, or not an artefact."""


class TrustError(ArtifactError):
    """An artefact that nobody signed whose key is trusted."""


class MachineCodeWarning(UserWarning):
    """An artefact whose programs are machine code, which can do whatever its user may, was loaded without a signature."""


class BackendError(RFCError):
    """A back end that this machine does not have, or that does not work here."""


class TargetError(RFCError):
    """An artefact that was made for another machine, device or version."""
