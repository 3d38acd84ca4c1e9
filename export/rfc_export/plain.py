"""Plain: a part of a pipeline that is called once a picture, a text encoder or a VAE's decoder, as an artefact: one program a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from safetensors.torch import save_file
from torch import Tensor, fx, nn

import rfc
from rfc.phase import FULL
from rfc_export.artifact import file_spec, write_manifest, writing
from rfc_export.backends import Backend
from rfc_export.building import Stages, explained
from rfc_export.calls import call_spec
from rfc_export.manifest import WEIGHTS, Manifest
from rfc_export.methods import encode_method, name_of
from rfc_export.model_facts import dtype_of_model, plain_config
from rfc_export.portable import Portable, flat
from rfc_export.set_spec import DecisionSpec, PlanSpec, ProgramSetSpec
from rfc_export.specs import BackendName, CallSpec, ModelSpec, ProgramSpec, TensorSpec
from rfc_export.target import built_with, target_of
from rfc_export.weight_names import Weights
from rfc_export.weights import weight_spec
from rfc_fx.capture.export import MODEL, Captured, capture
from rfc_fx.ir.config import Config
from rfc_fx.ir.ops import flops, value
from rfc_fx.passes.pair_complex import pair_complex


class Part(nn.Module):
    """A module by one of its methods; what transformers returns becomes a dict, which a file can name."""

    def __init__(self, module: nn.Module, method: str) -> None:
        super().__init__()
        self.module, self.method = module, method

    def signature_with(self, calls: Sequence[Mapping[str, Any]]) -> Signature:
        """Of the method; what calls pass beyond its parameters, where it takes any, are parameters of its own."""
        own = signature(getattr(self.module, self.method))
        named = [one for one in own.parameters.values() if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]
        more = dict.fromkeys(name for call in calls for name in call if name not in own.parameters)
        return own.replace(parameters=[*named, *(Parameter(name, Parameter.KEYWORD_ONLY, default=None) for name in more)])

    def forward(self, **arguments: Any) -> Any:
        """Call the method."""
        result = getattr(self.module, self.method)(**arguments)
        return dict(result) if type(result).__module__.startswith("transformers.") and isinstance(result, Mapping) else result


@dataclass(frozen=True)
class _PlainCall:
    program: Portable
    call: CallSpec


def export_plain(
    part: Part, path: Path, backend: BackendName, maker: Backend, calls: Sequence[Mapping[str, Any]], sign: Path | None, stages: Stages
) -> None:
    """Write the artefact of a part that answers these calls; it has the method FullCompute and no state.

    Raises ExportError and BackendError as `rfc_export.export`.
    """
    name = type(part.module).__name__
    config = Config(hoist=False, granularity="module")
    with explained(name, stages, backend, config), torch.no_grad():
        expected = part.signature_with(calls)
        weights, device = Weights(), next((one.device for one in part.parameters()), torch.device("cpu"))
        made = []
        for number, arguments in enumerate(calls):
            stages(f"{name}: capturing call {number + 1} of {len(calls)}")
            made.append(_plain_call(part, expected, arguments, weights, device, number))
        with writing(path) as folder:
            save_file(weights.missing(), folder / WEIGHTS)
            specs = {name: weight_spec(tensor) for name, tensor in weights.missing().items()}
            sets = []
            for number, one in enumerate(made):
                programs = {FULL.name: one.program}
                built = maker.build(programs, weights.tensors, folder, device, stages, "" if number == 0 else f"-{number}")[FULL.name]
                sets.append(_set_spec(one, built.file, built.entry))
            files = {file.name: file_spec(file) for file in sorted(folder.iterdir())}
            manifest = Manifest(
                schema_version=3,
                created_at=datetime.now(UTC).isoformat(timespec="seconds"),
                model=ModelSpec(
                    model_class=name,
                    config=plain_config(part.module),
                    dtype=name_of(dtype_of_model(part.module)),
                    weights_sha256=files[WEIGHTS].sha256,
                ),
                method=encode_method(rfc.FullCompute()),
                backend=backend,
                config=config,
                sets=sets,
                sampler=None,
                built_with=built_with() | maker.versions(),
                target=target_of(device),
                files=files,
                weights=specs,
                options=built.options,
            )
            write_manifest(folder, manifest, sign)


def _plain_call(
    part: Part, expected: Signature, arguments: Mapping[str, Any], weights: Weights, device: torch.device, number: int
) -> _PlainCall:
    captured = pair_complex(capture(part, dict(arguments)))
    weights.take(captured)
    graph, used = flat(_module(captured), weights)
    places = [node for node in graph.nodes if node.op == "placeholder"]
    (output,) = (node for node in graph.nodes if node.op == "output")
    inputs = [_spec("input", node.name, node) for node in places]
    outputs = [_spec("output", str(index), node) for index, node in enumerate(output.args[0])]
    examples = tuple(torch.zeros(value(node).shape, dtype=value(node).dtype, device=device) for node in places)
    module = fx.GraphModule(used, graph, class_name="Full").eval()
    call = call_spec(captured, arguments, expected, None, number)
    for leaf, given in zip(call.leaves, pytree.tree_leaves(dict(arguments)), strict=True):
        if leaf.fixed is not None and isinstance(given, Tensor):
            weights.tensors[leaf.fixed] = given
    program = Portable(FULL.name, module, inputs, outputs, examples, {name: name for name in used}, flops(graph.nodes), ())
    return _PlainCall(program, call)


def _module(captured: Captured) -> fx.GraphModule:
    """The graph with what it reads."""
    root = nn.Module()
    root.add_module(MODEL, captured.model)
    for name, tensor in captured.constants.items():
        root.register_buffer(name, tensor)
    return fx.GraphModule(root, captured.graph)


def _spec(kind: Any, name: str, node: fx.Node) -> TensorSpec:
    like = value(node)
    return TensorSpec(kind=kind, name=name, dtype=name_of(like.dtype), shape=list(like.shape))


def _set_spec(one: _PlainCall, file: str, entry: str) -> ProgramSetSpec:
    program = one.program
    spec = ProgramSpec(file=file, entry=entry, inputs=program.inputs, outputs=program.outputs, weights=program.weights, flops=program.flops)
    return ProgramSetSpec(
        programs={FULL.name: spec},
        state=[],
        pools=[],
        decision=DecisionSpec(program=None, index=0, rule="Every", numbers={"interval": [1.0], "warmup": [1.0]}),
        call=one.call,
        plan=PlanSpec(sites=[], state_bytes=0, full_flops=program.flops, estimate_flops=0),
    )
