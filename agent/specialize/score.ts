import { chooseL2 } from "../math/choose-l2.ts";
import type { Gemm } from "../math/gemm.ts";
import type { TrainingFeatures } from "./fit-head.ts";

/** What features are worth for telling the classes apart, judged on training pictures alone. */
export interface FeatureScore {
  /**
   * Mean over classes of the probability that held-back pictures give their own class, in [0, 1]:
   * the accuracy of a head that knows how sure it is, and smoother than counting hits. NaN where
   * no class has two bursts, so that nothing can be held back.
   */
  readonly expectedAccuracy: number;
  /** Mean over classes of their pictures' negative log likelihood, in nats. */
  readonly loss: number;
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
  const sums = new Float64Array(data.classes);
  const counts = new Float64Array(data.classes);
  data.labels.forEach((label, i) => {
    const likelihood = chosen.likelihoods[i]!;
    if (Number.isNaN(likelihood)) return;
    sums[label]! += likelihood;
    counts[label]! += 1;
  });
  const means = [...sums].flatMap((sum, c) => (counts[c]! > 0 ? [sum / counts[c]!] : []));
  const losses = chosen.scores.map(({ score }) => score);
  return {
    expectedAccuracy: means.reduce((a, b) => a + b, 0) / means.length,
    loss: losses.length > 0 ? Math.min(...losses) : Number.NaN,
  };
}

/** Percentage points that the second is expected to lose against the first; less than 0: to gain. */
export function expectedDropPoints(dense: FeatureScore, other: FeatureScore): number {
  return 100 * (dense.expectedAccuracy - other.expectedAccuracy);
}
