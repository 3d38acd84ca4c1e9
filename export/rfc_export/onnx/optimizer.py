"""Optimise ONNX models: onnxscript's passes without some of its rules, then what ONNX or its CPU provider lacks in other words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rfc_export.onnx.libraries import imported

ITERATIONS = 2
"""Of folding and rewriting, as in `onnxscript.optimizer.optimize_ir`."""

NO_OPS = "onnxscript.rewriter.rules.common._no_op"
"""Rules x + 0 = x, x * 1 = x and their kind. They match constants with a tolerance (abs_tol 1e-8, rel_tol 1e-5): `x / (y + 1e-15)` loses
its epsilon and becomes 0/0, a factor of 1.000005 vanishes. Exact no-ops are removed at capture (`rfc_fx.capture.clean`)."""

CLIPS = ("onnxscript.rewriter.rules.common._min_max_to_clip", "onnxscript.rewriter.rules.common._fuse_relus_clips")
"""Rules that name the bounds of a clip after its input: those of a second clip of one value take the place of the first one's."""

MOVES = {"Cast", "Concat", "Constant", "ConstantOfShape", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "If"}
MOVES |= {"Reshape", "Shape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
"""Operations without arithmetic, for which ONNX Runtime's CPU provider has kernels in bfloat16."""

SCATTERS = {"ScatterElements", "ScatterND"}
"""Operations that the provider refuses in float16 as well, when they run and add; most others it computes in float32 by itself."""

ORIGIN = "pkg.torch.onnx.fx_node"
"""Metadata of a node: the operation of torch that it is a part of."""


def optimize(model: Any, should_fold: Callable[[Any], bool | None], most_folded: int, widens: bool) -> None:
    """Fold, rewrite and tidy up a model of onnx_ir in place, as `optimize_ir` does, without the no-op rules and those of clips.

    `should_fold`: whether a node may become a constant, None for onnxscript's own choice. `most_folded`: elements of such a constant.
    `widens`: whether arithmetic is done in float32 for which the CPU provider has no kernel in bfloat16 or float16.
    """
    import onnx_ir as ir
    from onnxscript.optimizer import _constant_folding as folding

    common: Any = imported("onnx_ir.passes.common", "CommonSubexpressionEliminationPass")
    rewriter = imported("onnxscript.rewriter", "_DEFAULT_REWRITE_RULES")
    left_out = {id(rule) for module in (NO_OPS, *CLIPS) for rule in imported(module, "rules").rules}
    rules = [rule for rule in rewriter._DEFAULT_REWRITE_RULES if id(rule) not in left_out]
    fold = folding.FoldConstantsPass(
        shape_inference=True,
        input_size_limit=folding.DEFAULT_CONSTANT_FOLD_INPUT_SIZE_LIMIT,
        output_size_limit=most_folded,
        should_fold=should_fold,
    )
    once = [
        fold,
        rewriter.RewritePass(rules),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
    ]
    ir.passes.Sequential(
        common.InlinePass(),
        ir.passes.PassManager(once, steps=ITERATIONS, early_stop=True),
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
    )(model)
    for graph in {id(graph): graph for graph in (model.graph, *model.graph.subgraphs())}.values():
        _select_by_logic(graph)
        _index_with_long(graph)
        if widens:
            _widen(graph)
    common.NameFixPass()(model)  # last: a node made in a branch is named by the branch, which knows no names outside of it


def _select_by_logic(graph: Any) -> None:
    """Where(c, a, b) of truth values is (c and a) or (b and not c): ONNX Runtime's CPU provider has no kernel for the former."""
    import onnx_ir as ir

    for node in list(graph):
        if node.op_type != "Where" or node.domain or node.outputs[0].dtype != ir.DataType.BOOL:
            continue
        condition, chosen, other = node.inputs
        negated = ir.node("Not", [condition])
        left = ir.node("And", [condition, chosen])
        right = ir.node("And", [negated.outputs[0], other])
        either = ir.node("Or", [left.outputs[0], right.outputs[0]])
        old, new = node.outputs[0], either.outputs[0]
        new.type, new.shape, new.name = old.type, old.shape, old.name
        for made in (negated.outputs[0], left.outputs[0], right.outputs[0]):
            made.type = old.type
        graph.insert_before(node, [negated, left, right, either])
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        graph.remove(node, safe=True)


def _index_with_long(graph: Any) -> None:
    """GatherND and ScatterND take indices in int64 alone, torch's indexing takes int32 as well."""
    import onnx_ir as ir

    for node in list(graph):
        if node.op_type not in ("GatherND", "ScatterND") or node.domain or node.inputs[1].dtype != ir.DataType.INT32:
            continue
        _cast_input(graph, node, 1, ir.DataType.INT64)


def _widen(graph: Any) -> None:
    """Arithmetic in float32 between values in bfloat16, rounded after each of torch's operations, as its kernels do it."""
    import onnx_ir as ir

    for node in list(graph):
        if node.op_type in MOVES:
            continue
        lacking = {ir.DataType.BFLOAT16} | ({ir.DataType.FLOAT16} if node.op_type in SCATTERS else set())
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype in lacking:
                _cast_input(graph, node, index, ir.DataType.FLOAT)
        for value in node.outputs:
            if (narrow := value.dtype) not in lacking:
                continue
            value.type = ir.TensorType(ir.DataType.FLOAT)
            if not _stays_inside(node, value):
                cast = ir.node("Cast", [None], attributes={"to": narrow})
                rounded = cast.outputs[0]
                rounded.type, rounded.shape = ir.TensorType(narrow), value.shape
                ir.convenience.replace_all_uses_with(value, rounded, replace_graph_outputs=True)
                cast.replace_input_with(0, value)
                graph.insert_after(node, cast)


def _stays_inside(node: Any, value: Any) -> bool:
    """Whether a value is read by arithmetic of the same operation of torch alone."""
    origin = node.metadata_props.get(ORIGIN)
    readers = [use.node for use in value.uses()]
    return (
        origin is not None
        and not value.is_graph_output()
        and all(reader.metadata_props.get(ORIGIN) == origin and reader.op_type not in MOVES for reader in readers)
    )


def _cast_input(graph: Any, node: Any, index: int, dtype: Any) -> None:
    """Let an input of a node come as another type."""
    import onnx_ir as ir

    value = node.inputs[index]
    cast = ir.node("Cast", [value], attributes={"to": dtype})
    cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(dtype), value.shape
    graph.insert_before(node, cast)
    node.replace_input_with(index, cast.outputs[0])
