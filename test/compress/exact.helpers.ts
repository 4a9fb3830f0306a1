import { choleskyInverse } from "../../agent/math/cholesky.ts";

/** One row while its weights are fixed one by one, the inverse of H kept by plain downdates. */
export interface SlowRow {
  readonly weights: Float64Array;
  /** [H⁻¹] among the columns left, `cols × cols`. */
  readonly inverse: Float64Array;
  /** Columns not yet fixed. */
  readonly left: Set<number>;
  /** What each step added to ½δHδᵀ. */
  readonly losses: number[];
}

/** @throws {RangeError} if H is not positive definite. */
export function inverseOf(H: Float64Array): Float64Array {
  const inverse = choleskyInverse(H.slice(), Math.sqrt(H.length));
  if (inverse) return inverse;
  throw new RangeError("H: expected a positive definite matrix");
}

export function slowRow(weights: Float64Array, inverse: Float64Array): SlowRow {
  const left = new Set(weights.keys());
  return { weights: weights.slice(), inverse: inverse.slice(), left, losses: [] };
}

/** Fixes a weight at a value for good and lets the others make up for it. */
export function fix({ weights, inverse, left, losses }: SlowRow, p: number, value: number): void {
  const cols = weights.length;
  const pivot = inverse[p * (cols + 1)]!;
  const error = weights[p]! - value;
  left.delete(p);
  for (const j of left) weights[j]! -= (error / pivot) * inverse[p * cols + j]!;
  for (const i of left) {
    const factor = inverse[i * cols + p]! / pivot;
    for (const j of left) inverse[i * cols + j]! -= factor * inverse[p * cols + j]!;
  }
  weights[p] = value;
  losses.push((0.5 * error * error) / pivot);
}

/** The column left with the least cost; undefined where all cost infinitely much. */
export function cheapest(row: SlowRow, costOf: (column: number) => number): number | undefined {
  let best: number | undefined;
  let least = Number.POSITIVE_INFINITY;
  for (const j of row.left) {
    if (!(costOf(j) < least)) continue;
    best = j;
    least = costOf(j);
  }
  return best;
}

/** What removing a weight adds to twice the loss. */
export function removalCost({ weights, inverse }: SlowRow, j: number): number {
  return weights[j]! ** 2 / inverse[j * (weights.length + 1)]!;
}

/** ExactOBS of one row with N zeros in every M neighbors: the cheapest of groups not yet full. */
export function exactGroups(row: SlowRow, n: number, m: number): void {
  const open = new Array<number>(Math.ceil(row.weights.length / m)).fill(n);
  for (;;) {
    const cost = (j: number) =>
      open[Math.floor(j / m)]! > 0 ? removalCost(row, j) : Number.POSITIVE_INFINITY;
    const p = cheapest(row, cost);
    if (p === undefined) return;
    open[Math.floor(p / m)]!--;
    fix(row, p, 0);
  }
}

/**
 * OBQ of one row: rounds the weight first that costs least. A weight whose error is above half a
 * step has left the grid, and more so with every step that makes up for others: the released code
 * takes the worst of these first.
 */
export function optimalBrainQuantization(
  row: SlowRow,
  step: number,
  round: (value: number) => number,
): void {
  const { weights, inverse, left } = row;
  const squared = (j: number) => (weights[j]! - round(weights[j]!)) ** 2;
  while (left.size > 0) {
    const outside = [...left].filter((j) => squared(j) > 0.25 * step * step * (1 + 1e-6));
    outside.sort((a, b) => squared(b) - squared(a));
    const cost = (j: number) => squared(j) / inverse[j * (weights.length + 1)]!;
    const p = outside[0] ?? cheapest(row, cost)!;
    fix(row, p, round(weights[p]!));
  }
}
