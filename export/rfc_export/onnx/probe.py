"""Probe of a provider: whether it computes in a type, asked of a model of one node before anything is built."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from rfc_export.errors import BackendError, short
from rfc_export.methods import name_of
from rfc_export.onnx.declared import ELEMENT_TYPES
from rfc_export.onnx.libraries import OPSET, PROVIDERS, WIDENING, imported


def check_types(device: torch.device, dtypes: Iterable[torch.dtype]) -> None:
    """BackendError where the provider of the device has no arithmetic in a type that a model computes in, and no way around."""
    runtime, helper = imported("onnxruntime", "InferenceSession"), imported("onnx.helper", "make_model")
    for dtype in set(dtypes) - ({torch.bfloat16} if device.type in WIDENING else set()):
        names = [helper.make_tensor_value_info(name, ELEMENT_TYPES[dtype], [1]) for name in "xy"]
        graph = helper.make_graph([helper.make_node("Mul", ["x", "x"], ["y"])], "probe", names[:1], names[1:])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
        options = runtime.SessionOptions()
        options.log_severity_level = 4
        try:
            runtime.InferenceSession(model.SerializeToString(), options, providers=[PROVIDERS[device.type]])
        except Exception as error:  # onnxruntime's errors share no base class
            raise BackendError(
                f"onnx: {PROVIDERS[device.type]} does not compute in {name_of(dtype)}, the type of the model ({short(error)}); "
                "export the model in float32 or float16, or with backend='aoti'"
            ) from error
