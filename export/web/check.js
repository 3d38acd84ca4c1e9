// Draws one picture under node, for tests: node check.js KIND FOLDER REQUEST_JSON NOISE_FILE OUT_FILE [STEPS [full]]; prints {"phases": ...}.
// NOISE_FILE and OUT_FILE hold float32 numbers.
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { Tokenizer } from "@huggingface/tokenizers";
import * as ort from "onnxruntime-web";
import { Digits } from "./digits.js";
import { Emoji } from "./emoji.js";

const [kind, folder, request, noiseFile, outFile, steps, full] = process.argv.slice(2);
const open = { digits: Digits.open, emoji: Emoji.open }[kind];
ort.env.wasm.numThreads = 1;
try {
  const drawing = await open(async (name) => new Uint8Array(await readFile(join(folder, name))), ort, { Tokenizer });
  const bytes = await readFile(noiseFile);
  const noise = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
  let phases = "";
  let last = null;
  const options = { computesAll: full === "full", ...(steps ? { steps: Number(steps) } : {}) };
  for await (const step of drawing.draw(JSON.parse(request), noise, options)) {
    phases += step.isFull ? "F" : "E";
    last = step.sample ?? last;
  }
  await writeFile(outFile, Buffer.from(last.buffer, last.byteOffset, last.byteLength));
  console.log(JSON.stringify({ phases }));
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
}
