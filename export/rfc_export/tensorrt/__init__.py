"""TensorRT: an engine for every program, built by torch-tensorrt: state goes in and comes out, in buffers that all engines share.

Not measured: TensorRT cannot be installed from the Python package index alone. What can be checked anywhere is that TensorRT-RTX builds
the ONNX programs (`rtx.build_with_rtx`), and that torch-tensorrt has a converter for each operation (`benchmarks.coverage.converters`).
"""

from __future__ import annotations

from typing import Literal

from rfc_export.tensorrt.builder import build as build
from rfc_export.tensorrt.builder import relocate as relocate
from rfc_export.tensorrt.engine import open as open
from rfc_export.tensorrt.libraries import check as check
from rfc_export.tensorrt.libraries import check_types as check_types
from rfc_export.tensorrt.libraries import versions as versions

WRITES: Literal["in_place", "returned"] = "returned"
"""torch-tensorrt up to 2.13 takes buffers that are written for constants."""

POOLS = False
