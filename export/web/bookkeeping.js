// The bookkeeping of a generation and the rules that need no program; the lines of rfc/bookkeeping.py and rfc/schedules.

const PLACED = ["Listed", "Placed", "LogSNRPlaced", "ChebyshevPlaced", "MagnitudePlaced", "GrowingWindow", "Weighted"];
const KNOWN = ["RCS", "Every", ...PLACED];

const STEP = 0;
const RESTART = 6; // of "progress"

/** The numbers of a decision, by name; an Error where they are those of no list yet. */
export function numbersOf(method, decision) {
  if (decision.rule === "LogSNRPlaced" && method.schedule.lambdas === null) {
    throw new Error("method.schedule: the noise levels are not known; export with --method log-snr --steps NUMBER");
  }
  const entries = Object.entries(decision.numbers);
  return Object.fromEntries(entries.map(([name, values]) => [name, Float32Array.from(values, (one) => (one === "inf" ? Infinity : one))]));
}

/** Which step is computed in full: the rule and numbers that the manifest has for a call. */
export class Schedule {
  constructor(method, decision) {
    this.rule = decision.rule;
    this.numbers = numbersOf(method, decision);
    if (!KNOWN.includes(this.rule)) {
      throw new Error(`decision.rule: ${this.rule}; this page knows ${KNOWN.join(", ")}, and all rules with --dispatch cond`);
    }
    if (this.rule === "RCS" && method.schedule.lagged) {
      throw new Error("method.schedule: this page decides with the step's own error; export with lagged=False");
    }
  }

  /** Whether step number `step`, `k` steps after the last full one, is full; `total` is the accumulated error. */
  full(step, k, total) {
    const { warmup, interval, tau, max_skip, table } = this.numbers;
    if (table) return row(table, step) > 0;
    if (this.rule === "Every") return step < warmup[0] || k >= interval[0];
    return step < warmup[0] || !(total <= tau[0]) || k > max_skip[0];
  }

  /** (k, N, n): since the last full step, between the two before, full steps so far; in the unit of the rule; then its weights. */
  clock(step, { since, gap, anchors }) {
    const k = since + 1;
    const { times, weights, since: planned } = this.numbers;
    const own = [];
    if (weights) {
      const count = weights.length / planned.length;
      const at = Math.min(Math.max(step, 0), planned.length - 1);
      own.push(...weights.slice(at * count, (at + 1) * count).map((one) => (planned[at] === k ? one : 0)));
    }
    if (!times) return [k, gap, anchors, ...own];
    const [now, last, before] = [step, step - k, step - k - gap].map((at) => row(times, at));
    return [Math.fround(now - last), Math.fround(last - before), anchors, ...own];
  }
}

/** What a generation did, and where it stands. */
export class Book {
  phases = "";
  counts = { since: 0, gap: 0, anchors: 0, total: 0 };

  /** Take the decision of the coming step and count it; `eps` is 0 where nothing was measured. Whether the step is full. */
  decide(schedule, eps) {
    const { anchors, gap } = this.counts;
    const total = anchors > 0 ? Math.fround(this.counts.total + eps) : this.counts.total;
    const k = this.counts.since + 1;
    const isFull = anchors === 0 || schedule.full(this.phases.length, k, total);
    this.phases += isFull ? "F" : "E";
    this.counts = isFull ? { since: 0, gap: anchors > 0 ? k : 0, anchors: anchors + 1, total: 0 } : { since: k, gap, anchors, total };
    return isFull;
  }
}

/** What a program that decides says of its latest step: the parts of "progress" and the rows of "log" (rfc_fx/ir/progress.py). */
export function lastIsFull(progress, log) {
  const rows = log.dims[0];
  return log.data[(Math.min(progress.data[STEP], rows) - 1) * (log.data.length / rows)] > 0;
}

/** Let a program that decides begin anew: its next step is full. */
export function restart(progress) {
  progress.data[RESTART] = 1;
}

/** The table's entry for a step; its first for all before the first step, its last for all beyond. */
function row(table, step) {
  return table[Math.min(Math.max(step, 0), table.length - 1)];
}
