"""Gathered masks: truth values travel between ranks as bytes."""

from __future__ import annotations

import torch
from torch import fx

from rfc_fx.ir.ops import aten, value

GATHER, WAIT = "_c10d_functional.all_gather_into_tensor.default", "_c10d_functional.wait_tensor.default"


def gather_bytes(graph: fx.Graph) -> None:
    """Cast truth values to uint8 before they are gathered, and back behind.

    Inductor takes the number of ranks for an operand in its promotion of types: a gathered mask becomes int64, eight times the traffic, and
    the kernel of the attention that reads it is refused (torch 2.13; the plain model is, too).
    """
    for gather in [node for node in graph.nodes if str(node.target) == GATHER and value(node).dtype == torch.bool]:
        source = gather.args[0]
        with graph.inserting_before(gather):
            gather.replace_input_with(source, _cast(graph, source, torch.uint8))
        gather.meta["val"] = value(gather).to(torch.uint8)
        for wait in [user for user in gather.users if str(user.target) == WAIT]:
            wait.meta["val"] = value(gather)
            users = list(wait.users)
            with graph.inserting_after(wait):
                mask = _cast(graph, wait, torch.bool)
            for user in users:
                user.replace_input_with(wait, mask)


def _cast(graph: fx.Graph, of: fx.Node, dtype: torch.dtype) -> fx.Node:
    cast = graph.call_function(aten.to.dtype, (of, dtype))
    cast.meta = {**of.meta, "val": value(of).to(dtype)}
    return cast
