"""Fuzzing: hostile files of every kind that the package reads, each try in a fast path of this process, bounded in time and memory.

python tests/fuzzing.py --tries 100000 [KIND...] prints tries, what was refused and accepted, failures, seconds and memory (make fuzz).
"""

import argparse
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

sys.path.append(str(Path(__file__).parent))

import torch
from diffusers import DiTTransformer2DModel
from mutations import Mutate, changed_bytes, json_mutations

import rfc
from rfc.encoding import encode_method
from rfc.predictor import PredictorError, read_config
from rfc_export.aoti_constants import declared_constants
from rfc_export.calls import ExpectedCall
from rfc_export.engine_files import EngineFiles, opened
from rfc_export.loaded import LoadedProgram, check_phases, loaded_set
from rfc_export.manifest import MANIFEST, WEIGHTS
from rfc_export.methods import decode_method
from rfc_export.onnx.declared import checked_weights
from rfc_export.reading import read_manifest
from rfc_export.runtime import Engine
from rfc_export.seal import sealed
from rfc_export.target import check_target
from rfc_export.weights import weight_spec, weights_of
from rfc_fx.errors import RFCError
from rfc_fx.io.method_file import read_method
from rfc_fx.tools.load import quiet
from rfc_fx.tools.model_files import check_files, check_sizes
from rfc_fx.zoo import DIGITS_PREDICTOR

SECONDS, MEBIBYTES = 2, 256
"""Bounds of one try: seconds of the processor, and growth of the process beyond what it had before all tries."""


SMALL_DIT = {
    "num_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 2,
    "sample_size": 8,
    "num_embeds_ada_norm": 10,
}
"""Settings of a model whose folder is read: one block, as every try builds it (without memory)."""


class Hang(BaseException):
    """A try that takes too long."""


class Kind(NamedTuple):
    """A kind of file: how it is mutated, and what reads it."""

    mutate: Mutate
    read: Callable[[bytes], object]


@dataclass
class Record:
    """What became of the tries of one kind."""

    tries: int = 0
    refused: int = 0
    accepted: int = 0
    failures: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    grown_mib: float = 0.0


def run(kind: Kind, tries: int, seed: int = 0) -> Record:
    """Try so many mutations; every one is this package's error or a result."""
    record, before = Record(), _peak_mib()
    previous = signal.signal(signal.SIGPROF, _hang)
    try:
        for number in range(tries):
            content = kind.mutate(random.Random(f"{seed}-{number}"))
            start = time.process_time()
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                kind.read(content)
                record.accepted += 1
            except (RFCError, PredictorError):
                record.refused += 1
            except (Exception, Hang) as error:
                record.failures.append(f"{seed}-{number}: {type(error).__name__}: {ascii(str(error))[:200]}: {content[:200]!r}")
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
            record.tries += 1
            record.slowest_s = max(record.slowest_s, time.process_time() - start)
    finally:
        signal.signal(signal.SIGPROF, previous)
    record.grown_mib = _peak_mib() - before
    return record


def _hang(*_: Any) -> None:
    raise Hang(f"{SECONDS} s")


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# ---- what is read ----------------------------------------------------------------------------------------------------


def kinds(engine: Path, folder: Path) -> dict[str, Kind]:
    """Every kind of file, from an ONNX engine; files are written to `folder`."""
    with opened(engine) as files:
        manifest = read_manifest(files)
        weights = weights_of("w", files.read(WEIGHTS, manifest.files[WEIGHTS]), manifest.weights)
    import json

    record = json.loads((engine / MANIFEST).read_text())
    work = folder / "engine"
    work.mkdir(parents=True)

    def manifests(content: bytes) -> object:
        (work / MANIFEST).write_bytes(content)
        found = read_manifest(EngineFiles(work))
        method = decode_method(found.method)
        check_phases(found, method)
        method.schedule.numbers()
        check_target("engine", found, torch.device("cpu"))
        sets = []
        for number, one in enumerate(found.sets):
            programs = {phase: LoadedProgram(phase, spec, lambda *_: []) for phase, spec in one.programs.items()}
            there = {leaf.fixed: torch.zeros(1) for leaf in one.call.leaves if leaf.fixed is not None}
            sets.append(loaded_set(found, number, programs, {**weights, **there}, torch.device("cpu")))
        return Engine(sets, method)

    small = {name: weights[name] for name in sorted(weights, key=lambda name: weights[name].numel())[:6]}
    specs = {name: weight_spec(tensor) for name, tensor in small.items()}
    stored = _safetensors(small)

    def header(generator: random.Random) -> bytes:
        length = int.from_bytes(stored[:8], "little")
        if generator.randrange(2):
            return changed_bytes(stored, generator)
        text = json_mutations([json.loads(stored[8 : 8 + length])])(generator)
        return len(text).to_bytes(8, "little") + text + stored[8 + length :]

    archive = _archive(folder)
    program = (engine / "estimate.onnx").read_bytes()
    machine = _machine_code()

    def archives(content: bytes) -> None:
        (folder / "a.pt2").write_bytes(content)
        with opened(folder / "a.pt2") as found:
            found.manifest()
            for name, spec in archive[1].items():
                found.read(name, spec)

    def methods(content: bytes) -> None:
        (folder / "m.json").write_bytes(content)
        method = read_method(folder / "m.json")
        method.schedule.numbers()
        assert str(method)
        assert method.schedule.branches

    quiet()  # diffusers warns of every setting that it does not know
    predictor, model = folder / "predictor", folder / "model"
    shutil.copytree(DIGITS_PREDICTOR, predictor)
    DiTTransformer2DModel(**SMALL_DIT).save_pretrained(model)

    def predictors(content: bytes) -> None:
        (predictor / "predictor.json").write_bytes(content)
        read_config(predictor)

    def models(content: bytes) -> None:
        (model / "config.json").write_bytes(content)
        check_files(model, allow_pickle=False)
        check_sizes(model)

    trees = [one["call"][part] for one in record["sets"] for part in ("tree", "outputs")]

    def calls(content: bytes) -> None:
        spec = manifest.call.model_copy(update={"tree": content.decode("utf-8", "replace"), "outputs": content.decode("utf-8", "replace")})
        ExpectedCall(spec, "model", {})

    return {
        "manifest": Kind(json_mutations([record], sealed), manifests),
        "weights": Kind(header, lambda content: weights_of("w", torch.frombuffer(bytearray(content or b"\0"), dtype=torch.uint8), specs)),
        "archive": Kind(lambda generator: changed_bytes(archive[0], generator), archives),
        "program": Kind(
            lambda generator: changed_bytes(program, generator),
            lambda content: checked_weights("p", content, manifest.sets[0].programs["ESTIMATE"], manifest.weights),
        ),
        "machine code": Kind(lambda generator: changed_bytes(machine, generator), lambda content: declared_constants("p", content)),
        "call": Kind(json_mutations([json.loads(tree) for tree in trees]), calls),
        "method": Kind(json_mutations([_method_file(one) for one in _methods()]), methods),
        "predictor": Kind(json_mutations([json.loads((predictor / "predictor.json").read_text())]), predictors),
        "model": Kind(json_mutations([json.loads((model / "config.json").read_text())]), models),
    }


def _method_file(method: rfc.Method) -> dict[str, Any]:
    return {"schema_version": 1, "method": encode_method(method), "measured": {}}


def _methods() -> list[rfc.Method]:
    return [
        *(rfc.RFC(tau=0.1), rfc.SpeCa(), rfc.TeaCache(threshold=0.1), rfc.FORA(interval=4), rfc.ToCa(interval=3), rfc.DuCa()),
        *(rfc.TaylorSeer(interval=3, order=2), rfc.HiCache(interval=3), rfc.Chebyshev(nfc=8), rfc.FirstBlockCache(threshold=0.1)),
        *(rfc.LogSNR(lambdas=[float(-level) for level in range(9)], nfc=4), rfc.LogSNR(nfc=8), rfc.DiCache(threshold=0.1)),
        rfc.MagCache(ratios=[1.0, 0.9, 0.8], threshold=0.1),
    ]


def _safetensors(tensors: dict[str, torch.Tensor]) -> bytes:
    from safetensors.torch import save

    return save(tensors)


def _archive(folder: Path) -> tuple[bytes, dict[str, Any]]:
    import zipfile

    from rfc_export.artifact import file_spec

    path, specs = folder / "whole.pt2", {}
    with zipfile.ZipFile(path, "w") as made:
        for name, content in ((MANIFEST, b"{}" * 50), (WEIGHTS, b"w" * 500), ("full.onnx", b"f" * 300)):
            (folder / name).write_bytes(content)
            made.write(folder / name, f"rfc/{name}")
            if name != MANIFEST:
                specs[name] = file_spec(folder / name)
    return path.read_bytes(), specs


def _machine_code() -> bytes:
    import io
    import zipfile

    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as made:
        made.writestr(
            "programs/data/aotinductor/FULL/c.wrapper.cpp",
            "constants_info_[0].dtype = cached_torch_dtype_float32;\nconstants_info_[0].shape = {2, 3};\n"
            'constants_info_[0].original_fqn = "w";\n',
        )
    return stream.getvalue()


def main() -> None:
    """Fuzz, and print a line for each kind."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("kinds", nargs="*")
    parser.add_argument("--tries", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        from digits_models import small_digits

        import rfc_export
        from rfc_fx.zoo import digits_noise

        inputs = {"hidden_states": digits_noise([0, 0]), "timestep": torch.tensor([500, 500]), "class_labels": torch.tensor([3, 10])}
        four = {name: torch.cat([value, value]) for name, value in inputs.items()}
        engine = rfc_export.export(small_digits(), folder / "onnx", backend="onnx", example_inputs=[inputs, four], method=rfc.RFC(tau=0.15))
        for kind, one in kinds(engine, folder / "work").items():
            if arguments.kinds and kind not in arguments.kinds:
                continue
            start = time.process_time()
            record = run(one, arguments.tries, arguments.seed)
            failed += len(record.failures) + (record.grown_mib > MEBIBYTES)
            print(
                f"{kind}: {record.tries} tries, {record.refused} refused, {record.accepted} accepted, {len(record.failures)} failures, "
                f"slowest {record.slowest_s:.2f} s, memory +{record.grown_mib:.0f} MiB, {time.process_time() - start:.0f} s",
                flush=True,
            )
            for failure in record.failures[:20]:
                print("  ", failure, flush=True)
    raise SystemExit(min(failed, 1))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
