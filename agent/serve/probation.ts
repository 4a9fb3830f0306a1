import type { Answer } from "./protocol.ts";

/** When a swapped-in model may stay, and what sends it back. */
export interface ProbationConfig {
  /** Frames after which it may stay. */
  frames: number;
  /** Minutes after which it may stay, if it has classified any frame at all. */
  minutes: number;
  /** Share of frames that the model may fail on, in [0, 1]. */
  maxErrorRate: number;
  /** Largest median run time over that of the incumbent. */
  maxLatencyRatio: number;
  /** Share of frames with one and the same label above which the answers count as collapsed. */
  maxLabelShare: number;
}

/** What is known of the model that served before. */
export interface IncumbentBehavior {
  /** Null where it was never measured: latency is not judged then. */
  medianRunMs: number | null;
  /** Share of its most frequent label; null where unknown: collapse is not judged then. */
  topLabelShare: number | null;
}

/** A probation under way: plain JSON, so that a restart can go on with it. */
export interface ProbationState {
  modelSha256: string;
  incumbent: IncumbentBehavior;
  /** Monotonic time of the last look, in the clock of this process. */
  lastMs: number;
  /** Time that the agent was up, in milliseconds; never falls. */
  elapsedMs: number;
  /** Frames answered or failed by this model. */
  frames: number;
  failed: number;
  /** Newest run times, at most {@link KEPT_RUNS}. */
  runMs: number[];
  /** Frames by label. */
  labels: Record<string, number>;
  /** Changes of the burst from one frame to the next, plus one. */
  bursts: number;
  lastBurst: string | null;
}

/** One frame of the model on probation. */
export type ProbationOutcome =
  | { kind: "answered"; label: string; runMs: number; burst: string }
  | { kind: "failed" };

/** Stay, go back, or wait; the reason is for people. */
export interface ProbationDecision {
  kind: "continue" | "commit" | "rollback";
  reason: string;
}

/** Run times kept for the median. */
const KEPT_RUNS = 501;
/** Failures from which on the error rate is judged before the probation is over. */
const EARLY_FAILURES = 5;
/** Frames from which on latency and labels are judged before the probation is over. */
const EARLY_FRAMES = 50;
/** One animal before the camera for long is no collapse: so many bursts must agree. */
const COLLAPSE_BURSTS = 5;
/** The incumbent's share must lie this far below the limit, else the station is just so. */
const COLLAPSE_MARGIN = 0.1;

/** Begins a probation. @param nowMs monotonic time. */
export function startProbation(
  modelSha256: string,
  incumbent: IncumbentBehavior,
  nowMs: number,
): ProbationState {
  return {
    modelSha256,
    incumbent,
    lastMs: nowMs,
    elapsedMs: 0,
    frames: 0,
    failed: 0,
    runMs: [],
    labels: {},
    bursts: 0,
    lastBurst: null,
  };
}

/** Goes on with a kept probation after a restart: the time in between does not count. */
export function resumeProbation(state: ProbationState, nowMs: number): ProbationState {
  return { ...state, lastMs: nowMs };
}

/** Lets time pass; a clock that went backwards adds nothing. @param nowMs monotonic time. */
export function passTime(state: ProbationState, nowMs: number): ProbationState {
  const elapsedMs = state.elapsedMs + Math.max(0, nowMs - state.lastMs);
  return { ...state, lastMs: nowMs, elapsedMs };
}

/**
 * What an answer says about the model on probation; null where it says nothing: another model's
 * answer, a picture that was only inspected, or one that no model could have read.
 */
export function probationOutcome(
  state: ProbationState,
  answer: Answer,
  burst: string,
): ProbationOutcome | null {
  if (answer.kind === "inspected" || answer.modelSha256 !== state.modelSha256) return null;
  if (answer.kind === "classified") {
    return { kind: "answered", label: answer.label, runMs: answer.runMs, burst };
  }
  return answer.code === "PICTURE_UNREADABLE" ? null : { kind: "failed" };
}

/** The state after one more frame; the one given is not changed. */
export function observe(
  state: ProbationState,
  outcome: ProbationOutcome,
  nowMs: number,
): ProbationState {
  const next = { ...passTime(state, nowMs), frames: state.frames + 1 };
  if (outcome.kind === "failed") return { ...next, failed: state.failed + 1 };
  const { label, runMs, burst } = outcome;
  return {
    ...next,
    runMs: [...state.runMs, runMs].slice(-KEPT_RUNS),
    labels: { ...state.labels, [label]: (state.labels[label] ?? 0) + 1 },
    bursts: state.bursts + (burst === state.lastBurst ? 0 : 1),
    lastBurst: burst,
  };
}

/**
 * Decides on a model on probation. It is sent back as soon as the evidence is enough for that; it
 * stays after `frames` frames, or after `minutes` with fewer but not with none: a model that has
 * classified nothing has shown nothing, so it stays on probation.
 *
 * @param nowMs monotonic time.
 */
export function decideProbation(
  state: ProbationState,
  config: ProbationConfig,
  nowMs: number,
): ProbationDecision {
  const { elapsedMs, frames } = passTime(state, nowMs);
  const minutes = elapsedMs / 60_000;
  const enoughFrames = frames >= config.frames;
  const over = enoughFrames || (minutes >= config.minutes && frames > 0);
  const fault =
    tooManyErrors(state, config, over) ??
    tooSlow(state, config, over) ??
    collapsed(state, config, over);
  if (fault !== null) return { kind: "rollback", reason: fault };
  const seen = `${frames} frames in ${minutes.toFixed(1)} minutes`;
  if (over) return { kind: "commit", reason: `${seen} without a fault` };
  const wanted = `${config.frames} frames, or ${config.minutes} minutes with at least one`;
  return { kind: "continue", reason: `${seen} of ${wanted}` };
}

function tooManyErrors(
  state: ProbationState,
  config: ProbationConfig,
  over: boolean,
): string | null {
  const { failed, frames } = state;
  if (!over && failed < EARLY_FAILURES) return null;
  if (failed <= config.maxErrorRate * frames) return null;
  const allowed = percent(config.maxErrorRate);
  return `the model failed on ${failed} of ${frames} frames, allowed are ${allowed}`;
}

function tooSlow(state: ProbationState, config: ProbationConfig, over: boolean): string | null {
  const { medianRunMs } = state.incumbent;
  const samples = state.runMs.length;
  if (medianRunMs === null || samples === 0 || (!over && samples < EARLY_FRAMES)) return null;
  const sorted = [...state.runMs].sort((a, b) => a - b);
  const median = sorted[samples >> 1]!;
  if (median <= config.maxLatencyRatio * medianRunMs) return null;
  const ratio = (median / medianRunMs).toFixed(2);
  return (
    `a run takes ${median.toFixed(1)} ms, ${ratio} times the ${medianRunMs.toFixed(1)} ms of the ` +
    `model before, allowed are ${config.maxLatencyRatio} times`
  );
}

function collapsed(state: ProbationState, config: ProbationConfig, over: boolean): string | null {
  const { topLabelShare } = state.incumbent;
  const answered = state.frames - state.failed;
  const needed = over ? Math.min(EARLY_FRAMES, config.frames) : EARLY_FRAMES;
  if (topLabelShare === null || topLabelShare > config.maxLabelShare - COLLAPSE_MARGIN) return null;
  if (answered < needed || state.bursts < COLLAPSE_BURSTS) return null;
  const [label, count] = Object.entries(state.labels).reduce((a, b) => (b[1] > a[1] ? b : a));
  if (count <= config.maxLabelShare * answered) return null;
  return (
    `${percent(count / answered)} of ${answered} frames in ${state.bursts} bursts were called ` +
    `"${label}"; of the model before it was ${percent(topLabelShare)} at most`
  );
}

function percent(share: number): string {
  return `${(100 * share).toFixed(1)} %`;
}
