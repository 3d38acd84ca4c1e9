// The page: two generations from the same noise, with the cache and without, side by side.
import { served } from "./artifact.js";
import { Digits } from "./digits.js";
import { Emoji } from "./emoji.js";
import { noise } from "./samplers.js";

const KINDS = { digits: Digits, emoji: Emoji };
const BINARIES = { wasm: "ort-wasm-simd-threaded.wasm", webgpu: "ort-wasm-simd-threaded.asyncify.wasm" };
const PARTS = ["cached", "full"];
const form = document.querySelector("#settings");
const status = document.querySelector("#status");
const opened = new Map();

for (let label = 0; label < 10; label++) form.elements.label.add(new Option(label, label, label === 3, label === 3));
form.addEventListener("change", showSettings);
form.addEventListener("submit", (event) => {
  event.preventDefault();
  document.querySelector("#draw").disabled = true;
  race()
    .catch((error) => say(error.message, true))
    .finally(() => {
      document.querySelector("#draw").disabled = false;
    });
});
showSettings();

function showSettings() {
  for (const field of document.querySelectorAll("[data-model]")) {
    field.hidden = field.dataset.model !== form.elements.model.value;
    for (const input of field.querySelectorAll("input, select")) input.disabled = field.hidden;
  }
}

function say(text, isError = false) {
  status.textContent = text;
  status.classList.toggle("error", isError);
}

/** ONNX Runtime for a provider. */
async function runtime(provider) {
  const ort = await import(`./vendor/ort.${provider}.bundle.min.mjs`);
  ort.env.wasm.wasmPaths = { wasm: new URL(`./vendor/${BINARIES[provider]}`, import.meta.url).href };
  ort.env.wasm.numThreads = 1;
  return ort;
}

/** The drawing of a model on a provider, opened once. */
async function drawingOf(kind, provider) {
  const key = `${kind} ${provider}`;
  if (!opened.has(key)) {
    if (provider === "webgpu" && !(await navigator.gpu?.requestAdapter())) {
      throw new Error("WebGPU: this browser has no adapter; choose the processor");
    }
    say("Loading ONNX Runtime ...");
    const ort = await runtime(provider);
    const { Tokenizer } = await import("./vendor/tokenizers.min.mjs");
    const report = (stage) => say(`Loading ${stage} ...`);
    opened.set(key, await KINDS[kind].open(served(`./engines/${kind}`), ort, { Tokenizer, provider, report, processor: () => runtime("wasm") }));
  }
  return opened.get(key);
}

/** Both generations step by step: the one that has taken less time so far goes on, as if each had a processor of its own. */
async function race() {
  const { model, label, prompt, seed, provider } = form.elements;
  const drawing = await drawingOf(model.value, provider.value);
  const start = noise(drawing.noiseLength, Number(seed.value));
  const request = { label: Number(label.value), prompt: prompt.value };
  document.querySelector("#saved").textContent = "";
  say("Drawing ...");
  const runs = PARTS.map((part) => ({
    part,
    steps: drawing.draw(request, start, { computesAll: part === "full" }),
    milliseconds: 0,
    phases: "",
    panel: cleared(part),
  }));
  for (let left = [...runs]; left.length; left = left.filter((run) => !run.isDone)) {
    const run = left.reduce((least, other) => (other.milliseconds < least.milliseconds ? other : least));
    const { value, done } = await run.steps.next();
    run.isDone = done;
    if (!done) await show(run, value);
  }
  finish(...runs);
}

function cleared(part) {
  const panel = document.querySelector(`#${part}`);
  panel.querySelector("ol").replaceChildren();
  panel.querySelector(".figures").textContent = "-";
  return panel;
}

async function show(run, step) {
  run.milliseconds += step.milliseconds;
  run.phases += step.isFull ? "F" : "E";
  const mark = document.createElement("li");
  mark.className = `step ${step.isFull ? "F" : "E"}`;
  mark.title = `step ${step.index + 1}: ${step.isFull ? "full" : "estimated"}, ${step.milliseconds.toFixed(1)} ms`;
  mark.append(Object.assign(document.createElement("span"), { textContent: step.isFull ? "full" : "estimated" }));
  run.panel.querySelector("ol").append(mark);
  run.panel.querySelector(".figures").textContent =
    `${count(run.phases)} of ${run.phases.length} steps full, ${(run.milliseconds / 1000).toFixed(2)} s`;
  paint(run.panel.querySelector("canvas"), await step.pixels());
  await new Promise((done) => setTimeout(done)); // the browser draws
}

function paint(canvas, pixels) {
  const side = Math.sqrt(pixels.length / 4);
  canvas.width = canvas.height = side;
  canvas.getContext("2d").putImageData(new ImageData(pixels, side, side), 0, 0);
}

function count(phases) {
  return phases.split("F").length - 1;
}

function finish(cached, full) {
  const saved = full.milliseconds - cached.milliseconds;
  document.querySelector("#saved").textContent =
    saved > 0
      ? `${(saved / 1000).toFixed(2)} s of ${(full.milliseconds / 1000).toFixed(2)} s saved: ` +
        `${(full.milliseconds / cached.milliseconds).toFixed(1)} times as fast.`
      : "No time was saved: this processor was busy, or the model is too small for it.";
  say(`Done: ${count(cached.phases)} of ${cached.phases.length} steps computed, the others estimated.`);
  document.querySelector("#panels").dataset.phases = cached.phases;
}
