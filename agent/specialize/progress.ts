import { changesNothing, parseMethod } from "../method.ts";
import type { RunEvent } from "./run.ts";
import { type RunSpec, STAGES, type StageName } from "./spec.ts";

/** How far a run is, for people. */
export interface RunOutlook {
  readonly stage: StageName;
  /** Of the whole run, in [0, 1]. */
  readonly share: number;
  /** Estimate from the speed so far; null while there is nothing to go by. */
  readonly secondsLeft: number | null;
}

/** Minutes of each stage, as measured with EfficientNet-B0 and 320 pictures; training has a limit. */
const WEIGHT: Readonly<Record<Exclude<StageName, "fine-tune">, number>> = {
  pictures: 0.06,
  features: 0.12,
  head: 0.02,
  search: 1.5,
  compress: 0.66,
  "head-refit": 0.06,
  evaluate: 0.05,
  latency: 0.02,
  verdict: 0.01,
};

/** Stages that take no time with a method. */
function idleStages(text: string): readonly StageName[] {
  const method = parseMethod(text);
  if (changesNothing(method)) return ["search", "compress", "head-refit", "fine-tune"];
  return method.kind === "auto" ? [] : ["search"];
}

/** Follows a run's events and says how far it is and how long it will still take. */
export class RunProgress {
  readonly #startMs: number;
  /** Share of each stage; the shares add up to 1. */
  readonly #weights: ReadonlyMap<StageName, number>;
  #finished = 0;
  #stage: StageName = STAGES[0];
  #withinStage = 0;
  /** Share that a resumed run began with: it took no time in this life. */
  #startShare: number | null = null;

  /** @param startMs monotonic time of the run's start. */
  constructor(startMs: number, options: Pick<RunSpec["options"], "method" | "fineTune">) {
    this.#startMs = startMs;
    const idle = idleStages(options.method);
    const weights = STAGES.map((name) => {
      if (idle.includes(name)) return 0;
      return name === "fine-tune" ? (options.fineTune?.maxSeconds ?? 0) / 60 : WEIGHT[name];
    });
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    this.#weights = new Map(STAGES.map((name, i) => [name, weights[i]! / total]));
  }

  /** @param nowMs monotonic time of the event. */
  update(event: RunEvent, nowMs: number): RunOutlook {
    if (event.type === "stage-started") {
      // Stages that a resumed run does not do again count as done.
      const before = STAGES.slice(0, STAGES.indexOf(event.stage));
      this.#finished = before.reduce((sum, name) => sum + this.#weight(name), 0);
      this.#withinStage = 0;
    } else if (event.type === "progress") {
      this.#withinStage = event.total > 0 ? event.done / event.total : 0;
    } else if (event.type === "stage-finished") {
      this.#withinStage = 1;
    }
    this.#stage = event.stage;
    const share = Math.min(1, this.#finished + this.#weight(this.#stage) * this.#withinStage);
    this.#startShare ??= share;
    const elapsed = (nowMs - this.#startMs) / 1000;
    const done = share - this.#startShare;
    const secondsLeft = done > 0.02 ? (elapsed * (1 - share)) / done : null;
    return { stage: this.#stage, share, secondsLeft };
  }

  #weight(stage: StageName): number {
    return this.#weights.get(stage) ?? 0;
  }
}
