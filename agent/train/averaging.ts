/**
 * Follows the weights by an exponential moving average (Polyak & Juditsky 1992, in the form used
 * for networks): a ← a + (1 − d)(w − a). At the start the memory is short, d = min(decay,
 * (1 + t) / (10 + t)), so that the first, worst weights are soon forgotten.
 *
 * @param average changed in place. @param decay memory d in [0, 1); 0 copies the weights.
 * @param updates updates t that the weights have seen.
 */
export function averageWeights(
  average: Float32Array,
  weights: Float32Array,
  decay: number,
  updates: number,
): void {
  const fresh = 1 - Math.min(decay, (1 + updates) / (10 + updates));
  for (let i = 0; i < average.length; i++) {
    const before = average[i]!;
    average[i] = before + fresh * (weights[i]! - before);
  }
}
