import { chooseL2 } from "../math/choose-l2.ts";
import type { Gemm } from "../math/gemm.ts";
import { softmax } from "./evaluate.ts";
import type { TrainingFeatures } from "./fit-head.ts";

/** What features are worth for telling the classes apart, judged on training pictures alone. */
export interface FeatureScore {
  /**
   * Mean over classes of {@link hit} of held-back pictures, in [0, 1]: an accuracy, and smoother
   * than counting. NaN where no class has two bursts, so that nothing can be held back.
   */
  readonly expectedAccuracy: number;
  /** Mean over classes of their pictures' negative log likelihood, in nats. */
  readonly loss: number;
  /** Hit of each picture while it was held back; NaN where it never was. */
  readonly hits: readonly number[];
  /** Class of each picture. */
  readonly labels: readonly number[];
}

/**
 * Cross-validates a linear head on features, by burst and with the same folds for the same
 * pictures and seed, so that two networks' scores can be compared.
 */
export async function scoreFeatures(
  data: TrainingFeatures,
  options: { readonly seed: number; readonly gemm: Gemm; readonly signal: AbortSignal },
): Promise<FeatureScore> {
  const chosen = await chooseL2(
    { ...data, samples: data.labels.length },
    { groups: data.bursts, ...options },
  );
  const hits = Array.from(chosen.likelihoods, hit);
  const labels = Array.from(data.labels);
  const losses = chosen.scores.map(({ score }) => score);
  return {
    expectedAccuracy: classMean(hits, labels).mean,
    loss: losses.length > 0 ? Math.min(...losses) : Number.NaN,
    hits,
    labels,
  };
}

/**
 * Hit of each picture by logits of a head that was fitted to none of them.
 *
 * @param logits `pictures × classes`, row-major.
 */
export function hitsOf(logits: Float32Array, labels: readonly number[]): number[] {
  const classes = logits.length / labels.length;
  return labels.map((label, i) =>
    hit(softmax(logits.subarray(i * classes, (i + 1) * classes))[label]!),
  );
}

/** How steeply {@link hit} rises about one half. */
const STEEPNESS = 4;

/**
 * Whether a picture is told from the others, 0 to 1, by the probability p of its own class: p⁴ /
 * (p⁴ + (1 − p)⁴), a count of those above one half with soft edges. The mean of p itself would
 * count every loss of confidence as a loss of accuracy.
 */
function hit(p: number): number {
  const [own, others] = [p ** STEEPNESS, (1 - p) ** STEEPNESS];
  return own / (own + others);
}

/** What a network is expected to lose against another, in percentage points; below 0: to gain. */
export interface ExpectedDrop {
  /** NaN where nothing could be held back. */
  readonly points: number;
  /** Standard error of `points` over pictures. */
  readonly standardError: number;
}

/** Standard errors by which the best of several networks looks better than it is, about. */
const OPTIMISM = 0.5;

/**
 * Points to count on being lost by a network that is chosen among several. The gate judges it on
 * held-out pictures after that, so that all of the uncertainty need not be counted here.
 */
export function dropToCountOn({ points, standardError }: ExpectedDrop): number {
  return points + OPTIMISM * standardError;
}

/** How a network stands against the dense one. */
export interface Standing {
  readonly score: FeatureScore;
  /** Points it is expected to lose. */
  readonly points: number;
  /** Points to count on beside, as it may look better than it is; at least 0. */
  readonly caution: number;
}

/**
 * The standing of a network by that of its origin, so that what the two have in common is not judged
 * anew by fewer pictures. One that was fitted to pictures on the way is judged by those that were
 * kept back; one that was not (the picture is smaller, no more) by all, and chance has no more room
 * than at its origin.
 *
 * @param keptBack a score with the hits of pictures that nothing was fitted to, NaN for the others.
 */
export function standingOf(
  score: FeatureScore,
  origin: { readonly standing: Standing; readonly fitted: boolean },
  dense: FeatureScore,
  keptBack: (score: FeatureScore) => FeatureScore,
): Standing {
  const { standing, fitted } = origin;
  const judges = fitted ? keptBack : (all: FeatureScore) => all;
  const further = expectedDrop(judges(standing.score), judges(score)).points;
  const { standardError } = expectedDrop(judges(dense), judges(score));
  const caution = fitted ? dropToCountOn({ points: 0, standardError }) : standing.caution;
  return { score, points: standing.points + further, caution };
}

/**
 * What the second is expected to lose, picture by picture of the same ones.
 *
 * @throws {RangeError} if the scores are of different pictures.
 */
export function expectedDrop(
  dense: Pick<FeatureScore, "hits" | "labels">,
  other: Pick<FeatureScore, "hits" | "labels">,
): ExpectedDrop {
  const { labels } = dense;
  if (labels.length !== other.labels.length || labels.some((l, i) => l !== other.labels[i])) {
    throw new RangeError("expected scores of the same pictures, in the same order");
  }
  const lost = dense.hits.map((before, i) => 100 * (before - other.hits[i]!));
  const { mean, standardError } = classMean(lost, labels);
  return { points: mean, standardError };
}

/** Mean over classes of the means of their values, NaNs left out. */
function classMean(values: readonly number[], labels: readonly number[]) {
  const byClass = new Map<number, number[]>();
  values.forEach((value, i) => {
    if (Number.isNaN(value)) return;
    byClass.set(labels[i]!, [...(byClass.get(labels[i]!) ?? []), value]);
  });
  const classes = [...byClass.values()].map((own) => {
    const mean = own.reduce((a, b) => a + b, 0) / own.length;
    const squares = own.reduce((sum, value) => sum + (value - mean) ** 2, 0);
    return { mean, squares, count: own.length };
  });
  const total = classes.reduce((sum, { count }) => sum + count, 0);
  // One spread for all classes: a few pictures of one tell little of their own.
  const variance = classes.reduce((sum, { squares }) => sum + squares, 0) / total;
  const ofMeans = classes.reduce((sum, { count }) => sum + variance / count, 0);
  return {
    mean: classes.reduce((sum, { mean }) => sum + mean, 0) / classes.length,
    standardError: Math.sqrt(ofMeans) / classes.length,
  };
}
