"""Capture: a model and example arguments become a graph of aten operations. Weights are referenced, never copied."""

from __future__ import annotations

import inspect
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, TensorArgument

from rfc.arguments import timestep_argument
from rfc_fx.capture.clean import clean
from rfc_fx.capture.first_run import each_its_own, run_once
from rfc_fx.capture.lifted import Answer, Lifted, NotLiftedError
from rfc_fx.capture.parallel import Parallel, parallel_of
from rfc_fx.capture.subclasses import path_of
from rfc_fx.capture.twin import twin_of
from rfc_fx.capture.with_values import Concrete, trace
from rfc_fx.errors import CaptureError, NestedGraphError
from rfc_fx.ir.ops import FLOPS, has_known_shape, is_mutable

log = logging.getLogger("rfc_fx")

LATENT_NAMES = ("hidden_states", "latents", "latent", "sample", "x", "vision_tokens", "decoder_input_tokens")
"""Names by which denoising models call what the sampler moves."""

MODEL = "model"
"""Name under which every program refers to the original model: weights are read through it, live."""
PREDICTOR = "predictor"  # the same for a predictor


@dataclass(frozen=True)
class Captured:
    """A model's forward as a graph: one placeholder per tensor among the arguments, weights as `model.<path>`."""

    model: nn.Module
    graph: fx.Graph
    inputs: dict[int, str]
    """Position among the flattened arguments -> placeholder."""
    names: dict[str, str]
    """Placeholder -> the argument of `forward` it belongs to."""
    outputs: pytree.TreeSpec
    constants: dict[str, Tensor]
    latent: str
    """The argument that the sampler moves."""
    decided: frozenset[int] = frozenset()
    """Positions among the flattened arguments whose values the graph has as constants."""
    answers: tuple[Answer, ...] = ()
    """What the forward's Python asked of lifted numbers: the graph is for calls that answer alike."""
    predictor: nn.Module | None = None
    """What stands in for the blocks at skipped steps (`rfc_fx.passes.graft`); its weights are `predictor.<path>`."""
    parallel: Parallel | None = None
    """Over which ranks the sequence lies; None: on this one alone."""
    decided_with: Any = None
    """torch.distributed.ProcessGroup whose ranks take one decision for batches of their own; None: each its own."""

    @property
    def latents(self) -> list[str]:
        """Placeholders of the latent: one, or one for each item of a list."""
        return [placeholder for placeholder, argument in self.names.items() if argument == self.latent]


def args_and_kwargs(example_inputs: Mapping[str, Any] | tuple[Any, ...]) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """The arguments of a call: keyword arguments given as a mapping, positional ones as a tuple."""
    return ((), example_inputs) if isinstance(example_inputs, Mapping) else (tuple(example_inputs), {})


def named_arguments(signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return every argument by name, in the order of the signature, so that equal calls look equal however they were written."""
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"forward: {error}; the signature is {signature}") from None
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            named.update(value)
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            raise TypeError(f"forward: *{name} cannot be captured; pass these arguments by name")
        else:
            named[name] = value
    return named


def latent_argument(arguments: Mapping[str, Any]) -> str:
    """The argument that the sampler moves: of the usual names, or else the first that holds a floating-point tensor of rank 2 or more."""

    def fits(value: Any) -> bool:
        leaves = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
        return any(leaf.is_floating_point() and leaf.dim() > 1 for leaf in leaves)

    usual = [name for name in LATENT_NAMES if name in arguments and fits(arguments[name])]
    return next(iter([*usual, *(name for name, value in arguments.items() if fits(value))]), next(iter(arguments), ""))


def capture(model: nn.Module, arguments: Mapping[str, Any]) -> Captured:
    """Trace `model(**arguments)` with `torch.export` (non-strict) and clean the graph.

    Raises CaptureError with file and line where the forward cannot be traced or writes to its buffers, NotLiftedError for a lifted number.
    """
    kwargs, parallel = each_its_own(arguments), parallel_of(model)
    lifted = {position for position, leaf in enumerate(pytree.tree_leaves(kwargs)) if isinstance(leaf, Lifted)}
    run_once(model, kwargs, parallel)
    try:
        captured = _with_values(model, kwargs, None) if lifted else _captured(model, _exported(twin_of(model), (), kwargs), kwargs)
        if lifted & captured.decided:
            raise NotLiftedError(sorted(lifted & captured.decided))
    except (CaptureError, NotLiftedError):
        raise
    except Exception as error:
        captured = _with_values(model, kwargs, error)
    clean(captured.graph, captured.constants)
    return replace(captured, parallel=parallel)


def _exported(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.export.ExportedProgram:
    with torch.no_grad(), warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        exported = torch.export.export(module, args, kwargs, strict=False)
        if any(is_mutable(node) for node in exported.graph.nodes):
            exported = exported.run_decompositions({})
        if nested := next((node for node in exported.graph.nodes if node.op == "get_attr" and node.users), None):
            raise _nested(nested)
        if vague := next((node for node in exported.graph.nodes if node.target in FLOPS and not has_known_shape(node)), None):
            raise ValueError(f"the shape of {vague} depends on values of tensors")
    return exported


def _nested(graph: fx.Node) -> NestedGraphError:
    """The error for a graph inside the graph, with the deepest line of a file that leads to its call."""
    call = next(iter(graph.users))
    lines = re.findall(r'File "([^<"][^"]*)", line (\d+)', call.meta.get("stack_trace") or "")
    return NestedGraphError(str(call.target), ":".join(lines[-1]) if lines else "a line that torch.export did not keep")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from printing the graph so far when an export fails: the error says where, and tracing with values may succeed."""
    loggers = [logging.getLogger(name) for name in ("torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _with_values(model: nn.Module, kwargs: dict[str, Any], error: Exception | None) -> Captured:
    """Trace with the values of the example, where torch.export cannot do without them or numbers are lifted."""
    if any(leaf.is_meta for leaf in pytree.tree_leaves(kwargs) if isinstance(leaf, Tensor)):
        raise CaptureError.from_export(model, error or TypeError("numbers are lifted with values only")) from error
    moving = frozenset({latent_argument(kwargs), timestep_argument(model.forward) or ""})
    try:
        concrete = trace(model, kwargs, moving)
        with fx.traceback.preserve_node_meta():
            exported = _exported(concrete.module, tuple(concrete.inputs), {})
    except CaptureError:
        raise
    except Exception as second:
        raise CaptureError.from_export(model, error or second) from (error or second)
    fixed = ", ".join(sorted({_owners(kwargs)[position] for position in concrete.decided}))
    log.info("%s: traced with the values of the example; fixed: %s", type(model).__name__, fixed or "nothing")
    return _captured(model, exported, kwargs, concrete)


def _owners(kwargs: dict[str, Any]) -> list[str]:
    """The argument each leaf belongs to."""
    paths = [path[0] for path, _ in pytree.tree_flatten_with_path(kwargs)[0]]
    return [str(first.key) if isinstance(first, pytree.MappingKey) else str(first) for first in paths]


def _captured(
    model: nn.Module, exported: torch.export.ExportedProgram, kwargs: dict[str, Any], concrete: Concrete | None = None
) -> Captured:
    """Copy the exported graph with weights as get_attr of `model.<path>` and only tensors as placeholders."""
    if lost := [spec.target for spec in exported.graph_signature.output_specs if spec.kind is OutputKind.BUFFER_MUTATION]:
        raise CaptureError(
            f"{type(model).__name__}: forward writes to its buffers {', '.join(map(str, lost))}; "
            "a cached model must be a function of its inputs"
        )
    graph = fx.Graph()
    env: dict[fx.Node, Any] = {}
    inputs: dict[int, str] = {}
    names: dict[str, str] = {}
    constants: dict[str, Tensor] = {}
    owners = _owners(kwargs)
    positions = iter(range(len(owners)) if concrete is None else concrete.positions)
    placeholders = {node.name: node for node in exported.graph.nodes if node.op == "placeholder"}
    for spec in exported.graph_signature.input_specs:
        node = placeholders[spec.arg.name]
        if spec.kind is InputKind.USER_INPUT:
            position = next(positions)
            if isinstance(spec.arg, TensorArgument):
                copy = graph.placeholder(node.name)
                copy.meta = dict(node.meta)
                env[node] = copy
                inputs[position] = copy.name
                names[copy.name] = owners[position]
            else:
                env[node] = spec.arg.value if isinstance(spec.arg, ConstantArgument) else None
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and (concrete is None or spec.target in concrete.weights):
            path = path_of(model, str(spec.target)) if concrete is None else concrete.weights[str(spec.target)]
            env[node] = _get_attr(graph, f"{MODEL}.{path}", node)
        elif spec.kind in (InputKind.CONSTANT_TENSOR, InputKind.BUFFER, InputKind.PARAMETER):
            name = f"constant_{len(constants)}"
            constants[name] = {**exported.constants, **exported.state_dict}[str(spec.target)]
            env[node] = _get_attr(graph, name, node)
        else:
            raise CaptureError(f"{type(model).__name__}: input {spec.arg.name} of kind {spec.kind.name} cannot be captured")
    for node in exported.graph.nodes:
        if node.op == "output":
            results = fx.node.map_arg(node.args[0], lambda n: env[n])
            graph.output(tuple(results))
        elif node.op != "placeholder":
            env[node] = graph.node_copy(node, lambda n: env[n])
    spec_of_outputs = exported.call_spec.out_spec if concrete is None else concrete.outputs
    assert spec_of_outputs is not None
    decided, answers = (frozenset(), ()) if concrete is None else (concrete.decided, concrete.answers)
    return Captured(model, graph, inputs, names, spec_of_outputs, constants, latent_argument(kwargs), decided, answers)


def _get_attr(graph: fx.Graph, target: str, like: fx.Node) -> fx.Node:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fx warns that the graph has no owner yet
        node = graph.get_attr(target)
    node.meta = dict(like.meta)
    return node
