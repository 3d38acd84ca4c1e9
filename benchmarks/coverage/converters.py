"""Operations without a converter of torch-tensorrt, in a class of each family: `python -m benchmarks.coverage.converters`.

Needs torch-tensorrt-rtx of torch's version, in an environment of its own (it pins an older TensorRT-RTX than the extra tensorrt-rtx has):
`pip install torch-tensorrt-rtx==2.13.0`. Its registry of converters is torch-tensorrt's own. Nothing is built, and no GPU is needed.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.metadata import version
from operator import getitem
from pathlib import Path
from typing import Annotated
from unittest.mock import patch

import torch
import typer

import rfc_export.tensorrt
import rfc_fx
from benchmarks.coverage.engines import VARIANTS, between, captured
from benchmarks.coverage.specs import FAMILIES, all_specs
from benchmarks.files import RESULTS, Record, read_json, write_json
from rfc_export.call_programs import CallPrograms
from rfc_export.portable import Portable
from rfc_export.weight_names import Weights
from rfc_fx.tools.summary_json import versions

RECORD = RESULTS / "engines" / "converters.json"
VARIANT = VARIANTS["onnx LogSNR"]


@contextmanager
def without_gpu() -> Iterator[None]:
    """torch-tensorrt imports where no GPU is: it asks for one, and its compiled runtime needs CUDA."""
    is_file = os.path.isfile
    with ExitStack() as stack:
        stack.enter_context(patch.multiple(torch.cuda, get_device_capability=lambda *_: (8, 9), current_device=lambda: 0))
        if not hasattr(torch._C, "_CudaDeviceProperties"):
            stack.enter_context(patch.object(torch._C, "_CudaDeviceProperties", object, create=True))
        stack.enter_context(patch.object(os.path, "isfile", lambda path: "libtorchtrt" not in str(path) and is_file(path)))
        yield


def programs_of(name: str) -> dict[str, Portable]:
    """The programs that torch-tensorrt would be given, by phase."""
    cached, arguments = captured(all_specs()[name], VARIANT)
    config = rfc_fx.Config(hoist=True)
    return CallPrograms.of(cached, arguments, config, rfc_export.tensorrt, Weights({}), 0).programs


def without_converter(program: Portable) -> tuple[int, dict[str, int]]:
    """Operations of a program after torch-tensorrt's own lowering, and how many of each it has no converter for."""
    dynamo = import_module("torch_tensorrt.dynamo")
    lowering = import_module("torch_tensorrt.dynamo.lowering")
    registry = import_module("torch_tensorrt.dynamo.conversion._ConverterRegistry").DYNAMO_CONVERTERS
    settings = dynamo.CompilationSettings(require_full_compilation=True, min_block_size=1)
    exported = torch.export.export(program.module, program.examples, strict=False)
    exported = lowering.pre_export_lowering(exported, settings)
    decompositions = import_module("torch_tensorrt.dynamo.lowering._decompositions")
    with patch.object(decompositions, "to_torch_device", lambda _: torch.device("cpu")):  # of the tensors that they make
        exported = exported.run_decompositions(lowering.get_decompositions(False, settings.decompose_attention, False))
    graph = lowering.post_lowering(exported.module(), settings).graph
    registry.set_compilation_settings(settings)
    nodes = [node for node in graph.nodes if node.op == "call_function" and node.target is not getitem]
    missing: dict[str, int] = {}
    for node in nodes:
        if node not in registry:
            missing[str(node.target)] = missing.get(str(node.target), 0) + 1
    return len(nodes), missing


def asked(name: str) -> Record:
    """By phase the operations, those without a converter, or why there is no answer."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        row: Record = {}
        for phase, program in programs_of(name).items():
            count, missing = without_converter(program)
            row[phase] = {"operations": count, "missing": missing}
        return row


def converters_asked(record: Record) -> str:
    """How many operations have a converter, and by operation the programs where it has none."""
    programs = {(name, phase): one for name, phases in record["rows"].items() for phase, one in phases.items()}
    count = sum(one["operations"] for one in programs.values())
    missing = sum(sum(one["missing"].values()) for one in programs.values())
    where: dict[str, list[str]] = {}
    for (name, phase), one in programs.items():
        for operation in one["missing"]:
            where.setdefault(operation, []).append(f"{name.removesuffix('Model')} {phase}")
    head = (
        f"torch-tensorrt {record['versions']['torch-tensorrt-rtx']}, asked without a GPU after its own lowering, has a converter for "
        f"{count - missing} of {count} operations in {len(programs)} programs of these classes (host dispatch, LogSNR)."
    )
    return "\n".join([head, *(["", *(f"* {operation}: {', '.join(names)}" for operation, names in where.items())] if where else [])])


def with_converters_asked(page: str, record: Record) -> str:
    """The page with what was asked between its marks."""
    return between(page, "engine converters", converters_asked(record))


def main(
    names: Annotated[list[str] | None, typer.Argument(help="classes (default: of the families those that are missing)")] = None,
    out: Annotated[Path, typer.Option(help="the record")] = RECORD,
) -> None:
    """Ask class by class; each is written as it comes."""
    torch.set_num_threads(1)
    with without_gpu():
        import_module("torch_tensorrt")
    here = versions() | {"torch-tensorrt-rtx": version("torch-tensorrt-rtx")}
    record: Record = read_json(out) if out.exists() else {"versions": here, "rows": {}}
    if record["versions"] != here:
        raise typer.BadParameter(f"{out}: holds rows of {record['versions']}, this is {here}; move it away first")
    for name in names or [name for name in FAMILIES if name not in record["rows"]]:
        with without_gpu():
            record["rows"][name] = asked(name)
        write_json(out, record)
        print(f"{name}: {record['rows'][name]}", flush=True)


if __name__ == "__main__":
    typer.run(main)
