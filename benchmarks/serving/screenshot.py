"""The server's page as a picture: `python -m benchmarks.serving.screenshot`, with Playwright and a Chromium."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image

from benchmarks.files import RESULTS
from benchmarks.serving.server import server
from rfc_fx.io.atomic import write_atomically

PROMPTS = ("an apple, flat style, on light blue", "a rocket, twemoji style, on dark blue")


def shots(page: Any) -> list[bytes]:
    """The page while a picture is drawn, and when it is there."""
    page.fill("#seed", "0")
    page.fill("#what", PROMPTS[0])
    page.keyboard.press("Enter")
    page.wait_for_selector("#pictures img")
    page.fill("#what", PROMPTS[1])
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelectorAll('#steps i.full, #steps i.estimate').length > 9")
    under_way = page.screenshot()
    page.wait_for_function("document.querySelectorAll('#pictures img').length == 2")
    return [under_way, page.screenshot()]


def beside(pictures: list[bytes]) -> Image.Image:
    """Pictures side by side."""
    images = [Image.open(io.BytesIO(each)).convert("RGB") for each in pictures]
    sheet = Image.new("RGB", (sum(each.width for each in images), max(each.height for each in images)), "grey")
    left = 0
    for image in images:
        sheet.paste(image, (left, 0))
        left += image.width
    return sheet


def main(
    out: Annotated[Path, typer.Option(help="file of the picture")] = RESULTS / "serving" / "page.png",
) -> None:
    """Serve the emoji model, type two prompts at a desk and on a phone, and show the page of each while it draws and after."""
    from playwright import sync_api

    with server("emoji", "--no-compile", "--steps", 20) as (address, _), sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        found: list[bytes] = []
        for width, scheme in ((700, "light"), (360, "dark")):
            page = browser.new_page(viewport={"width": width, "height": 760}, color_scheme=scheme)
            page.set_default_timeout(120_000)
            page.goto(address)
            found += shots(page)
        browser.close()
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet = beside([found[0], found[1], found[2]])
    write_atomically(out, lambda part: sheet.quantize(64).save(part, format="PNG", optimize=True))
    typer.echo(str(out))


if __name__ == "__main__":
    typer.run(main)
