"""The engine in JavaScript, under node: the decisions and pixels of Python's engine."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from small_digits import digits_sampler
from torch import Tensor

import rfc
import rfc_export
import rfc_fx
from rfc_export.example_calls import Wanted
from rfc_export.pipeline_source import whole_pipeline
from rfc_export.whole import export_whole
from rfc_fx.tools.pipeline.call import CallOptions
from rfc_fx.zoo import digits_noise, load_digits, sample

SOURCE = Path(__file__).parents[2] / "export" / "web"

pytestmark = [
    pytest.mark.skipif(shutil.which("node") is None, reason="needs node"),
    pytest.mark.skipif(not (SOURCE / "node_modules" / "onnxruntime-web").is_dir(), reason="npm ci --prefix export/web --ignore-scripts"),
]

EXACT = 1e-5
"""Other kernels of the same library, and a sampler in other arithmetic."""

STEPS = 8


def under_node(kind: str, folder: Path, request: dict[str, Any], noise: Path, out: Path, steps: int) -> subprocess.CompletedProcess[str]:
    quick = "--liftoff-only"  # V8 optimizes 14 MB of wasm in the background otherwise, for longer than a drawing takes
    command = ["node", quick, str(SOURCE / "check.js"), kind, str(folder), json.dumps(request), str(noise), str(out), str(steps)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def drawn_under_node(folder: Path, noise: Tensor, steps: int, files: Path, *more: str) -> tuple[str, Tensor]:
    """Phases and pixels of one digit; `more`: "full" for every step in full."""
    (files / "noise").write_bytes(noise.numpy().tobytes())
    command = [
        "node",
        str(SOURCE / "check.js"),
        "digits",
        str(folder),
        '{"label": 3}',
        str(files / "noise"),
        str(files / "out"),
        str(steps),
        *more,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pixels = torch.frombuffer(bytearray((files / "out").read_bytes()), dtype=torch.float32)
    return json.loads(done.stdout)["phases"], pixels.reshape(noise.shape)


def test_javascript_takes_the_decisions_and_draws_the_pixels_of_the_engine(onnx_digits: Path, tmp_path: Path) -> None:
    engine = rfc_export.load(onnx_digits)
    expected = sample(engine, load_digits()[1], torch.tensor([3]), digits_noise([0]), steps=STEPS)
    phases, pixels = drawn_under_node(onnx_digits, digits_noise([0]), STEPS, tmp_path)
    assert phases == "".join(phase[0] for phase in engine.stats.phases)
    assert 0 < phases.count("E") < STEPS
    torch.testing.assert_close(pixels, expected, rtol=0, atol=EXACT)


@pytest.mark.slow  # an engine for it alone
@pytest.mark.parametrize("name", ["LogSNR", "Chebyshev", "FORA", "Spectrum", "Weighted"])
def test_rules_without_data_are_the_engines_own(name: str, digits: Any, digits_inputs: dict[str, Tensor], tmp_path: Path) -> None:
    scheduler = load_digits()[1]
    methods = {
        "LogSNR": rfc.LogSNR(scheduler, num_steps=20, nfc=6),
        "Chebyshev": rfc.Chebyshev(num_steps=20, nfc=6),
        "FORA": rfc.FORA(interval=4),
        "Spectrum": rfc.Spectrum(num_steps=20).with_nfc(8),
        "Weighted": rfc.Method(
            estimator=rfc.LinearPrediction(order=3),
            schedule=rfc.Weighted(full_steps=[0, 1, 4, 8, 13, 17], num_steps=20, weights=[(0.02 * (i % 7), -0.01, 0.3) for i in range(20)]),
            granularity="stack",
        ),
    }
    facts = {"method": methods[name], "sampler": digits_sampler()}
    path = rfc_export.export(digits, tmp_path / "engine", backend="onnx", example_inputs=digits_inputs, **facts)
    engine = rfc_export.load(path)
    expected = sample(engine, scheduler, torch.tensor([3]), digits_noise([0]), steps=20)
    phases, pixels = drawn_under_node(path, digits_noise([0]), 20, tmp_path)
    assert phases == "".join(phase[0] for phase in engine.stats.phases)
    torch.testing.assert_close(pixels, expected, rtol=0, atol=EXACT)


@pytest.mark.slow  # an engine for it alone
@pytest.mark.parametrize("name", ["RFC", "TeaCache", "EasyCache"])
def test_a_program_that_decides_takes_the_engines_decisions(
    name: str, digits: Any, digits_inputs: dict[str, Tensor], tmp_path: Path
) -> None:
    methods = {
        "RFC": rfc.RFC(tau=0.15),
        "TeaCache": rfc.TeaCache(threshold=0.15, num_steps=20),
        "EasyCache": rfc.EasyCache(threshold=0.05, num_steps=20),
    }
    facts = {"method": methods[name], "sampler": digits_sampler(), "config": rfc_fx.Config(dispatch="cond")}
    path = rfc_export.export(digits, tmp_path / "engine", backend="onnx", example_inputs=digits_inputs, **facts)
    engine, scheduler, noise = rfc_export.load(path), load_digits()[1], digits_noise([0])
    expected = sample(engine, scheduler, torch.tensor([3]), noise, steps=20)
    phases, pixels = drawn_under_node(path, noise, 20, tmp_path)
    assert phases == "".join(phase[0] for phase in engine.stats.phases)
    assert "E" in phases
    torch.testing.assert_close(pixels, expected, rtol=0, atol=EXACT)
    phases, pixels = drawn_under_node(path, noise, 20, tmp_path, "full")
    assert phases == "F" * 20
    torch.testing.assert_close(pixels, sample(digits, scheduler, torch.tensor([3]), noise, steps=20), rtol=0, atol=EXACT)


@pytest.mark.slow  # the shipped text-to-image model
def test_javascript_draws_the_emoji_of_the_whole_pipeline(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="pip install 'rfc-fx[text]'")
    prompt, steps, cpu = "an apple, flat style, on light blue", 12, torch.device("cpu")
    call = CallOptions(prompts=[prompt], negative_prompt="", assignments=["true_cfg_scale=3"])
    facts: dict[str, Any] = {"dtype": torch.float32, "device": cpu, "config": rfc_fx.Config(), "steps": steps}
    export_whole("emoji", tmp_path / "emoji", "onnx", Wanted(call=call), method=rfc.LogSNR(nfc=5), **facts)
    whole = whole_pipeline(tmp_path / "emoji", call, [0], lambda folder: folder.load(cpu))
    noise = torch.randn(1, 64, 16, generator=torch.Generator().manual_seed(0))
    arguments = {"negative_prompt": "", "true_cfg_scale": 3.0, "num_inference_steps": steps, "latents": noise, "output_type": "pt"}
    with torch.no_grad():
        expected = whole.pipeline.pipe(prompt, **arguments).images
    (tmp_path / "noise").write_bytes(noise.numpy().tobytes())
    done = under_node("emoji", tmp_path / "emoji", {"prompt": prompt}, tmp_path / "noise", tmp_path / "out", steps)
    assert done.returncode == 0, done.stderr
    phases = {context: "".join(phase[0] for phase in record.phases) for context, record in whole.model.contexts.items()}
    assert {json.loads(done.stdout)["phases"]} == set(phases.values())
    pixels = torch.frombuffer(bytearray((tmp_path / "out").read_bytes()), dtype=torch.float32).reshape(expected.shape)
    torch.testing.assert_close((pixels / 2 + 0.5).clamp(0, 1), expected, rtol=0, atol=EXACT)


def edited(folder: Path, target: Path, old: str, new: str) -> Path:
    shutil.copytree(folder, target)
    text = (target / "rfc.json").read_text()
    assert old in text
    (target / "rfc.json").write_text(text.replace(old, new, 1))
    return target


def test_what_is_damaged_or_not_known_is_refused_in_one_line(onnx_digits: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(onnx_digits, tmp_path / "changed")
    content = bytearray((changed / "full.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (changed / "full.onnx").write_bytes(content)
    cut = shutil.copytree(onnx_digits, tmp_path / "cut")
    (cut / "weights.safetensors").write_bytes((cut / "weights.safetensors").read_bytes()[:1000])
    cases = {
        changed: "full.onnx: SHA-256",
        cut: "weights.safetensors: 1000 bytes, expected",
        edited(onnx_digits, tmp_path / "newer", '"schema_version": 3', '"schema_version": 4'): "schema version 4, this page reads 3",
        edited(onnx_digits, tmp_path / "rule", '"rule": "RCS"', '"rule": "Change"'): "decision.rule: Change; this page knows RCS, Every",
        edited(onnx_digits, tmp_path / "other", '"backend": "onnx"', '"backend": "aoti"'): "rfc.json: for aoti; export with --backend onnx",
        edited(onnx_digits, tmp_path / "text", '"schema_version"', "schema"): "rfc.json: no JSON",
    }
    for folder, message in cases.items():
        done = under_node("digits", folder, {"label": 3}, Path("/dev/null"), tmp_path / "out", 3)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert message in done.stderr
