// A whole FLUX pipeline (rfc-fx export emoji --whole) as a drawing: prompts, guidance by a second call, flow matching, VAE decoder.
import { json } from "./artifact.js";
import { Engine } from "./engine.js";
import { sampler } from "./samplers.js";

const PARTS = ["text_encoder", "text_encoder_2", "transformer", "vae"];
const GUIDANCE = 3; // of the model's card

export class Emoji {
  /** Open the folder; `Tokenizer` is that of @huggingface/tokenizers, the other options those of `Engine.open`. */
  static async open(read, ort, { Tokenizer, ...options }) {
    const index = await json(read, "model_index.json");
    for (const part of PARTS) {
      if (index[part]?.[0] !== "rfc_export") throw new Error(`model_index.json: ${part} is no engine; export with rfc-fx export emoji --whole`);
    }
    const parts = {};
    for (const part of PARTS) parts[part] = await Engine.open((name) => read(`${part}/${name}`), ort, options);
    const drawing = Object.assign(new Emoji(), parts);
    drawing.scheduler = await json(read, "scheduler/scheduler_config.json");
    drawing.clip = await TextTokens.open(read, Tokenizer, "tokenizer", shapeOf(parts.text_encoder, "input_ids")[1]);
    drawing.t5 = await TextTokens.open(read, Tokenizer, "tokenizer_2", shapeOf(parts.text_encoder_2, "input_ids")[1]);
    [, drawing.tokens, drawing.channels] = shapeOf(parts.transformer, "hidden_states");
    drawing.side = Math.sqrt(drawing.tokens);
    drawing.size = drawing.side * 2 * 2 ** (parts.vae.manifest.model.config.block_out_channels.length - 1);
    drawing.noiseLength = drawing.tokens * drawing.channels;
    drawing.steps = parts.transformer.manifest.method.schedule.lambdas?.length ?? 28;
    return drawing;
  }

  /** One picture, from packed noise (tokens, channels), a step at a time: yields as `Digits.draw`; `request` is {prompt}. */
  async *draw({ prompt }, noise, { computesAll = false, steps = this.steps } = {}) {
    if (!prompt.trim()) throw new Error("prompt: expected words, got none");
    const { transformer: engine, tokens, channels, side } = this;
    const euler = sampler(this.scheduler, steps, tokens);
    const ids = Array.from({ length: tokens }, (_, token) => [0, Math.floor(token / side), token % side]).flat();
    const shared = { img_ids: engine.tensor("float32", ids, [tokens, 3]) };
    const texts = { cond: { ...(await this.encode(prompt)), ...shared }, uncond: { ...(await this.encode("")), ...shared } };
    const generation = engine.begin({ computesAll });
    const x = Float32Array.from(noise);
    try {
      for (const [index, t] of euler.timesteps.entries()) {
        const call = {
          hidden_states: engine.tensor("float32", x.slice(), [1, tokens, channels]),
          timestep: engine.tensor("float32", [Math.fround(t / 1000)], [1]),
        };
        const cond = await generation.run({ ...call, ...texts.cond }, "cond");
        const uncond = await generation.run({ ...call, ...texts.uncond }, "uncond");
        const [v, without] = [cond.outputs[0].data, uncond.outputs[0].data];
        euler.step(x, v.map((one, i) => Math.fround(without[i] + GUIDANCE * Math.fround(one - without[i]))), index);
        const isLast = index + 1 === steps;
        const sample = isLast ? await this.decode(x) : null;
        const pixels = async () => colours(isLast ? sample : this.preview(x));
        yield { index, isFull: cond.isFull, milliseconds: cond.milliseconds + uncond.milliseconds, sample, pixels };
      }
    } finally {
      generation.end();
    }
  }

  /** What the transformer takes of a prompt. */
  async encode(prompt) {
    const pooled = await run(this.text_encoder, { input_ids: this.clip.ids(this.text_encoder, prompt) });
    const sequence = await run(this.text_encoder_2, { input_ids: this.t5.ids(this.text_encoder_2, prompt) });
    const length = sequence[0].dims[1];
    return {
      pooled_projections: pooled[outputNames(this.text_encoder).indexOf("pooler_output")],
      encoder_hidden_states: sequence[0],
      txt_ids: this.transformer.tensor("float32", new Float32Array(length * 3), [length, 3]),
    };
  }

  /** Packed latents as a picture in [-1, 1], (3, H, W). */
  async decode(packed) {
    const { scaling_factor: scale, shift_factor: shift } = this.vae.manifest.model.config;
    const latents = this.unpacked(packed).map((one) => Math.fround(Math.fround(one / scale) + (shift ?? 0)));
    const shape = [1, this.channels / 4, this.side * 2, this.side * 2];
    return (await run(this.vae, { z: this.vae.tensor("float32", latents, shape) }))[0].data;
  }

  /** Each token is 2 x 2 latents: (tokens, channels * 4) to (channels, H, W). */
  unpacked(packed) {
    const { side, channels, tokens } = this;
    const latents = new Float32Array(packed.length);
    for (let token = 0; token < tokens; token++) {
      for (let channel = 0; channel < channels / 4; channel++) {
        for (let corner = 0; corner < 4; corner++) {
          const row = Math.floor(token / side) * 2 + (corner >> 1);
          const column = (token % side) * 2 + (corner & 1);
          latents[(channel * side * 2 + row) * side * 2 + column] = packed[token * channels + channel * 4 + corner];
        }
      }
    }
    return latents;
  }

  /** The first three channels of the latents: not the picture, but one sees it come. */
  preview(packed) {
    return this.unpacked(packed).subarray(0, 3 * 4 * this.tokens).map((one) => one / 2.5);
  }
}

/** A tokenizer of a pipeline, which pads to the length that its encoder was exported for. */
class TextTokens {
  static async open(read, Tokenizer, folder, length) {
    const config = await json(read, `${folder}/tokenizer_config.json`);
    const tokenizer = new Tokenizer(await json(read, `${folder}/tokenizer.json`), config);
    const padding = tokenizer.token_to_id(config.pad_token?.content ?? config.pad_token);
    if (padding === undefined) throw new Error(`${folder}/tokenizer_config.json: pad_token ${config.pad_token} is no token; copy it again`);
    return Object.assign(new TextTokens(), { tokenizer, padding, length });
  }

  ids(engine, text) {
    const all = this.tokenizer.encode(text).ids;
    const kept = all.length <= this.length ? all : [...all.slice(0, this.length - 1), all.at(-1)]; // the last ends the text
    return engine.tensor("int64", [...kept, ...Array(this.length - kept.length).fill(this.padding)], [1, this.length]);
  }
}

async function run(engine, given) {
  const generation = engine.begin();
  return (await generation.run(given)).outputs;
}

function shapeOf(engine, argument) {
  return engine.manifest.sets[0].call.leaves.find((leaf) => leaf.argument === argument).shape;
}

/** Names of the outputs of a text encoder, as torch's tree of them has it. */
function outputNames(engine) {
  const [, tree] = JSON.parse(engine.manifest.sets[0].call.outputs);
  return JSON.parse(tree.context);
}

/** RGBA of a picture (3, H, W) in [-1, 1]. */
function colours(picture) {
  const count = picture.length / 3;
  const pixels = new Uint8ClampedArray(count * 4).fill(255);
  for (let i = 0; i < count; i++) for (let c = 0; c < 3; c++) pixels[i * 4 + c] = 127.5 * (picture[c * count + i] + 1);
  return pixels;
}
