"""The page in headless Chromium: modules that are served draw the engine's pixels, and the page tells of every step."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from browsers import BUILT, EXACT, NEEDS, SOURCE, browsing, drawn, serving
from small_digits import digits_sampler, first_blocks
from torch import Tensor

import rfc
import rfc_export
from rfc_fx.zoo import digits_noise, sample

pytestmark = [*NEEDS, BUILT]

STEPS = 20


@pytest.fixture(scope="module")
def folder(digits_inputs: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page with an engine of the digits model's first blocks."""
    site = tmp_path_factory.mktemp("web") / "site"
    subprocess.run(["node", str(SOURCE / "build.js"), str(site)], check=True)
    model, scheduler = first_blocks(2)
    method = rfc.LogSNR(scheduler, num_steps=STEPS, nfc=6)
    facts = {"example_inputs": digits_inputs, "method": method, "sampler": digits_sampler()}
    rfc_export.export(model, site / "engines" / "digits", backend="onnx", **facts)
    return site


@pytest.fixture
def page(folder: Path) -> Iterator[Any]:
    with serving(folder) as address, browsing() as browser:
        page = browser.new_page(viewport={"width": 360, "height": 740})
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(address)
        yield page


def test_the_browser_takes_the_decisions_and_draws_the_pixels_of_the_engine(page: Any, folder: Path) -> None:
    engine = rfc_export.load(folder / "engines" / "digits")
    expected = sample(engine, first_blocks(1)[1], torch.tensor([3]), digits_noise([0]), steps=STEPS)
    phases, pixels, _ = drawn(page, digits_noise([0]), {"label": 3})
    assert phases == "".join(phase[0] for phase in engine.stats.phases)
    torch.testing.assert_close(pixels.reshape(expected.shape), expected, rtol=0, atol=EXACT)


def test_a_user_of_the_keyboard_on_a_phone_sees_every_step_and_the_time_saved(page: Any, folder: Path) -> None:
    page.keyboard.press("Tab")  # the model; the digit; the seed
    page.keyboard.press("Tab")
    page.keyboard.press("5")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#panels[data-phases], #status.error", timeout=120_000)
    assert page.input_value("select[name=label]") == "5"
    assert page.inner_text("#status") == f"Done: 6 of {STEPS} steps computed, the others estimated."
    shown = ["".join(mark.get_attribute("class")[-1] for mark in page.query_selector_all(f"#{part} li")) for part in ("cached", "full")]
    assert shown == [page.get_attribute("#panels", "data-phases"), "F" * STEPS]
    assert shown[0].count("F") == 6
    assert page.inner_text("#saved")
    assert page.evaluate("document.documentElement.scrollWidth") == 360  # nothing to scroll to the side
    assert {url.split("/")[2].split(":")[0] for url in page.asked if url.startswith("http")} == {"127.0.0.1"}


def test_what_is_not_there_is_said_on_the_page(page: Any) -> None:
    page.check("input[value=emoji]")
    page.click("#draw")
    page.wait_for_selector("#status.error", timeout=60_000)
    assert "./engines/emoji/model_index.json: 404" in page.inner_text("#status")
    assert page.is_enabled("#draw")
