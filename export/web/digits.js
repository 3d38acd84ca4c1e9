// The digits engine as a drawing: classes, guidance in one batch, DDIM.
import { Engine } from "./engine.js";
import { sampler } from "./samplers.js";

export class Digits {
  static async open(read, ort, options) {
    const engine = await Engine.open(read, ort, options);
    const { sampler: facts, sets, method } = engine.manifest;
    if (facts?.kind !== "digits") throw new Error("rfc.json: sampler.kind is not digits; export digits with rfc-fx export digits");
    const sizes = sets.map((set) => set.call.leaves.find((leaf) => leaf.argument === "hidden_states").shape[0]);
    return Object.assign(new Digits(), { engine, facts, rows: Math.min(...sizes), steps: method.schedule.lambdas?.length ?? 50 });
  }

  size = 8;
  noiseLength = 64;

  /** One digit, from noise, a step at a time: yields {index, isFull, milliseconds, pixels()}; `request` is {label}. */
  async *draw({ label }, noise, { computesAll = false, steps = this.steps } = {}) {
    const { engine, facts, rows } = this;
    if (!(Number.isInteger(label) && label >= 0 && label < facts.null_class)) {
      throw new Error(`label: expected 0 to ${facts.null_class - 1}, got ${label}`);
    }
    const ddim = sampler(facts.scheduler, steps);
    const half = rows / 2; // of a larger batch every row is the same sample
    const labels = engine.tensor("int64", Array.from({ length: rows }, (_, row) => (row < half ? label : facts.null_class)), [rows]);
    const generation = engine.begin({ computesAll });
    const x = Float32Array.from(noise);
    try {
      for (const [index, t] of ddim.timesteps.entries()) {
        const batch = new Float32Array(rows * 64);
        for (let row = 0; row < rows; row++) batch.set(x, row * 64);
        const { outputs, isFull, milliseconds } = await generation.run({
          hidden_states: engine.tensor("float32", batch, [rows, 1, 8, 8]),
          timestep: engine.tensor("int64", Array(rows).fill(t), [rows]),
          class_labels: labels,
        });
        const data = outputs[0].data;
        const eps = x.map((_, i) => Math.fround(data[half * 64 + i] + facts.cfg * Math.fround(data[i] - data[half * 64 + i])));
        ddim.step(x, eps, index);
        yield { index, isFull, milliseconds, sample: x, pixels: async () => grey(x) };
      }
    } finally {
      generation.end();
    }
  }
}

/** RGBA of values in [-1, 1]. */
function grey(values) {
  const pixels = new Uint8ClampedArray(values.length * 4);
  values.forEach((value, i) => pixels.set([127.5 * (value + 1), 127.5 * (value + 1), 127.5 * (value + 1), 255], i * 4));
  return pixels;
}
