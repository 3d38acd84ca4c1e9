"""The C++ programs: built with the installed torch and ONNX Runtime, they take the engine's decisions and draw its picture."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from PIL import Image
from small_digits import digits_sampler, first_blocks
from torch import Tensor, nn

import rfc
import rfc_export
import rfc_fx
from rfc_export.example_calls import Wanted
from rfc_export.pipeline_source import whole_pipeline
from rfc_export.specs import BackendName
from rfc_export.whole import export_whole
from rfc_fx.tools.pipeline.call import CallOptions
from rfc_fx.zoo import digits_noise, load_digits

pytestmark = [
    pytest.mark.slow,  # an engine for it alone
    pytest.mark.compile,
    pytest.mark.skipif(shutil.which("cmake") is None or shutil.which("g++") is None, reason="needs cmake and g++"),
    pytest.mark.skipif(find_spec("nlohmann_json") is None, reason="pip install nlohmann-json"),
]

SOURCE = Path(__file__).parents[2] / "export" / "cpp"

EXACT = 1e-5
"""The same programs on the same numbers; only the sampler's few products could be rounded otherwise."""

MISSING = Path("no/such/file")

Draw = Callable[[Any, int], Tensor]


NO_HEADERS = "onnxruntime_cxx_api.h: not found; apt install libonnxruntime-dev"


def configured(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    torch_at = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    python = f"-DPython3_EXECUTABLE={sys.executable}"
    command = ["cmake", "-S", str(SOURCE), "-B", str(folder), torch_at, python, "-DCMAKE_BUILD_TYPE=None", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@dataclass(frozen=True)
class Programs:
    """The programs, built without optimization; with ONNX Runtime where its headers are."""

    folder: Path
    has_onnx: bool

    def engine(self, request: pytest.FixtureRequest, backend: str) -> Path:
        """The small digits model as an engine, where it can be opened."""
        if backend == "onnx" and not self.has_onnx:
            pytest.skip("apt install libonnxruntime-dev, or CMAKE_INCLUDE_PATH=FOLDER with the headers of ONNX Runtime")
        path: Path = request.getfixturevalue(f"{backend}_digits")
        return path


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    folder = tmp_path_factory.mktemp("cpp")
    done = configured(folder, "-DRFC_ENGINE_ONNX=ON")
    has_onnx = done.returncode == 0
    if not has_onnx:
        assert NO_HEADERS in done.stderr.replace("\n  ", " "), done.stderr
        done = configured(folder, "-DRFC_ENGINE_ONNX=OFF")
    assert done.returncode == 0, done.stderr
    done = subprocess.run(["cmake", "--build", str(folder), "-j", "2"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return Programs(folder, has_onnx)


@pytest.fixture(scope="module")
def program(programs: Programs) -> Path:
    return programs.folder / "sample_digits"


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program), *map(str, arguments)], capture_output=True, text=True, check=False)


def numbers(file: Path, like: Tensor) -> Tensor:
    return torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.float32).reshape(like.shape)


def phases(engine: rfc_export.Engine) -> str:
    return "".join(phase[0] for phase in engine.stats.phases)


@pytest.mark.parametrize("backend", ["aoti", "onnx"])
def test_the_program_draws_the_engines_picture_with_the_engines_decisions(
    programs: Programs, program: Path, backend: str, request: pytest.FixtureRequest, draw: Draw, tmp_path: Path
) -> None:
    path = programs.engine(request, backend)
    engine = rfc_export.load(path, trust=True)
    expected = draw(engine, 0)
    noise, floats, picture = tmp_path / "noise", tmp_path / "floats", tmp_path / "digit.png"
    noise.write_bytes(digits_noise([0]).numpy().tobytes())
    done = run(program, path, "--noise", noise, "--floats", floats, "--out", picture)
    assert done.returncode == 0, done.stderr
    assert f"phases {phases(engine)}\nnfc {engine.stats.nfc} of 50\n" in done.stdout
    torch.testing.assert_close(numbers(floats, expected), expected, rtol=EXACT, atol=EXACT)
    with Image.open(picture) as image:
        pixels = torch.tensor(list(image.tobytes())).reshape(8, 8)
    assert (pixels - (expected[0, 0].clamp(-1, 1) + 1) * 127.5).abs().max() <= 0.51
    seeded = tmp_path / "seeded"
    assert run(program, path, "--seed", 0, "--floats", seeded, "--out", picture).returncode == 0
    assert seeded.read_bytes() == floats.read_bytes()  # torch's generator gives C++ the same noise


def placed_methods() -> dict[str, rfc.Method]:
    """Lists of nine full steps of 50."""
    steps = [0, 1, 5, 11, 18, 26, 34, 42, 47]
    weights = [(0.02 * (step % 7), -0.01 * (step % 3), 0.3) for step in range(50)]
    return {
        "log-snr": rfc.LogSNR(load_digits()[1], num_steps=50, nfc=9),
        "chebyshev": rfc.Chebyshev(num_steps=50, nfc=9),
        "spectrum": rfc.Spectrum(num_steps=50).with_nfc(9),
        "weighted": rfc.Method(
            estimator=rfc.LinearPrediction(order=3),
            schedule=rfc.Weighted(full_steps=steps, num_steps=50, weights=weights),
            granularity="stack",
        ),
    }


@pytest.mark.parametrize("backend", ["aoti", "onnx"])
@pytest.mark.parametrize("method", ["log-snr", "chebyshev", "spectrum", "weighted"])
def test_the_program_places_full_steps_as_the_engine_does(
    programs: Programs,
    program: Path,
    method: str,
    backend: BackendName,
    request: pytest.FixtureRequest,
    digits: nn.Module,
    digits_inputs: dict[str, Tensor],
    draw: Draw,
    tmp_path: Path,
) -> None:
    programs.engine(request, backend)
    facts = {
        "example_inputs": digits_inputs,
        "method": placed_methods()[method],
        "sampler": digits_sampler(),
        "config": rfc_fx.Config(hoist=False),
    }
    path = rfc_export.export(digits, tmp_path / "engine", backend=backend, **facts)
    engine = rfc_export.load(path, trust=True)
    expected = draw(engine, 0)
    floats = tmp_path / "floats"
    done = run(program, path, "--seed", 0, "--floats", floats, "--out", tmp_path / "digit.png")
    assert done.returncode == 0, done.stderr
    assert f"phases {phases(engine)}\nnfc 9 of 50\n" in done.stdout
    torch.testing.assert_close(numbers(floats, expected), expected, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("backend", ["aoti", "onnx"])
@pytest.mark.parametrize(
    "method",
    [rfc.RFC(tau=0.15), rfc.FirstBlockCache(threshold=0.1), rfc.LogSNR(load_digits()[1], num_steps=50, nfc=9)],
    ids=lambda method: method.name,
)
def test_a_program_with_the_decision_in_it_decides_as_the_engine_does(
    programs: Programs,
    program: Path,
    method: rfc.Method,
    backend: BackendName,
    request: pytest.FixtureRequest,
    digits_inputs: dict[str, Tensor],
    draw: Draw,
    tmp_path: Path,
) -> None:
    programs.engine(request, backend)
    facts = {"example_inputs": digits_inputs, "method": method, "sampler": digits_sampler(), "config": rfc_fx.Config(dispatch="cond")}
    path = rfc_export.export(first_blocks(2)[0], tmp_path / "engine", backend=backend, **facts)
    engine = rfc_export.load(path, trust=True)
    expected = draw(engine, 0)
    floats = tmp_path / "floats"
    done = run(program, path, "--seed", 0, "--floats", floats, "--out", tmp_path / "digit.png")
    assert done.returncode == 0, done.stderr
    assert 0 < engine.stats.nfc < 50
    assert f"phases {phases(engine)}\nnfc {engine.stats.nfc} of 50\n" in done.stdout
    torch.testing.assert_close(numbers(floats, expected), expected, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize(("backend", "dispatch"), [("onnx", "host"), ("onnx", "cond"), ("aoti", "host")])
def test_a_whole_folder_draws_the_pipelines_picture_from_token_ids(
    programs: Programs, backend: BackendName, dispatch: Literal["host", "cond"], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    pytest.importorskip("transformers", reason="pip install 'rfc-fx[text]'")
    programs.engine(request, backend)
    prompt, steps, cpu = "an apple, flat style, on light blue", 12, torch.device("cpu")
    call = CallOptions(prompts=[prompt], negative_prompt="", assignments=["true_cfg_scale=3"])
    facts: dict[str, Any] = {"dtype": torch.float32, "device": cpu, "config": rfc_fx.Config(dispatch=dispatch), "steps": steps}
    export_whole("emoji", tmp_path / "emoji", backend, Wanted(call=call), method=rfc.LogSNR(nfc=5), **facts)
    whole = whole_pipeline(tmp_path / "emoji", call, [0], lambda folder: folder.load(cpu, trust=True))
    pipe = whole.pipeline.pipe
    arguments = {"negative_prompt": "", "true_cfg_scale": 3.0, "num_inference_steps": steps, "output_type": "pt"}
    with torch.no_grad():
        expected = pipe(prompt, generator=torch.Generator().manual_seed(0), **arguments).images
    options: list[str] = []
    for option, text in (("ids", prompt), ("negative-ids", "")):
        for suffix, tokenizer in (("", pipe.tokenizer), ("-2", pipe.tokenizer_2)):
            options += [f"--{option}{suffix}", ",".join(map(str, tokenizer(text)["input_ids"]))]
    floats, picture = tmp_path / "floats", tmp_path / "picture.png"
    draw_prompt = programs.folder / "draw_prompt"
    done = run(draw_prompt, tmp_path / "emoji", *options, "--steps", steps, "--cfg", 3, "--floats", floats, "--out", picture)
    assert done.returncode == 0, done.stderr
    decisions = {"".join(phase[0] for phase in record.phases) for record in whole.model.contexts.values()}
    assert decisions == {done.stdout.split("\n")[0].removeprefix("phases ")}
    torch.testing.assert_close((numbers(floats, expected) / 2 + 0.5).clamp(0, 1), expected, rtol=0, atol=EXACT)
    with Image.open(picture) as image:
        pixels = torch.tensor(list(image.tobytes())).reshape(64, 64, 3)
    assert (pixels - expected[0].permute(1, 2, 0) * 255).abs().max() <= 0.51
    for wrong, message in (
        (options[2:], "--ids: expected 1 to 16 token ids"),
        ([*options, "--width", 32], "hidden_states: expected float32 of shape 1 64 16"),
        ([*options, "--width", 33], "--width: expected a multiple of 8"),
        ([*options, "--ids", "1,2,cat"], "--ids: expected a number, got cat"),
    ):
        done = run(draw_prompt, tmp_path / "emoji", *wrong)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert message in done.stderr


def test_an_onnx_program_that_is_not_the_manifests_is_refused(programs: Programs, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    path = shutil.copytree(programs.engine(request, "onnx"), tmp_path / "engine")
    shutil.copy(path / "full.onnx", path / "estimate.onnx")
    manifest = json.loads((path / "rfc.json").read_text())
    manifest["files"]["estimate.onnx"] = manifest["files"]["full.onnx"]
    (path / "rfc.json").write_text(json.dumps(manifest))
    done = run(programs.folder / "sample_digits", path)
    assert done.returncode == 1
    assert "estimate.onnx: " in done.stderr
    assert "rfc.json says" in done.stderr


def test_an_onnx_engine_is_refused_by_a_program_without_onnx_runtime(programs: Programs, onnx_digits: Path) -> None:
    if programs.has_onnx:
        pytest.skip("built with ONNX Runtime")
    done = run(programs.folder / "sample_digits", onnx_digits)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "for ONNX Runtime, which this program was built without; build it with -DRFC_ENGINE_ONNX=ON" in done.stderr


def test_what_is_damaged_or_not_known_is_refused_in_one_line(program: Path, aoti_digits: Path, tmp_path: Path) -> None:
    cut = shutil.copytree(aoti_digits, tmp_path / "cut")
    with (cut / "weights.safetensors").open("r+b") as file:
        file.truncate(1000)
    no_json = shutil.copytree(aoti_digits, tmp_path / "no_json")
    (no_json / "rfc.json").write_text('{"schema_version": [1, }')
    newer = shutil.copytree(aoti_digits, tmp_path / "newer")
    text = (newer / "rfc.json").read_text()
    (newer / "rfc.json").write_text(text.replace('"schema_version": 3', '"schema_version": 4', 1))
    elsewhere = shutil.copytree(aoti_digits, tmp_path / "elsewhere")
    manifest = json.loads(text)
    manifest["target"]["device"] = "cuda"
    (elsewhere / "rfc.json").write_text(json.dumps(manifest))
    for given, message in (
        ((elsewhere,), "for cuda, and this LibTorch has none here; export on a CPU, or build with a LibTorch for CUDA"),
        ((cut,), "weights.safetensors: missing, or of another length"),
        ((no_json,), "rfc.json: no JSON: [json.exception.parse_error.101] parse error at line 1, column 24"),
        ((newer,), "of another schema version than 3; export again"),
        ((tmp_path / "nothing",), "rfc.json: cannot be read; pass the folder of an artefact"),
        ((aoti_digits, "--classes", "1,2"), "--classes: this engine draws 1 at once"),
        ((aoti_digits, "--steps", "many"), "--steps: expected a number, got many"),
        ((aoti_digits, "--noise", MISSING), f"{MISSING}: expected 256 bytes"),
    ):
        done = run(program, *given)
        assert done.returncode == 1
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
