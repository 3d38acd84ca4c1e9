"""TensorRT: through torch-tensorrt, caches in and out. Not measured here: TensorRT cannot be installed from the package index alone."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rfc_export.artifact import Manifest
from rfc_export.backends import Built, Report, Run
from rfc_export.errors import BackendError
from rfc_export.portable import Portable

WRITES: Literal["in_place", "returned"] = "returned"
POOLS = False
