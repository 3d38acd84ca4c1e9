"""Several calls, one engine: programs by signature, weights once on disk and in memory, others refused with the list."""

import gc
import shutil
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from digits_models import small_digits
from edited_engines import linked, packed, with_weights
from onnx_programs import build, parameters, small
from pipelines import qwen_image, run
from safetensors.torch import save_file
from torch import Tensor, nn

import rfc
import rfc_export
import rfc_fx
from rfc_export.added import Existing
from rfc_export.errors import ArtifactError, ExportError
from rfc_export.example_calls import CallRecorder, distinct
from rfc_export.manifest import MANIFEST, WEIGHTS
from rfc_export.onnx.writer import relocate
from rfc_export.parity import compare, moved
from rfc_export.specs import ProgramSpec
from rfc_export.weight_names import Weights
from rfc_export.weights import weight_spec
from rfc_fx.errors import SignatureError
from rfc_fx.zoo import digits_noise

pytest.importorskip("onnxruntime", reason="pip install 'rfc-fx[onnx]'")
pytestmark = [pytest.mark.onnx, pytest.mark.usefixtures("captured_once")]

METHOD = rfc.RFC(tau=0.15)
Call = dict[str, Any]


def call_of(rows: int) -> Call:
    return {
        "hidden_states": digits_noise(list(range(rows))),
        "timestep": torch.tensor([500] * rows),
        "class_labels": torch.tensor([3] * rows),
    }


def added(path: Path, call: Call, model: nn.Module, method: rfc.Method = METHOD) -> Path:
    return rfc_export.export(model, path, backend="onnx", example_inputs=call, method=method, add=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# ---- files -----------------------------------------------------------------------------------------------------------


def test_a_call_is_added_beside_what_was_there_and_the_weights_stay_one_file(onnx_small: Path, onnx_two_calls: Path) -> None:
    before, after = contents(onnx_small), contents(onnx_two_calls)
    assert {name for name in after if "weights" in name} == {WEIGHTS}
    assert all(after[name] == content for name, content in before.items() if name != MANIFEST)
    assert after.keys() - before.keys() == {name.replace(".onnx", "-1.onnx") for name in before if name.endswith(".onnx")}


@pytest.mark.parametrize(
    ("rows", "seed", "method", "text"),
    [
        (4, 0, METHOD, r"call 1 of those that are added has the shapes and values of one that the engine answers already \(its call 2\)"),
        (6, 0, rfc.RFC(tau=0.2), r"its method.schedule.tau is 0.15, that of the added calls 0.2;"),
        (6, 1, METHOD, "has other values than in the engine; add calls with the weights"),
    ],
)
def test_what_does_not_belong_to_the_engine_is_not_added(
    rows: int, seed: int, method: rfc.Method, text: str, onnx_two_calls: Path, tmp_path: Path
) -> None:
    path = linked(onnx_two_calls, tmp_path / "engine")
    before = contents(path)
    with pytest.raises(ExportError, match=text):
        added(path, call_of(rows), small_digits(seed), method)
    assert contents(path) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["engine"]


def test_facts_of_a_model_are_compared_as_the_file_has_them() -> None:
    facts = {"method": {}, "backend": "onnx", "model_class": "M", "model_config": {"axes": (1, 2)}}
    model = SimpleNamespace(model_class="M", config={"axes": [1, 2]}, dtype="float32")
    manifest: Any = SimpleNamespace(method={}, backend="onnx", config=None, built_with={}, target=None, model=model)
    there = Existing(Path("e"), manifest, {})
    there.check(facts)
    with pytest.raises(ExportError, match=r"e: its model_config.axes is \[1, 2\], that of the added calls \[1, 3\]"):
        there.check({**facts, "model_config": {"axes": (1, 3)}})
    with pytest.raises(ExportError, match=r"e: its model_config.depth is '\(absent\)', that of the added calls 3"):
        there.check({**facts, "model_config": {"axes": (1, 2), "depth": 3}})


def test_notes_of_diffusers_in_a_configuration_are_no_facts_of_the_model() -> None:
    model = SimpleNamespace(model_class="M", config={"axes": [1], "_use_default_values": ["a", "b"]}, dtype="float32")
    manifest: Any = SimpleNamespace(method={}, backend="onnx", config=None, built_with={}, target=None, model=model)
    Existing(Path("e"), manifest, {}).check({"model_config": {"axes": (1,), "_use_default_values": ["b", "a"]}})  # a set's order


def test_calls_are_added_to_an_engine_alone(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"added to an engine's folder, and there is none"):
        added(tmp_path / "nowhere", call_of(2), small_digits())
    (tmp_path / "e.pt2").touch()
    with pytest.raises(ExportError, match=r"e.pt2: is one file, and calls are added to a folder"):
        added(tmp_path / "e.pt2", call_of(2), small_digits())


class Outermost(nn.Module):
    """A module's output as a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 8)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.inner(x),)


def test_a_program_finds_its_weights_after_others_were_added_to_the_file(tmp_path: Path) -> None:
    import onnxruntime

    program, x = small(Outermost(), torch.randn(5, 64)), torch.randn(5, 64)
    path = build(tmp_path, program)

    def found() -> Tensor:
        return torch.from_numpy(onnxruntime.InferenceSession(str(path)).run(None, {"input:x0": x.numpy()})[0])

    before = found()
    save_file({**parameters(program.module), "0.first": torch.randn(1000)}, tmp_path / WEIGHTS)
    assert not torch.equal(found(), before)
    relocate(tmp_path, [ProgramSpec(file=path.name, entry="FULL", inputs=[], outputs=[], weights=program.weights, flops=0)])
    assert torch.equal(found(), before)


def test_equal_constants_of_several_calls_have_one_name_and_others_their_own() -> None:
    weights = Weights(stored={"k": weight_spec(torch.ones(2))})
    constants = [torch.ones(2), torch.zeros(2), torch.zeros(3), torch.zeros(2)]
    assert [weights.name("k", constant) for constant in constants] == ["k", "k.2", "k.3", "k.2"]
    assert set(weights.missing()) == {"k.2", "k.3"}


# ---- calls -----------------------------------------------------------------------------------------------------------


def test_each_call_has_the_model_s_decisions_also_interleaved_in_one_generation(onnx_two_calls: Path) -> None:
    engine, method = rfc_export.load(onnx_two_calls), rfc.RFC(tau=1.0)
    engine.method = method
    alone = []
    for rows in (2, 4):
        calls = [moved(call_of(rows), step, 8, "timestep") for step in range(8)]
        parity = compare(engine, rfc_fx.transform(small_digits(), method, example_inputs=calls[0]), calls)
        assert parity.phases == parity.expected_phases
        assert parity.worst < 1e-5
        with engine.generation():
            alone.append([engine(**call).sample for call in calls])
    with engine.generation() as generation:
        for step in range(8):
            for rows, expected in zip((2, 4), alone, strict=True):
                with engine.cache_context("cond" if rows == 2 else "uncond"):
                    assert torch.equal(engine(**moved(call_of(rows), step, 8, "timestep")).sample, expected[step])
        assert len(generation.contexts) == 2


def test_another_shape_is_refused_with_the_list_of_calls(onnx_two_calls: Path) -> None:
    engine = rfc_export.load(onnx_two_calls)
    with pytest.raises(SignatureError) as found:
        engine(**call_of(3))
    text = str(found.value)
    assert "answers 2 calls (hidden_states (2, 1, 8, 8) float32" in text
    assert "; hidden_states (4, 1, 8, 8) float32" in text
    assert "hidden_states (3, 1, 8, 8) float32" in text
    assert "--add" in text
    engine.close()
    with pytest.raises(SignatureError, match="was closed"):
        engine(**call_of(2))


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_engines_of_the_same_weights_share_one_set_of_tensors(onnx_small: Path, onnx_two_calls: Path, tmp_path: Path) -> None:
    first, second = rfc_export.load(onnx_small), rfc_export.load(onnx_two_calls)
    held = first.sets[0].weights
    assert all(loaded.weights is held for loaded in second.sets)
    other = with_weights(linked(onnx_small, tmp_path / "other"), {"proj_out_1.bias": held["proj_out_1.bias"] + 1})
    assert rfc_export.load(other).sets[0].weights is not held
    damaged = linked(onnx_small, tmp_path / "damaged")
    content = bytearray((damaged / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (damaged / WEIGHTS).unlink()
    (damaged / WEIGHTS).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"the file was changed"):  # though the weights are in memory
        rfc_export.load(damaged)
    is_held = weakref.ref(held)
    for engine in (first, second):
        engine.close()
    del held, engine, first, second
    gc.collect()
    assert is_held() is None


def test_mapped_weights_give_the_same_and_an_archive_has_none(onnx_small: Path, tmp_path: Path) -> None:
    expected = rfc_export.load(onnx_small)(**call_of(2)).sample
    copied = shutil.copytree(onnx_small, tmp_path / "copied")
    gc.collect()  # or the weights in memory would be taken
    assert torch.equal(rfc_export.load(copied, mapped=True)(**call_of(2)).sample, expected)
    gc.collect()
    with pytest.raises(ArtifactError, match=r"cannot be mapped; load it without mapped=True"):
        rfc_export.load(packed(copied, tmp_path / "a.pt2"), mapped=True)


# ---- a pipeline whose texts have different lengths -------------------------------------------------------------------


@pytest.mark.slow  # two captures, two sets of programs
def test_a_pipeline_whose_prompts_have_different_lengths_draws_with_one_engine(tmp_path: Path) -> None:
    pipe, prompt = qwen_image()
    arguments, model, method = {**prompt(), "true_cfg_scale": 2.0}, pipe.transformer, rfc.RFC(tau=0.3)
    pipe.transformer = recorder = CallRecorder(model)
    run(pipe, arguments, steps=1)
    calls = distinct(recorder.called, model)
    assert len(calls) == 2
    path = rfc_export.export(model, tmp_path / "engine", backend="onnx", example_inputs=calls, method=method)
    drawn, phases = [], []
    for denoiser in (rfc_fx.transform(model, method), engine := rfc_export.load(path)):
        pipe.transformer = denoiser
        drawn.append(run(pipe, arguments))
        phases.append({name: record.phases for name, record in denoiser.contexts.items()})
    assert phases[0] == phases[1]
    assert torch.allclose(*drawn, atol=1e-4)
    assert "ESTIMATE" in engine.stats.phases
