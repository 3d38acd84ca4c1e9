"""The page with WebGPU, on an adapter in software: the decisions of Python's engine, and the state stays on the device."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from browsers import BUILT, NEAR, NEEDS, SOFTWARE_GPU, SOURCE, browsing, drawn, serving
from small_digits import digits_sampler, first_blocks
from torch import Tensor

import rfc
import rfc_export
import rfc_fx
from rfc_fx.ir.progress import LOG_STEPS
from rfc_fx.zoo import digits_noise, sample

pytestmark = [*NEEDS, BUILT]

STEPS = 20

OUTPUT_BYTES = 2 * 8 * 8 * 4
"""What the sampler reads of a step: float32, one sample, guided."""


@pytest.fixture(scope="module")
def folder(digits_inputs: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page with engines of the digits model's first blocks, one for each rule of full steps."""
    site = tmp_path_factory.mktemp("web") / "site"
    subprocess.run(["node", str(SOURCE / "build.js"), str(site)], check=True)
    model, scheduler = first_blocks(2)
    methods = {"digits": rfc.LogSNR(scheduler, num_steps=STEPS, nfc=6), "measured": rfc.RFC(tau=0.15), "cond": rfc.RFC(tau=0.15)}
    for name, method in methods.items():
        facts = {"example_inputs": digits_inputs, "method": method, "sampler": digits_sampler()}
        config = rfc_fx.Config(dispatch="cond") if name == "cond" else None
        rfc_export.export(model, site / "engines" / name, backend="onnx", config=config, **facts)
    return site


@pytest.fixture
def page(folder: Path) -> Iterator[Any]:
    with serving(folder) as address, browsing(*SOFTWARE_GPU) as browser:
        page = browser.new_page()
        page.goto(address)
        if not page.evaluate("navigator.gpu?.requestAdapter().then(Boolean)"):
            pytest.skip("this Chromium has no WebGPU in software")
        yield page


@pytest.mark.parametrize("engine", ["digits", "measured", "cond"])
def test_webgpu_takes_the_decisions_of_the_engine_and_keeps_the_state_on_the_device(page: Any, folder: Path, engine: str) -> None:
    own = rfc_export.load(folder / "engines" / engine)
    expected = sample(own, first_blocks(1)[1], torch.tensor([3]), digits_noise([0]), steps=STEPS)
    phases, pixels, noted = drawn(page, digits_noise([0]), {"label": 3}, engine=engine, provider="webgpu", steps=STEPS)
    assert phases == "".join(phase[0] for phase in own.stats.phases)
    assert 0 < phases.count("E") < STEPS
    torch.testing.assert_close(pixels.reshape(expected.shape), expected, rtol=0, atol=NEAR)
    for step in noted["locations"]:
        kept = {key: where for key, where in step if key.startswith(("state:", "carry:"))}
        assert {slot.name for slot in own.manifest.sets[0].state} == {key[6:] for key in kept if key.startswith("state:")}
        assert {key for key, where in kept.items() if where != "gpu-buffer"} == (
            {"state:progress", "state:log"} if engine == "cond" else set()
        )
    decision = 16 if "PREFIX" in own.programs else 0  # one float32, in WebGPU's smallest copy
    progress = 4 * LOG_STEPS * 3 if engine == "cond" else 0  # decided on the host: what was decided so far travels
    assert [read - OUTPUT_BYTES - decision - progress in range(4 * 64) for read in noted["bytesRead"]] == [True] * STEPS
    assert engine == "cond" or set(noted["bytesRead"]) == {OUTPUT_BYTES + decision}


def test_the_page_draws_on_the_graphics_card(page: Any) -> None:
    page.select_option("select[name=provider]", "webgpu")
    page.click("#draw")
    page.wait_for_selector("#panels[data-phases], #status.error", timeout=300_000)
    assert page.inner_text("#status") == f"Done: 6 of {STEPS} steps computed, the others estimated."
