// Lays the page, the libraries and the engines into one folder that any static server can serve: node build.js FOLDER.
import { cp, mkdir } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const PAGE = ["index.html", "style.css", "page.js", "artifact.js", "bookkeeping.js", "digits.js", "emoji.js", "engine.js", "samplers.js"];
const LIBRARIES = {
  "onnxruntime-web/dist": [
    "ort.wasm.bundle.min.mjs",
    "ort.webgpu.bundle.min.mjs",
    "ort-wasm-simd-threaded.wasm",
    "ort-wasm-simd-threaded.asyncify.wasm",
  ],
  "@huggingface/tokenizers/dist": ["tokenizers.min.mjs"],
};

const here = dirname(fileURLToPath(import.meta.url));
const [folder] = process.argv.slice(2);
if (!folder) {
  console.error("usage: node build.js FOLDER");
  process.exit(1);
}
await mkdir(join(folder, "vendor"), { recursive: true });
for (const file of PAGE) await cp(join(here, file), join(folder, file));
for (const [library, files] of Object.entries(LIBRARIES)) {
  for (const file of files) await cp(join(here, "node_modules", library, file), join(folder, "vendor", file));
}
