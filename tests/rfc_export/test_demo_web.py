"""`make demo-web` in one go on a fresh copy: what it builds and serves draws in headless Chromium as Python's engines do."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import torch
from browsers import EXACT, NEAR, NEEDS, SOFTWARE_GPU, browsing, drawn

import rfc_export
from rfc_export.pipeline_source import whole_pipeline
from rfc_fx.tools.pipeline.call import CallOptions
from rfc_fx.zoo import digits_noise, load_digits, sample

pytestmark = [*NEEDS, pytest.mark.skipif(shutil.which("npm") is None or shutil.which("make") is None, reason="needs npm and make")]

ROOT = Path(__file__).parents[2]
SOURCES = ("Makefile", "pyproject.toml", "constraints.txt", "rfc", "rfc_fx", "export")
PROMPT, STEPS = "an apple, flat style, on light blue", 28
MINUTES = 10


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """(address, folder) of what `make demo-web` serves, in a copy without its outputs."""
    pytest.importorskip("transformers", reason="pip install 'rfc-fx[text]'")
    copy = tmp_path_factory.mktemp("demo")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
        else:
            shutil.copy(ROOT / name, copy / name)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    # the environment of this test stands for the one that make installs
    command = ["make", "--old-file=.venv/.installed", f"BIN={Path(sys.executable).parent}", f"PORT={port}", "demo-web"]
    paths = os.pathsep.join([str(copy), str(copy / "export")])
    with (copy / "log").open("w") as log:
        make = subprocess.Popen(
            command, cwd=copy, env=os.environ | {"PYTHONPATH": paths}, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{port}/"
        _wait_for(address, make, copy / "log")
        yield address, copy / "out" / "web"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(make.pid, signal.SIGTERM)
        make.wait()


def _wait_for(address: str, make: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(MINUTES * 60):
        assert make.poll() is None, log.read_text()[-3000:]
        try:
            urlopen(address).close()
        except URLError:
            time.sleep(1)
        else:
            return
    pytest.fail(f"not served after {MINUTES} minutes: {log.read_text()[-3000:]}")


@pytest.fixture
def page(demo: tuple[str, Path]) -> Iterator[Any]:
    with browsing(*SOFTWARE_GPU) as browser:
        page = browser.new_page()
        page.goto(demo[0])
        yield page


providers = pytest.mark.parametrize(("provider", "tolerance"), [("wasm", EXACT), ("webgpu", NEAR)])


@providers
def test_the_served_digits_are_those_of_pythons_engine(page: Any, demo: tuple[str, Path], provider: str, tolerance: float) -> None:
    engine = rfc_export.load(demo[1] / "engines" / "digits")
    expected = sample(engine, load_digits()[1], torch.tensor([3]), digits_noise([0]), steps=50)
    phases, pixels, _ = drawn(page, digits_noise([0]), {"label": 3}, provider=provider)
    assert phases == "".join(phase[0] for phase in engine.stats.phases)
    assert (phases.count("F"), len(phases)) == (14, 50)
    torch.testing.assert_close(pixels.reshape(expected.shape), expected, rtol=0, atol=tolerance)


@providers
def test_the_served_emoji_are_those_of_pythons_pipeline(page: Any, demo: tuple[str, Path], provider: str, tolerance: float) -> None:
    call = CallOptions(prompts=[PROMPT], negative_prompt="", assignments=["true_cfg_scale=3"])
    whole = whole_pipeline(demo[1] / "engines" / "emoji", call, [0], lambda folder: folder.load(torch.device("cpu")))
    noise = torch.randn(1, 64, 16, generator=torch.Generator().manual_seed(0))
    arguments = {"negative_prompt": "", "true_cfg_scale": 3.0, "num_inference_steps": STEPS, "latents": noise, "output_type": "pt"}
    with torch.no_grad():
        expected = whole.pipeline.pipe(PROMPT, **arguments).images
    phases, pixels, noted = drawn(page, noise, {"prompt": PROMPT}, kind="emoji", provider=provider)
    assert {phases} == {"".join(phase[0] for phase in record.phases) for record in whole.model.contexts.values()}
    assert (phases.count("F"), len(phases)) == (8, STEPS)
    torch.testing.assert_close((pixels.reshape(expected.shape) / 2 + 0.5).clamp(0, 1), expected, rtol=0, atol=tolerance)
    device, outputs = ("gpu-buffer", 2 * noise.nbytes) if provider == "webgpu" else ("cpu", 0)
    assert {where for step in noted["locations"] for key, where in step if key.startswith("state:")} == {device}
    assert set(noted["bytesRead"][1:-1]) == {outputs}  # of the first step the text encoders' too, of the last the picture


@pytest.mark.parametrize(("model", "full", "steps"), [("digits", 14, 50), ("emoji", 8, STEPS)])
def test_the_served_page_draws_both_models(page: Any, model: str, full: int, steps: int) -> None:
    page.check(f"input[value={model}]")
    page.click("#draw")
    page.wait_for_selector("#panels[data-phases], #status.error", timeout=300_000)
    assert page.inner_text("#status") == f"Done: {full} of {steps} steps computed, the others estimated."
