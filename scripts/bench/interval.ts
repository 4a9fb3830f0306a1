/** A mean and where the true one is with 95 % confidence (Student's t over the values). */
export interface Interval {
  readonly mean: number;
  readonly low: number;
  readonly high: number;
  readonly values: readonly number[];
}

/** 97.5 % quantiles of Student's t by degrees of freedom, 1 to 9; beyond that the normal one. */
const QUANTILES = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262];

/** Mean of paired differences, or of ratios, over seeds; the interval is all there is of one. */
export function meanWithInterval(values: readonly number[]): Interval {
  const n = values.length;
  const mean = values.reduce((sum, x) => sum + x, 0) / n;
  if (n < 2) return { mean, low: Number.NEGATIVE_INFINITY, high: Number.POSITIVE_INFINITY, values };
  const variance = values.reduce((sum, x) => sum + (x - mean) ** 2, 0) / (n - 1);
  const half = (QUANTILES[n - 2] ?? 1.96) * Math.sqrt(variance / n);
  return { mean, low: mean - half, high: mean + half, values };
}
