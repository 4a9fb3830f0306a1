import type { LabelProbability } from "./protocol.ts";

/**
 * The most probable classes by softmax of the logits, less their maximum so that none overflows.
 *
 * @param logits finite, one a class.
 * @param count at most so many are returned, most probable first; ties by order of the classes.
 */
export function topLabels(
  logits: ArrayLike<number>,
  classes: readonly string[],
  count: number,
): LabelProbability[] {
  if (logits.length !== classes.length) {
    throw new RangeError(`expected ${classes.length} logits, got ${logits.length}`);
  }
  let largest = Number.NEGATIVE_INFINITY;
  for (let i = 0; i < logits.length; i++) largest = Math.max(largest, logits[i]!);
  const exponentials = classes.map((_, i) => Math.exp(logits[i]! - largest));
  const total = exponentials.reduce((sum, value) => sum + value, 0);
  return exponentials
    .map((value, i) => ({ label: classes[i]!, probability: value / total }))
    .sort((a, b) => b.probability - a.probability)
    .slice(0, count);
}
