"""First run: the plain model is run once before it is traced, on arguments of which no two are one tensor."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from rfc_fx.capture.lifted import Lifted
from rfc_fx.capture.parallel import Parallel
from rfc_fx.errors import CaptureError


def each_its_own(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with a copy of each tensor that is passed twice: torch.export would read one for both, in later calls too."""
    seen: set[int] = set()

    def unaliased(tensor: Tensor) -> Tensor:
        if id(tensor) in seen:
            return tensor.clone()
        seen.add(id(tensor))
        return tensor

    kwargs: dict[str, Any] = pytree.tree_map_only(Tensor, unaliased, dict(arguments))
    return kwargs


def run_once(model: nn.Module, kwargs: dict[str, Any], parallel: Parallel | None) -> None:
    """Run the model: what its forward keeps from its first call (rotary tables) must be real, and tracing leaves fake tensors.

    Raises CaptureError for ring attention over a back end without the log-sum-exp of its rows. Meta tensors are not run.
    """
    if any(leaf.is_meta for leaf in pytree.tree_leaves(kwargs) if isinstance(leaf, Tensor)):
        return
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model(**pytree.tree_map_only(Lifted, lambda leaf: leaf.number, kwargs))
    except (ValueError, NotImplementedError) as error:
        if parallel is None or parallel.ring == 1 or not _is_of_ring(error):
            raise
        raise CaptureError(
            f"{type(model).__name__}: ring attention joins the parts of a row by their log-sum-exp, which this attention back end does not "
            f"return here ({str(error).splitlines()[0]}); choose one that does before enable_parallelism, such as "
            "model.set_attention_backend('_native_cudnn') or 'flash' on CUDA, or ContextParallelConfig(ulysses_degree=...)"
        ) from error


def _is_of_ring(error: Exception) -> bool:
    return any(word in str(error).lower() for word in ("lse", "flash_attention", "efficient_attention"))
