// Samplers: what a scheduler of diffusers does with the settings in scheduler_config.json, for a plain run from noise to picture.

/** The sampler for a configuration; an Error names the setting that is not known here. */
export function sampler(config, steps, tokens) {
  const kinds = { DDIMScheduler: Ddim, FlowMatchEulerDiscreteScheduler: FlowEuler };
  const kind = kinds[config._class_name];
  if (!kind) throw new Error(`scheduler: ${config._class_name}; known here: ${Object.keys(kinds).join(", ")}`);
  return new kind(config, steps, tokens);
}

function expect(config, wanted) {
  for (const [name, value] of Object.entries(wanted)) {
    if ((config[name] ?? value) !== value) throw new Error(`scheduler.${name}: ${config[name]}, known here: ${value}`);
  }
}

/** DDIM without noise of its own: x0 = (x - sqrt(1 - a) eps) / sqrt(a); x' = sqrt(a') x0 + sqrt(1 - a') eps. */
class Ddim {
  constructor(config, steps) {
    const plain = { clip_sample: false, thresholding: false, rescale_betas_zero_snr: false };
    expect(config, { beta_schedule: "linear", timestep_spacing: "leading", prediction_type: "epsilon", ...plain });
    const trained = config.num_train_timesteps;
    if (!(steps >= 1 && steps <= trained)) throw new Error(`steps: expected 1 to ${trained}, got ${steps}`);
    this.stride = Math.floor(trained / steps);
    this.alphas = new Float32Array(trained);
    let product = 1;
    for (let i = 0; i < trained; i++) {
      const beta = Math.fround(config.beta_start + ((config.beta_end - config.beta_start) * i) / (trained - 1));
      product = this.alphas[i] = product * Math.fround(1 - beta);
    }
    this.last = config.set_alpha_to_one ? 1 : this.alphas[0];
    this.timesteps = Array.from({ length: steps }, (_, i) => (steps - 1 - i) * this.stride + config.steps_offset);
  }

  /** The next sample, in place: `x` and `eps` are Float32Array. */
  step(x, eps, index) {
    const t = this.timesteps[index];
    const [a, before] = [this.alphas[t], t >= this.stride ? this.alphas[t - this.stride] : this.last];
    for (let i = 0; i < x.length; i++) {
      const x0 = (x[i] - Math.sqrt(1 - a) * eps[i]) / Math.sqrt(a);
      x[i] = Math.sqrt(before) * x0 + Math.sqrt(1 - before) * eps[i];
    }
  }
}

/** Euler's method for flow matching: x' = x + (sigma' - sigma) v, sigmas from 1 to 1 / steps and shifted. */
class FlowEuler {
  constructor(config, steps, tokens) {
    const names = ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "invert_sigmas", "stochastic_sampling"];
    expect(config, Object.fromEntries(names.map((name) => [name, false])));
    if (config.shift_terminal) throw new Error(`scheduler.shift_terminal: ${config.shift_terminal}, known here: none`);
    const shifted = config.use_dynamic_shifting ? dynamicShift(config, tokens) : (t) => (config.shift * t) / (1 + (config.shift - 1) * t);
    this.sigmas = Array.from({ length: steps }, (_, i) => Math.fround(shifted(1 + ((1 / steps - 1) * i) / Math.max(steps - 1, 1))));
    this.timesteps = this.sigmas.map((sigma) => Math.fround(sigma * config.num_train_timesteps));
    this.sigmas.push(0);
  }

  step(x, v, index) {
    const move = Math.fround(this.sigmas[index + 1] - this.sigmas[index]);
    for (let i = 0; i < x.length; i++) x[i] += Math.fround(move * v[i]);
  }
}

/** The shift of FLUX, by the number of tokens: exp(mu) / (exp(mu) + 1 / t - 1). */
function dynamicShift(config, tokens) {
  expect(config, { time_shift_type: "exponential" });
  const slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len);
  const factor = Math.exp(config.base_shift + slope * (tokens - config.base_image_seq_len));
  return (t) => factor / (factor + 1 / t - 1);
}

/** Normally distributed numbers that a seed determines (mulberry32, Box-Muller). */
export function noise(length, seed) {
  let state = seed >>> 0;
  const uniform = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
  return Float32Array.from({ length }, () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform()));
}
