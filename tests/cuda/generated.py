"""What Inductor generates for a program: Triton code with CUDA graphs on, and the C++ of AOTInductor; nothing is loaded or run."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch._inductor.compile_fx as compile_fx
import torch._inductor.output_code as output_code
from torch import Tensor, fx
from torch._inductor import config, metrics
from torch._inductor.graph import GraphLowering

from rfc_export import aoti
from rfc_fx.ir.torch_versions import known_options

KERNEL = re.compile(r"(\w+) = async_compile\.triton\('\w+', '''(.*?)''', device_str='cuda'\)", re.DOTALL)
CHECKED = re.compile(r"aoti_torch_clone_preserve_strides\((\w+),")


@dataclass
class Generated:
    """What came of one program."""

    sources: list[str] = field(default_factory=list)
    devices: set[str] = field(default_factory=set)
    partitions: list[int] = field(default_factory=list)
    written: set[int] = field(default_factory=set)
    """Indices among the inputs of what it writes."""
    lost: set[int] = field(default_factory=set)
    """Of these the ones that are not static."""
    reasons: list[str] = field(default_factory=list)
    """Why it would not run as a CUDA graph."""
    bytes: int = 0

    @property
    def kernels(self) -> dict[str, str]:
        """The sources of its Triton kernels by name."""
        return {name: body for source in self.sources for name, body in KERNEL.findall(source)}

    @property
    def faults(self) -> list[str]:
        """Everything that is not as it has to be."""
        found = [f"no CUDA graph: {reason}" for reason in self.reasons]
        if self.devices != {"cuda:0"}:
            found.append(f"devices {sorted(self.devices)}")
        if any(count != 1 for count in self.partitions):
            found.append(f"partitions {self.partitions}")
        if self.lost:
            found.append(f"inputs {sorted(self.lost)} are written and not static")
        if any("async_compile.cpp" in source for source in self.sources):
            found.append("a kernel for the CPU")
        if not self.sources:
            found.append("nothing was generated")
        return found


def triton_code(module: Any, arguments: Sequence[Tensor], static: Sequence[int]) -> Generated:
    """Compile a program as `mode="reduce-overhead"` does, down to its Triton code. `static`: arguments that keep their addresses."""
    made = Generated()

    def inner(graph: Any, inputs: Any, **settings: Any) -> Any:
        weights = len(inputs) - len(arguments)
        kept = [*range(weights), *(weights + index for index in static)]
        placeholders = graph.graph.find_nodes(op="placeholder")
        made.written |= {
            index - weights
            for index, node in enumerate(placeholders)
            if any(user.target is torch.ops.aten.copy_.default and user.args[0] is node for user in node.users)
        }
        made.lost |= made.written - set(static)
        return compile_fx.compile_fx_inner(graph, inputs, **settings | {"static_input_idxs": kept})

    with generating(made), config.patch({"triton.cudagraphs": True}), torch.no_grad():
        compile_fx.compile_fx(module, list(arguments), inner_compile=inner)
    made.bytes = metrics.num_bytes_accessed
    return made


class _ReadError(Exception):
    """What was wanted of the generated code is known."""


def checked_arguments(arguments: Sequence[Tensor]) -> list[int]:
    """Indices of the arguments that Inductor takes to begin at 16 bytes, as it asks before it compiles."""
    return [*compile_fx.get_input_idxs_to_check(arguments, ())]


def checked_inputs(module: Any, arguments: Sequence[Tensor]) -> list[int]:
    """Indices of the arguments for which AOTInductor's C++ takes a copy where they begin at no multiple of 16 bytes."""
    names: list[str] = []
    texts: list[str] = []

    def noted(lowering: GraphLowering) -> None:
        lowering.init_wrapper_code()
        lowering.wrapper_code.codegen_inputs()  # before its kernels, of which none matters here
        names.extend(lowering.graph_input_names)
        texts.append(lowering.wrapper_code.prefix.getvalue())
        raise _ReadError

    with patch.object(GraphLowering, "codegen_with_cpp_wrapper", noted), torch.no_grad():
        try:
            torch._inductor.aot_compile(_unmarked(module), tuple(arguments), options=known_options(aoti.OPTIONS))
        except Exception as error:
            if not texts:
                raise error
    weights = len(names) - len(arguments)
    return [index - weights for name in CHECKED.findall(texts[0]) if (index := names.index(name)) >= weights]


def _unmarked(module: Any) -> fx.GraphModule:
    """The module without the fakes that its nodes remember, which are of another mode than its arguments."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    for node in graph.nodes:
        node.meta.pop("val", None)
    return fx.GraphModule(module, graph)


@contextmanager
def generating(made: Generated) -> Iterator[None]:
    """Inductor's lowering stops at its code, which is noted with what it says of CUDA graphs."""

    def to_module(lowering: Any) -> Any:
        code, _ = lowering.codegen_with_cpp_wrapper() if lowering.cpp_wrapper else lowering.codegen()
        made.sources.append(code.value)
        made.devices |= {str(device) for device in lowering.device_node_mapping}
        if (parts := getattr(lowering, "partition_maps", None)) is not None:
            made.partitions.append(len(parts))
        return SimpleNamespace(call=lambda inputs: inputs, __file__="", __name__="", recursively_apply_fns=None, runner=None)

    generate = compile_fx._InProcessFxCompile.codegen_and_compile

    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        graph = generate(self, *args, **kwargs)
        if (reason := graph.disabled_cudagraphs_reason) is not None:
            made.reasons.append(reason)
        made.reasons.extend(getattr(graph.cudagraph_info, "cudagraph_fail_reasons", None) or [])
        return graph

    metrics.reset()
    log = compile_fx.inductor_metrics_log
    before = log.level
    log.setLevel(logging.INFO)
    try:
        with ExitStack() as opened:
            opened.enter_context(patch.object(GraphLowering, "compile_to_module", to_module))
            opened.enter_context(patch.object(compile_fx._InProcessFxCompile, "codegen_and_compile", noted))
            for name in ("cudagraph_partition_post_compile", "cudagraph_post_compile"):
                opened.enter_context(patch.object(output_code, name, lambda *_, **__: None))
            opened.enter_context(config.patch({"fx_graph_cache": False}))
            yield
    finally:
        log.setLevel(before)
