"""The C++ program: built with the installed torch, it takes the engine's decisions and draws its picture."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from small_digits import digits_sampler
from torch import Tensor, nn

import rfc
import rfc_export
import rfc_fx
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


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, built without optimization."""
    folder = tmp_path_factory.mktemp("cpp")
    torch_at = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    python = f"-DPython3_EXECUTABLE={sys.executable}"
    made = ["cmake", "-S", str(SOURCE), "-B", str(folder), torch_at, python, "-DCMAKE_BUILD_TYPE=None"]
    for command in (made, ["cmake", "--build", str(folder), "-j", "2"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder / "sample_digits"


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program), *map(str, arguments)], capture_output=True, text=True, check=False)


def phases(engine: rfc_export.Engine) -> str:
    return "".join(phase[0] for phase in engine.stats.phases)


def test_the_program_draws_the_engines_picture_with_the_engines_decisions(
    program: Path, aoti_digits: Path, draw: Draw, tmp_path: Path
) -> None:
    engine = rfc_export.load(aoti_digits)
    expected = draw(engine, 0)
    noise, floats, picture = tmp_path / "noise", tmp_path / "floats", tmp_path / "digit.pgm"
    noise.write_bytes(digits_noise([0]).numpy().tobytes())
    done = run(program, aoti_digits, "--noise", noise, "--floats", floats, "--out", picture)
    assert done.returncode == 0, done.stderr
    assert f"phases {phases(engine)}\nnfc {engine.stats.nfc} of 50\n" in done.stdout
    got = torch.frombuffer(bytearray(floats.read_bytes()), dtype=torch.float32).reshape(expected.shape)
    torch.testing.assert_close(got, expected, rtol=EXACT, atol=EXACT)
    with Image.open(picture) as image:
        pixels = torch.tensor(list(image.tobytes())).reshape(8, 8)
    assert (pixels - (expected[0, 0].clamp(-1, 1) + 1) * 127.5).abs().max() <= 0.51
    seeded = tmp_path / "seeded"
    assert run(program, aoti_digits, "--seed", 0, "--floats", seeded, "--out", picture).returncode == 0
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


@pytest.mark.parametrize("method", ["log-snr", "chebyshev", "spectrum", "weighted"])
def test_the_program_places_full_steps_as_the_engine_does(
    program: Path, method: str, digits: nn.Module, digits_inputs: dict[str, Tensor], draw: Draw, tmp_path: Path
) -> None:
    facts = {
        "example_inputs": digits_inputs,
        "method": placed_methods()[method],
        "sampler": digits_sampler(),
        "config": rfc_fx.Config(hoist=False),
    }
    path = rfc_export.export(digits, tmp_path / "engine", backend="aoti", **facts)
    engine = rfc_export.load(path, trust=True)
    expected = draw(engine, 0)
    floats = tmp_path / "floats"
    done = run(program, path, "--seed", 0, "--floats", floats, "--out", tmp_path / "digit.pgm")
    assert done.returncode == 0, done.stderr
    assert f"phases {phases(engine)}\nnfc 9 of 50\n" in done.stdout
    got = torch.frombuffer(bytearray(floats.read_bytes()), dtype=torch.float32).reshape(expected.shape)
    torch.testing.assert_close(got, expected, rtol=EXACT, atol=EXACT)


def test_what_is_damaged_or_not_known_is_refused_in_one_line(program: Path, aoti_digits: Path, tmp_path: Path) -> None:
    cut = shutil.copytree(aoti_digits, tmp_path / "cut")
    with (cut / "weights.safetensors").open("r+b") as file:
        file.truncate(1000)
    no_json = shutil.copytree(aoti_digits, tmp_path / "no_json")
    (no_json / "rfc.json").write_text('{"schema_version": [1, }')
    newer = shutil.copytree(aoti_digits, tmp_path / "newer")
    text = (newer / "rfc.json").read_text()
    (newer / "rfc.json").write_text(text.replace('"schema_version": 3', '"schema_version": 4', 1))
    for given, message in (
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
