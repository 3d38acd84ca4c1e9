"""The programs of a case, made of fakes: what `rfc_fx.transform` makes for a model on the device, flat, with examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from cases import Case
from fakes import every_index, moved, on_device
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import rfc
import rfc_fx
from benchmarks.coverage.specs import all_specs
from rfc.arguments import timestep_argument
from rfc_export.portable import STEP, Portable, portable_cond, portable_host
from rfc_export.weight_names import Weights
from rfc_fx.ir import layout
from rfc_fx.ir.layout import Layout
from rfc_fx.ir.progress import progress_slots
from rfc_fx.passes.build import CompiledSet, build
from rfc_fx.passes.lower_host import Host

STATIC = frozenset({"state", "pool", "clock", "progress", "log"})
"""Kinds of arguments that a context keeps at their addresses (`rfc_fx.runtime.context`)."""


@dataclass(frozen=True)
class Programs:
    """The programs by phase, where their state lies, and the mode of their fakes."""

    built: CompiledSet
    each: Mapping[str, Portable]
    layout: Layout
    mode: FakeTensorMode

    def static(self, phase: str) -> list[int]:
        """Indices of the arguments that keep their addresses."""
        return [index for index, spec in enumerate(self.each[phase].inputs) if spec.kind in STATIC]


def plain_program(family: str) -> tuple[fx.GraphModule, list[Tensor], FakeTensorMode]:
    """The model of a family as it is, as one program with its arguments."""
    spec = all_specs()[family]
    model = spec.model(layers=1)
    mode = fake_mode()
    arguments = on_device(spec.arguments(model), mode)
    with mode, torch.no_grad():
        exported = torch.export.export(moved(model, mode), (), arguments)
        return exported.graph_module, [*exported._graph_module_flat_inputs((), arguments)], mode


def fake_mode() -> FakeTensorMode:
    """Fakes that torch.export takes for its own."""
    return FakeTensorMode(shape_env=ShapeEnv(tracked_fakes=[]), allow_non_fake_inputs=True, static_shapes=True)


def programs_of(case: Case) -> Programs:
    """The programs of a case."""
    spec = all_specs()[case.family]
    model = spec.model(layers=case.layers)
    mode = fake_mode()
    arguments = on_device(spec.arguments(model), mode)
    return built_programs(moved(model, mode), arguments, case.caching, case.config, mode)


def built_programs(
    model: nn.Module, arguments: Mapping[str, Any], method: rfc.Method, config: rfc_fx.Config, mode: FakeTensorMode
) -> Programs:
    """The programs of a model of fakes."""
    with torch.no_grad(), patch.object(layout, "_own_storage", _likeness), patch.object(torch, "nonzero", every_index):
        with mode:
            built = build(model, arguments, method, config, timestep_argument(model.forward))
            weights = Weights()
            weights.take(built.captured)
            if isinstance(built.lowered, Host):
                return Programs(built, portable_host(built, built.lowered, weights), built.lowered.layout, mode)
            (step,) = portable_cond(built, weights, "in_place").values()
            module: Any = torch.export.export(step.module, step.examples, strict=True).module()
        for part in module.modules():
            for node in part.graph.nodes if isinstance(part, fx.GraphModule) else ():
                node.meta.pop("val", None)  # fakes of a mode of export's own
        return Programs(built, {STEP: replace(step, module=module)}, Layout(built.guarded.slots | progress_slots()), mode)


def _likeness(view: Tensor) -> Tensor:
    """A fake has no memory that another storage could stand for."""
    return torch.empty_strided(view.shape, view.stride(), dtype=view.dtype, device=view.device)
