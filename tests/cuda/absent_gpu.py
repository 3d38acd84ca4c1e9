"""A GPU that is not there: torch, Inductor and Triton take this process to have an H100, so that they compile for it; nothing can run.

Needs a CUDA build of torch, no driver. Attention is decomposed, as there is no device to ask for its kernels: FULL has more kernels here
than on a card. Constant folding and autotuning are off, for they run kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

DEVICE = torch.device("cuda", 0)

PROPERTIES = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    total_memory=85_000_000_000,
    multi_processor_count=132,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    warp_size=32,
    L2_cache_size=52_428_800,
    gcnArchName="",
    is_integrated=False,
    shared_memory_per_block=49_152,
    shared_memory_per_block_optin=232_448,
    shared_memory_per_multiprocessor=233_472,
    max_threads_per_block=1024,
    clock_rate=1_980_000,
    memory_clock_rate=2_619_000,
    memory_bus_width=5120,
)


def says(value: Any) -> Callable[..., Any]:
    """A function that returns this, whatever it is called with."""
    return lambda *_, **__: value


def _as_tensor(data: Any, dtype: torch.dtype | None = None, device: Any = None) -> torch.Tensor:
    """As torch's, but made on the CPU first: fakes take it over there, and no driver is asked for."""
    made = data if isinstance(data, torch.Tensor) else torch.tensor(data)
    return made.to(device or made.device, dtype or made.dtype)


class Driver:
    """What Triton asks of a driver before it compiles."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_active_torch_device(self) -> torch.device:
        return DEVICE

    def get_device_interface(self) -> Any:
        return torch.cuda

    get_current_device = staticmethod(says(0))
    get_current_stream = staticmethod(says(0))
    is_active = staticmethod(says(True))


def is_possible() -> bool:
    """Whether this torch is built for CUDA and brings Triton."""
    import importlib.util

    return torch.version.cuda is not None and importlib.util.find_spec("triton") is not None


@contextmanager
def absent_gpu() -> Iterator[None]:
    """Everything inside takes the GPU to be there; libraries are imported before, whose tensors would otherwise be made on it."""
    import diffusers  # noqa: F401
    import peft  # noqa: F401
    import torch._inductor.fx_passes.joint_graph as joint_graph
    import torch._inductor.fx_passes.post_grad as post_grad
    import torch._subclasses.fake_tensor as fake_tensor
    import torch.cuda.random as random
    import torch.utils._triton as has
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor import config
    from triton.runtime import driver

    torch._C._ensureCUDADeviceGuardSet()
    state = torch.zeros(16, dtype=torch.uint8)
    answers: dict[Any, dict[str, Any]] = {
        torch.cuda: {
            "is_available": says(True),
            "current_device": says(0),
            "device_count": says(1),
            "get_device_properties": says(PROPERTIES),
            "get_device_capability": says((9, 0)),
            "get_device_name": says(PROPERTIES.name),
            "is_bf16_supported": says(True),
            "synchronize": says(None),
            "set_device": says(None),
            "_exchange_device": says(0),
            "_maybe_exchange_device": says(0),
            "_lazy_init": says(None),
            "get_rng_state": says(state),
            "set_rng_state": says(None),
        },
        random: {"_lazy_init": says(None), "get_rng_state": says(state), "set_rng_state": says(None)},
        CudaInterface: {
            "is_available": staticmethod(says(True)),
            "current_device": staticmethod(says(0)),
            "get_device_properties": staticmethod(says(PROPERTIES)),
            "get_compute_capability": staticmethod(says(90)),
            "is_triton_capable": staticmethod(says(True)),
            "raise_if_triton_unavailable": staticmethod(says(None)),
        },
        CudaInterface.Worker: {"get_device_properties": staticmethod(says(PROPERTIES)), "current_device": staticmethod(says(0))},
        fake_tensor: {"init_gpu_context": says(None)},
        joint_graph: {"lazy_init": says(None)},
        post_grad: {"lazy_init": says(None)},
        has: {"has_triton": says(True)},
        torch: {"as_tensor": _as_tensor},
    }
    settings = {"compile_threads": 1, "joint_graph_constant_folding": False, "triton.autotune_at_compile_time": False}
    with ExitStack() as opened:
        for owner, replaced in answers.items():
            opened.enter_context(patch.multiple(owner, **replaced))
        opened.enter_context(config.patch(settings))
        driver.set_active(Driver(90))
        try:
            yield
        finally:
            driver._active = None  # reset_active would make the driver, which is not there
