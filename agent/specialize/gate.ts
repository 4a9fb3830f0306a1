import type { Scores } from "./evaluate.ts";

/** Limits of the gate, from the configuration. */
export interface GateConfig {
  /** Largest accepted loss of accuracy against the dense specialized model, in points (0–100). */
  readonly maxDropPoints: number;
  /** Smallest accepted macro F1, in [0, 1]. */
  readonly minMacroF1: number;
  /** Largest accepted median latency over that of the dense model. */
  readonly maxLatencyRatio: number;
  /** Confidence of the interval, in (0.5, 1). */
  readonly confidence: number;
  /** What to do where the held-out bursts are too few for the interval to decide. */
  readonly onThinEvidence: "probation" | "refuse";
}

/** What one model said of one held-out frame. */
export interface GateFrame {
  readonly burst: string;
  readonly truth: string;
  readonly predicted: string;
  /** False where the model gave NaN or infinity. */
  readonly finite: boolean;
}

/** One model as the gate sees it. */
export interface GateModel {
  readonly classes: readonly string[];
  readonly scores: Scores;
  /** Outcomes on the held-out frames, in the same order for every model of one verdict. */
  readonly frames: readonly GateFrame[];
  /** Median milliseconds in the serving process. */
  readonly latencyMsP50: number;
}

/** Difference of two models' accuracy on the same frames, in points. */
export interface PairedDifference {
  readonly points: number;
  readonly lowPoints: number;
  readonly highPoints: number;
  readonly bursts: number;
}

/** The gate's decision, with every reason in words. */
export interface Verdict {
  readonly accepted: boolean;
  /** Accepted although the evidence is thin: only the probation will show it. */
  readonly onThinEvidence: boolean;
  readonly reasons: readonly string[];
  readonly againstDense: PairedDifference;
  readonly againstIncumbent: PairedDifference | null;
}

type Finding = { readonly kind: "pass" | "thin" | "refuse"; readonly reason: string };

const RESAMPLES = 2000;

/**
 * Decides whether a candidate may serve. Pure: the same input gives the same verdict.
 *
 * Refused where a limit is broken for certain, or where the plain estimate itself breaks it; left
 * to `onThinEvidence` where the estimate is fine but the interval reaches beyond the limit.
 *
 * @param incumbent the model that serves now; null on a station's first run.
 * @param keepsClasses false for an incumbent that is the bare generalist: its classes may go.
 * @param random uniform numbers in [0, 1), seeded by the caller.
 */
export function judge(
  models: {
    readonly dense: GateModel;
    readonly incumbent: (GateModel & { readonly keepsClasses: boolean }) | null;
    readonly candidate: GateModel;
  },
  config: GateConfig,
  random: () => number,
): Verdict {
  const { dense, incumbent, candidate } = models;
  const againstDense = pairedDifference(candidate.frames, dense.frames, config.confidence, random);
  const againstIncumbent = incumbent
    ? pairedDifference(candidate.frames, incumbent.frames, config.confidence, random)
    : null;
  const findings: Finding[] = [
    ...finiteFindings(candidate),
    accuracyFinding("the dense model", againstDense, config.maxDropPoints),
    ...(againstIncumbent ? [incumbentFinding(againstIncumbent, config.maxDropPoints)] : []),
    ...lostClassFindings(dense, incumbent, candidate),
    macroF1Finding(candidate.scores.macroF1, config.minMacroF1),
    latencyFinding(candidate.latencyMsP50, dense.latencyMsP50, config.maxLatencyRatio),
  ];
  const refused = findings.some((f) => f.kind === "refuse");
  const thin = findings.some((f) => f.kind === "thin");
  const accepted = !refused && (!thin || config.onThinEvidence === "probation");
  const reasons = findings.map((f) => f.reason);
  if (!refused && thin) reasons.push(thinSentence(againstDense.bursts, config.onThinEvidence));
  return { accepted, onThinEvidence: accepted && thin, reasons, againstDense, againstIncumbent };
}

/**
 * Paired bootstrap over bursts of the difference in frame accuracy, `ours − theirs`, in points;
 * percentile interval of {@link RESAMPLES} resamples (Efron & Tibshirani 1993, chapter 13). Where
 * no burst at all is worse, resampling cannot see that one could be: the lower bound then gives way
 * by the exact binomial limit, 1 − (1 − confidence)^(1/bursts) of the bursts ("rule of three"); the
 * upper bound likewise where no burst is better.
 *
 * @throws {RangeError} if the two are not outcomes of the same frames.
 */
export function pairedDifference(
  ours: readonly GateFrame[],
  theirs: readonly GateFrame[],
  confidence: number,
  random: () => number,
): PairedDifference {
  const bursts = burstDifferences(ours, theirs);
  const count = bursts.length;
  const estimate = ratio(bursts);
  const resampled = Float64Array.from({ length: RESAMPLES }, () =>
    ratio(Array.from({ length: count }, () => bursts[Math.floor(random() * count)]!)),
  ).sort();
  const tail = (1 - confidence) / 2;
  const unseen = 1 - (1 - confidence) ** (1 / count);
  const low = resampled[Math.floor(tail * RESAMPLES)]!;
  const high = resampled[Math.ceil((1 - tail) * RESAMPLES) - 1]!;
  return {
    points: 100 * estimate,
    lowPoints: 100 * (bursts.some((b) => b.gain < 0) ? low : low - unseen),
    highPoints: 100 * (bursts.some((b) => b.gain > 0) ? high : high + unseen),
    bursts: count,
  };
}

interface BurstDifference {
  /** Frames right for us minus frames right for them. */
  gain: number;
  frames: number;
}

function burstDifferences(
  ours: readonly GateFrame[],
  theirs: readonly GateFrame[],
): BurstDifference[] {
  if (ours.length !== theirs.length || ours.length === 0) {
    throw new RangeError(
      `expected outcomes of the same frames, got ${ours.length} and ${theirs.length}`,
    );
  }
  const bursts = new Map<string, BurstDifference>();
  ours.forEach((our, index) => {
    const their = theirs[index]!;
    if (our.burst !== their.burst || our.truth !== their.truth) {
      throw new RangeError(
        `frame ${index} is of ${our.burst} for one model, ${their.burst} for the other`,
      );
    }
    const burst = bursts.get(our.burst) ?? { gain: 0, frames: 0 };
    burst.gain += Number(our.predicted === our.truth) - Number(their.predicted === their.truth);
    burst.frames += 1;
    bursts.set(our.burst, burst);
  });
  return [...bursts.values()];
}

function ratio(bursts: readonly BurstDifference[]): number {
  let gain = 0;
  let frames = 0;
  for (const burst of bursts) {
    gain += burst.gain;
    frames += burst.frames;
  }
  return gain / frames;
}

function accuracyFinding(whom: string, d: PairedDifference, maxDropPoints: number): Finding {
  const facts = `${signed(d.points)} points of accuracy against ${whom} (${interval(d)}, ${d.bursts} held-out bursts)`;
  const limit = `at most ${maxDropPoints} may be lost`;
  if (d.points < -maxDropPoints) return { kind: "refuse", reason: `${facts}: ${limit}` };
  if (d.lowPoints < -maxDropPoints) {
    return { kind: "thin", reason: `${facts}: ${limit}, and the interval cannot exclude more` };
  }
  return { kind: "pass", reason: `${facts}: within the ${maxDropPoints} that may be lost` };
}

function incumbentFinding(d: PairedDifference, maxDropPoints: number): Finding {
  if (d.highPoints < 0) {
    return {
      kind: "refuse",
      reason: `worse than the incumbent for certain: ${signed(d.points)} points (${interval(d)})`,
    };
  }
  return accuracyFinding("the incumbent", d, maxDropPoints);
}

function lostClassFindings(
  dense: GateModel,
  incumbent: (GateModel & { readonly keepsClasses: boolean }) | null,
  candidate: GateModel,
): Finding[] {
  const findings: Finding[] = [];
  const known = new Set(candidate.classes);
  if (incumbent?.keepsClasses) {
    for (const name of incumbent.classes) {
      if (known.has(name)) continue;
      const reason = `the class "${name}" of the incumbent is not among the candidate's: label some pictures of it again`;
      findings.push({ kind: "refuse", reason });
    }
  }
  for (const [name, denseRecall] of Object.entries(dense.scores.recall)) {
    const best = Math.max(denseRecall, incumbent?.scores.recall[name] ?? 0);
    if (best > 0 && !((candidate.scores.recall[name] ?? 0) > 0)) {
      const reason = `the class "${name}" is lost: no held-out frame of it is found any more, ${percent(best)} were before`;
      findings.push({ kind: "refuse", reason });
    }
  }
  if (findings.length === 0) findings.push({ kind: "pass", reason: "no class is lost" });
  const unseen = candidate.classes.filter((name) => !(name in candidate.scores.recall));
  if (unseen.length > 0) {
    const reason = `no burst of ${unseen.join(", ")} is held out: whether it is lost cannot be told`;
    findings.push({ kind: "thin", reason });
  }
  return findings;
}

function macroF1Finding(macroF1: number, minimum: number): Finding {
  const facts = `macro F1 ${macroF1.toFixed(3)}, at least ${minimum} is asked for`;
  return { kind: macroF1 >= minimum ? "pass" : "refuse", reason: facts };
}

function latencyFinding(candidateMs: number, denseMs: number, maxRatio: number): Finding {
  const value = candidateMs / denseMs;
  const facts = `latency ${candidateMs.toFixed(1)} ms, ${value.toFixed(2)} times the dense model's; at most ${maxRatio} times is accepted`;
  return { kind: value <= maxRatio ? "pass" : "refuse", reason: facts };
}

function finiteFindings(candidate: GateModel): Finding[] {
  const bad = candidate.frames.filter((f) => !f.finite).length;
  if (bad === 0) return [];
  return [{ kind: "refuse", reason: `${bad} held-out frames got no finite answer` }];
}

function thinSentence(bursts: number, action: "probation" | "refuse"): string {
  const what =
    action === "probation" ? "accepted on probation" : "refused, as onThinEvidence asks for";
  return `evidence is thin: ${bursts} held-out bursts cannot decide; ${what}`;
}

function interval(d: PairedDifference): string {
  return `interval ${signed(d.lowPoints)} to ${signed(d.highPoints)}`;
}

function signed(points: number): string {
  return `${points >= 0 ? "+" : "−"}${Math.abs(points).toFixed(1)}`;
}

function percent(share: number): string {
  return `${(100 * share).toFixed(0)} %`;
}
