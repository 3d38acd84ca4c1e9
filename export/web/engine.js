// An engine: the programs of an artefact, the state that they share, and the decision of each step.
import { checked, readManifest } from "./artifact.js";
import { Book, lastIsFull, numbersOf, restart, Schedule } from "./bookkeeping.js";

const WEIGHTS = "weights.safetensors";
const ARRAYS = {
  float32: Float32Array,
  float64: Float64Array,
  float16: Uint16Array,
  int64: BigInt64Array,
  int32: Int32Array,
  int8: Int8Array,
  uint8: Uint8Array,
  bool: Uint8Array,
};

/** Programs for each call that the engine answers; a generation holds the state (`begin`). */
export class Engine {
  /**
   * Open an artefact. `read(name)` gives a file's bytes, `ort` is onnxruntime-web, `provider` "wasm" or "webgpu": there the state stays
   * on the device. `processor()` gives onnxruntime-web for wasm: it runs INVARIANT, once a generation, where WebGPU's lacks a kernel.
   * An Error says what is damaged, or needs what this code does not have.
   */
  static async open(read, ort, { provider = "wasm", processor = null, report = () => {} } = {}) {
    const manifest = await readManifest(read);
    const decides = manifest.config.dispatch === "cond"; // in the program
    const rules = manifest.sets.map(({ decision }) =>
      decides ? numbersOf(manifest.method, decision) : new Schedule(manifest.method, decision),
    ); // refused before anything is loaded
    const contents = {};
    for (const [name, spec] of Object.entries(manifest.files)) contents[name] = await checked(read, name, spec);
    const weights = { path: WEIGHTS, data: contents[WEIGHTS] };
    const sets = [];
    for (const [number, spec] of manifest.sets.entries()) {
      const programs = {};
      for (const [phase, program] of Object.entries(spec.programs)) {
        report(`${manifest.model.model_class}: ${phase}`);
        const create = (library, options) =>
          library.InferenceSession.create(contents[program.file], { externalData: [weights], logSeverityLevel: 3, ...options });
        const onDevice = provider === "wasm" ? {} : { preferredOutputLocation: deviceOutputs(program) };
        const session = await create(ort, { executionProviders: [provider], ...onDevice }).catch(async (error) => {
          if (phase === "INVARIANT" && processor) return create(await processor(), { executionProviders: ["wasm"] });
          throw new Error(`${manifest.model.model_class}: ${phase} cannot run on ${provider}: ${error.message}; choose another provider`);
        });
        programs[phase] = { spec: program, session };
      }
      sets.push({ spec, programs, ...(decides ? { numbers: rules[number] } : { schedule: rules[number] }) });
    }
    return new Engine(manifest, sets, ort);
  }

  constructor(manifest, sets, ort) {
    Object.assign(this, { manifest, sets, ort });
  }

  /** A tensor of a type that manifests name, from plain numbers. */
  tensor(dtype, values, shape) {
    const data = values instanceof ARRAYS[dtype] ? values : ARRAYS[dtype].from(values, dtype === "int64" ? (one) => BigInt(one) : undefined);
    return new this.ort.Tensor(dtype, data, shape);
  }

  /** A generation: it owns its state. `computesAll`: every step is full, as without a cache. */
  begin({ computesAll = false } = {}) {
    return new Generation(this, computesAll);
  }

  /** The set of programs for tensors by argument name; an Error with what was expected where no set has these shapes. */
  pick(given) {
    const reasons = [];
    for (const [number, { spec }] of this.sets.entries()) {
      const reason = refusal(spec.call.leaves, given);
      if (reason === null) return number;
      reasons.push(reason);
    }
    throw new Error(`${reasons.join("; or ")}; the engine was built for that: add a call with rfc-fx export --add`);
  }
}

/** One run of a sampler loop; every context ("cond", "uncond") has state of its own. */
class Generation {
  lanes = new Map();

  constructor(engine, computesAll) {
    Object.assign(this, { engine, computesAll });
  }

  /** One step: tensors by the model's argument names. Returns {outputs, isFull, milliseconds}; the outputs lie flat, as the model gave them. */
  async run(given, context = "") {
    const number = this.engine.pick(given);
    const set = this.engine.sets[number];
    const key = `${number} ${context}`;
    if (!this.lanes.has(key)) this.lanes.set(key, { values: this.initial(set), book: new Book(), eps: 0 });
    const lane = this.lanes.get(key);
    for (const leaf of set.spec.call.leaves) {
      if (leaf.placeholder !== null) lane.values.set(`input:${leaf.placeholder}`, given[leaf.argument]);
    }
    const start = performance.now();
    const { outputs, isFull } = set.schedule ? await this.decided(set, lane) : await this.deciding(set, lane);
    return { outputs, isFull, milliseconds: performance.now() - start };
  }

  /** A step of programs for each phase: the rule decides here. */
  async decided(set, lane) {
    if (lane.book.phases === "" && set.programs.INVARIANT) await this.program(set, lane, "INVARIANT");
    if (set.programs.TIMESTEP) await this.program(set, lane, "TIMESTEP");
    const clock = set.schedule.clock(lane.book.phases.length, lane.book.counts);
    lane.values.set("clock:clock", this.engine.tensor("float32", clock, [clock.length]));
    lane.eps = 0;
    if (set.programs.PREFIX) await this.program(set, lane, "PREFIX");
    const isFull = lane.book.decide(this.computesAll ? { full: () => true } : set.schedule, lane.eps);
    return { outputs: await this.program(set, lane, isFull ? "FULL" : "ESTIMATE"), isFull };
  }

  /** A step of the one program that decides. */
  async deciding(set, lane) {
    if (this.computesAll) restart(lane.values.get("state:progress"));
    const outputs = await this.program(set, lane, "STEP");
    const isFull = lastIsFull(lane.values.get("state:progress"), lane.values.get("state:log"));
    lane.book.phases += isFull ? "F" : "E";
    return { outputs, isFull };
  }

  /** A letter for each step of a context: F for FULL, E for ESTIMATE. */
  phases(context = "") {
    for (const [key, lane] of this.lanes) if (key.endsWith(` ${context}`)) return lane.book.phases;
    return "";
  }

  /** Let go of the state; what lies on a device is not collected by itself. */
  end() {
    for (const lane of this.lanes.values()) for (const [key, tensor] of lane.values) if (!key.startsWith("input:")) tensor.dispose();
    this.lanes.clear();
  }

  /** State of zeros, and the numbers of a rule that a program reads. */
  initial({ spec, programs, numbers }) {
    const values = new Map();
    for (const slot of spec.state) {
      const length = slot.shape.reduce((product, size) => product * size, 1);
      values.set(`state:${slot.name}`, this.engine.tensor(slot.dtype, new ARRAYS[slot.dtype](length), slot.shape));
    }
    for (const { kind, name, dtype, shape } of numbers ? programs.STEP.spec.inputs : []) {
      if (kind === "numbers") values.set(`numbers:${name}`, this.engine.tensor(dtype, numbers[name], shape));
    }
    return values;
  }

  async program(set, lane, phase) {
    const { spec, session } = set.programs[phase];
    const named = (name) => lane.values.get(name.replace(/^(progress|log):/, "state:"));
    const feeds = Object.fromEntries(session.inputNames.map((name) => [name, named(name)])); // ONNX drops inputs that nothing reads
    const results = await session.run(feeds);
    const outputs = [];
    for (const { kind, name } of spec.outputs) {
      const result = results[`${kind}:${name}`];
      if (kind === "decision") lane.eps = result.data[0];
      else if (kind === "output") outputs[Number(name)] = result;
      else replace(lane.values, kind === "next" ? `state:${name}` : `${kind}:${name}`, result);
    }
    return outputs;
  }
}

function replace(values, key, tensor) {
  values.get(key)?.dispose();
  values.set(key, tensor);
}

/** State and what programs hand to one another stay where they were computed, but for what tells of a decision. */
function deviceOutputs(program) {
  const stays = ({ kind, name }) => kind === "carry" || (kind === "next" && !["progress", "log"].includes(name));
  return Object.fromEntries(program.outputs.map((one) => [`${one.kind}:${one.name}`, stays(one) ? "gpu-buffer" : "cpu"]));
}

/** Why a call is not the one that leaves describe; null where it is. */
function refusal(leaves, given) {
  for (const leaf of leaves) {
    if (leaf.fixed !== null) return `${leaf.argument}: its values are part of the programs, which this page does not compare`;
    if (leaf.placeholder === null) continue;
    const tensor = given[leaf.argument];
    if (tensor?.type !== leaf.dtype || tensor.dims.join() !== leaf.shape.join()) {
      return `${leaf.argument}: expected ${leaf.dtype} of shape (${leaf.shape.join(", ")})`;
    }
  }
  return null;
}
