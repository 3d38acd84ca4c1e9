"""The page in headless Chromium: what is typed is drawn, on a phone too, by keyboard alone. Skipped without Ray, Playwright or a Chromium.

`pip install playwright`; Chromium is that of the system, or the one that `playwright install chromium` brings.
"""

import base64
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.serving.server import largest
from rfc_fx.tools.requests.request import Request
from rfc_fx.tools.requests.worker import Worker, WorkerSettings

pytestmark = pytest.mark.slow

TOKEN = "a secret"
"""As in conftest.py."""
PHONE, DESK = {"width": 360, "height": 740}, {"width": 1280, "height": 800}
ONE_PICTURE = "document.querySelectorAll('#pictures img').length == 1 && document.querySelector('#pictures img').complete"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    own = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with playwright.sync_playwright() as started:
        try:
            found = started.chromium.launch(executable_path=own, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium starts here: {str(error).splitlines()[0]}")
        yield found
        found.close()


@pytest.fixture(params=[PHONE, DESK], ids=["phone", "desk"])
def page(request: Any, browser: Any, served: Any) -> Iterator[Any]:
    """The page of the server, with the errors that it logs as an attribute."""
    context = browser.new_context(viewport=request.param)
    opened = context.new_page()
    opened.set_default_timeout(60_000)
    opened.complaints = []
    opened.on("pageerror", lambda error: opened.complaints.append(str(error)))
    opened.goto(f"{served.address}/#token={TOKEN.replace(' ', '%20')}")
    yield opened
    context.close()


def test_what_is_typed_is_drawn(page: Any) -> None:
    page.keyboard.type("3")  # the field has the focus when the page comes
    page.keyboard.press("Tab")
    page.keyboard.type("7")
    page.keyboard.press("Enter")
    page.wait_for_function(ONE_PICTURE)
    source = page.get_attribute("#pictures img", "src")
    alone = Worker(WorkerSettings(model="digits", steps=20)).draw([Request(label=3, seed=7)])[0]
    assert largest(base64.b64decode(source.partition(",")[2]), alone.png) <= 1
    assert page.inner_text("figcaption") == "3 - seed 7"
    assert page.inner_text("#state") == f"{alone.nfc} of 20 steps computed in full, the others estimated"
    assert page.locator(":focus").get_attribute("id") == "what"  # ready for the next
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # nothing lies outside of a narrow screen
    assert min(page.locator(field).bounding_box()["height"] for field in ("#what", "#seed", "#draw")) >= 44  # a finger's width
    assert page.complaints == []


def test_steps_show_as_they_come_and_escape_stops(page: Any) -> None:
    page.route("**/generations", lambda route: route.continue_(post_data={**route.request.post_data_json, "steps": 200, "n": 8}))
    page.fill("#what", "3")
    page.keyboard.press("Enter")
    page.wait_for_selector("#steps i.estimate")
    assert page.locator("#steps i").count() == 200
    assert page.locator("#steps i.full").count() >= 1
    assert page.is_visible("#stop")
    assert page.is_hidden("#draw")
    page.keyboard.press("Escape")
    page.wait_for_function("document.getElementById('state').textContent == 'Stopped'")
    assert page.is_visible("#draw")
    assert page.complaints == []


def test_an_error_is_said(page: Any) -> None:
    page.fill("#what", "30")
    page.keyboard.press("Enter")
    page.wait_for_selector("#state.bad")
    assert "class must be from 0 to 9, got 30" in page.inner_text("#state")
