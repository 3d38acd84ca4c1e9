"""ONNX: one model for each program, run by ONNX Runtime. State goes in and comes out; weights are external data, stored once.

The weights of every model lie in weights.safetensors: an ONNX file names the offset of each inside it.
"""

from __future__ import annotations

from typing import Literal

from rfc_export.onnx.libraries import check as check
from rfc_export.onnx.libraries import versions as versions
from rfc_export.onnx.probe import check_types as check_types
from rfc_export.onnx.session import open as open
from rfc_export.onnx.writer import build as build
from rfc_export.onnx.writer import relocate as relocate

WRITES: Literal["in_place", "returned"] = "returned"
POOLS = False
