"""The page in headless Chromium: a server for its folder, the browser, and drawings by the served modules."""

import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

SOURCE = Path(__file__).parents[1] / "export" / "web"

playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

NEEDS = [
    pytest.mark.slow,  # a browser and an engine
    pytest.mark.skipif(BROWSER is None, reason="needs chromium"),
]
BUILT = pytest.mark.skipif(not (SOURCE / "node_modules" / "onnxruntime-web").is_dir(), reason="npm ci --prefix export/web --ignore-scripts")

EXACT = 1e-5
"""Other kernels of the same library, and a sampler in other arithmetic."""

NEAR = 2e-4
"""WebGPU's float32 is not exactly rounded, and its shaders approximate exp and tanh: 1e-4 was measured."""

SOFTWARE_GPU = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]
"""WebGPU on the processor, by Chromium's own Vulkan."""

BINARIES = {"wasm": "ort-wasm-simd-threaded.wasm", "webgpu": "ort-wasm-simd-threaded.asyncify.wasm"}

# `bytesRead`: of each step, from GPU buffers; `locations`: of all tensors that the generation holds after each step.
DRAW = """async ({ kind, engine, request, noise, provider, binaries, steps }) => {
  const bytesRead = [0];
  if (globalThis.GPUBuffer) {
    const own = GPUBuffer.prototype.mapAsync;
    GPUBuffer.prototype.mapAsync = function (mode, offset = 0, size = this.size - offset) {
      if (mode === GPUMapMode.READ) bytesRead[bytesRead.length - 1] += size;
      return own.call(this, mode, offset, size);
    };
  }
  const runtime = async (provider) => {
    const ort = await import(`./vendor/ort.${provider}.bundle.min.mjs`);
    ort.env.wasm.wasmPaths = { wasm: new URL(`./vendor/${binaries[provider]}`, location.href).href };
    ort.env.wasm.numThreads = 1;
    return ort;
  };
  const { served } = await import("./artifact.js");
  const { Digits } = await import("./digits.js");
  const { Emoji } = await import("./emoji.js");
  const { Tokenizer } = await import("./vendor/tokenizers.min.mjs");
  const options = { Tokenizer, provider, processor: () => runtime("wasm") };
  const drawing = await { digits: Digits, emoji: Emoji }[kind].open(served(`./engines/${engine}`), await runtime(provider), options);
  const denoiser = drawing.engine ?? drawing.transformer;
  const begin = denoiser.begin.bind(denoiser);
  let generation = null;
  denoiser.begin = (options) => (generation = begin(options));
  let [phases, pixels] = ["", null];
  const locations = [];
  bytesRead[0] = 0;
  for await (const step of drawing.draw(request, Float32Array.from(noise), steps ? { steps } : {})) {
    phases += step.isFull ? "F" : "E";
    pixels = step.sample ? Array.from(step.sample) : pixels;
    const held = [...generation.lanes.values()].flatMap(({ values }) => [...values]);
    locations.push(held.map(([key, tensor]) => [key, tensor.location]));
    bytesRead.push(0);
  }
  return { phases, pixels, locations, bytesRead: bytesRead.slice(0, -1) };
}"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def browsing(*flags: str) -> Iterator[Any]:
    """Headless Chromium."""
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", *flags])
        yield browser
        browser.close()


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a server for a folder."""
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def drawn(
    page: Any,
    noise: Tensor,
    request: dict[str, Any],
    *,
    kind: str = "digits",
    engine: str | None = None,
    provider: str = "wasm",
    steps: int | None = None,
) -> tuple[str, Tensor, dict[str, Any]]:
    """Phases and pixels of a drawing on the page, and what else was noted."""
    options = {"kind": kind, "engine": engine or kind, "provider": provider, "binaries": BINARIES, "steps": steps}
    result = page.evaluate(DRAW, {"request": request, "noise": noise.flatten().tolist(), **options})
    return result["phases"], torch.tensor(result["pixels"]), result
