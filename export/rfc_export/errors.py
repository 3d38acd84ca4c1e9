"""Errors of export and of engines: where, what was expected, what came, what to do."""

from __future__ import annotations

from rfc_fx.errors import RFCError


def short(error: Exception) -> str:
    """A library's error on one line of at most 300 characters."""
    text = " ".join(str(error).split())
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
