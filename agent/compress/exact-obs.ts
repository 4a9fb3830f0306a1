import { pause } from "../math/pause.ts";
import { checkLength, dot, productOfRows, transposed } from "../math/products.ts";
import type { FactoredHessian } from "./damping.ts";
import { pruneSmallest } from "./pattern.ts";

/** A layer to be solved one weight at a time. */
export interface ExactObsProblem {
  /** W, `rows × cols`, row-major; read only. */
  readonly weights: Float64Array;
  readonly rows: number;
  readonly cols: number;
  /** H + λI of the layer's inputs and the factor of its inverse. */
  readonly hessian: FactoredHessian;
  readonly signal?: AbortSignal | undefined;
}

/** In which order the weights of every row go, until none is left. */
export interface RemovalTraces {
  /** Columns in the order of their removal, `rows × cols`. */
  readonly order: Int32Array;
  /** What each removal adds to ½δ(H+λI)δᵀ, in the same order, `rows × cols`. */
  readonly losses: Float64Array;
}

/** Cubes of columns between two looks at the event loop, some 3 ms. */
const BETWEEN_PAUSES = 2 ** 24;

/**
 * ExactOBS: removes the weights of every row one by one, each time the one whose removal, all
 * others of the row making up for it, adds least to the loss: w_p²/(2·[H⁻¹]_pp). Frantar &
 * Alistarh 2022, arXiv:2208.11580, Algorithm 1. rows·cols³/6 multiplications, 1.2 G/s on
 * one x64 core of Node 20.
 *
 * After any number of removals the row is the least squares on what is left, so the weights at a
 * level are those of `refit` on the mask, and only the order is kept, which the released code
 * stores whole rows for. Dead inputs go first and cost nothing.
 *
 * @throws {RangeError} if a size does not fit.
 * @throws the signal's reason, when aborted between two rows.
 */
export async function traceRemovals(problem: ExactObsProblem): Promise<RemovalTraces> {
  const { rows, cols } = problem;
  const order = new Int32Array(rows * cols);
  const losses = new Float64Array(rows * cols);
  const row = openRow(problem);
  const atOnce = Math.ceil(BETWEEN_PAUSES / cols ** 3);
  for (let r = 0; r < rows; r++) {
    if (r % atOnce === 0) await pause(problem.signal);
    startRow(row, problem, r);
    for (let step = r * cols; row.left > 0; step++) {
      const p = cheapest(row);
      order[step] = row.columns[p]!;
      losses[step] = eliminate(row, p);
    }
  }
  return { order, losses };
}

/**
 * The mask that removes `zeros` weights of all rows together where it costs least, each row in the
 * order of its trace. A removal may be cheaper than the one it needs before it: both then count
 * with their mean (the trace's lower convex hull), where the released code sorts them apart and
 * so takes the cheap one for granted.
 *
 * @returns 1 where a weight stays, `rows × cols`.
 * @throws {RangeError} if a size does not fit.
 */
export function maskOfTraces(
  { order, losses }: RemovalTraces,
  rows: number,
  cols: number,
  zeros: number,
): Uint8Array {
  checkLength("order", order, rows * cols);
  const costs = new Float64Array(rows * cols);
  for (let at = 0; at < costs.length; at += cols) {
    costs.set(ascending(losses.subarray(at, at + cols)), at);
  }
  const stays = new Uint8Array(rows * cols).fill(1);
  pruneSmallest(costs, zeros, stays);
  const kept = new Uint8Array(rows * cols).fill(1);
  for (let i = 0; i < kept.length; i++) {
    if (stays[i] === 0) kept[i - (i % cols) + order[i]!] = 0;
  }
  return kept;
}

/** The isotonic regression: neighbors that descend are replaced by their mean. */
function ascending(values: Float64Array): Float64Array {
  const ends: number[] = [];
  const means: number[] = [];
  for (const [i, value] of values.entries()) {
    let mean = value;
    let start = i;
    while (means.length > 0 && means.at(-1)! > mean) {
      const end = ends.pop()!;
      const before = ends.at(-1) ?? 0;
      mean = (mean * (i + 1 - start) + means.pop()! * (end - before)) / (i + 1 - before);
      start = before;
    }
    means.push(mean);
    ends.push(i + 1);
  }
  const out = new Float64Array(values.length);
  means.forEach((mean, b) => {
    out.fill(mean, ends[b - 1] ?? 0, ends[b]!);
  });
  return out;
}

/**
 * One row under elimination. Removing weights one by one is the Cholesky factorization of H⁻¹ with
 * pivots chosen on the way: with v_s the column of the s-th pivot,
 * ```
 * [H⁻¹]_ij among what is left = [H⁻¹]_ij − Σ_s v_s[i]·v_s[j]
 * ```
 * so a step needs that for one j alone, and no matrix is updated.
 */
interface Row {
  readonly cols: number;
  /** H⁻¹ whole, `cols × cols`. */
  readonly inverse: Float64Array;
  /** 1/H_jj, which [H⁻¹]_jj never falls below whatever is eliminated; ∞ for dead inputs. */
  readonly floor: Float64Array;
  /** Weights that are left, the columns they are of and their [H⁻¹]_jj. */
  readonly weights: Float64Array;
  readonly columns: Int32Array;
  readonly diagonal: Float64Array;
  left: number;
  /** v_s[i] of the weights left at `i·cols + s`. */
  readonly factor: Float64Array;
  /** Of the weight that goes. */
  readonly pivots: Float64Array;
  readonly products: Float64Array;
}

function openRow({ weights, rows, cols, hessian }: ExactObsProblem): Row {
  checkLength("weights", weights, rows * cols);
  checkLength("hessian", hessian.damped, cols * cols);
  const { damped, dead } = hessian;
  return {
    cols,
    inverse: inverseOf(hessian, cols),
    floor: Float64Array.from({ length: cols }, (_, j) =>
      dead[j] ? Number.POSITIVE_INFINITY : 1 / damped[j * (cols + 1)]!,
    ),
    weights: new Float64Array(cols),
    columns: new Int32Array(cols),
    diagonal: new Float64Array(cols),
    left: 0,
    factor: new Float64Array(cols * cols),
    pivots: new Float64Array(cols),
    products: new Float64Array(cols),
  };
}

/** H⁻¹ = Uᵀ·U, whole. */
function inverseOf({ U }: FactoredHessian, cols: number): Float64Array {
  const Ut = transposed(U, cols, cols);
  return productOfRows(Ut, Ut, cols, cols, cols);
}

function startRow(row: Row, { weights, cols }: ExactObsProblem, r: number): void {
  row.weights.set(weights.subarray(r * cols, (r + 1) * cols));
  for (let j = 0; j < cols; j++) {
    row.columns[j] = j;
    row.diagonal[j] = Math.max(row.inverse[j * (cols + 1)]!, row.floor[j]!);
  }
  row.left = cols;
}

/** The weight left that costs least to remove. */
function cheapest({ weights, diagonal, left }: Row): number {
  let best = 0;
  let least = Number.POSITIVE_INFINITY;
  for (let p = 0; p < left; p++) {
    const cost = weights[p]! ** 2 / diagonal[p]!;
    if (!(cost < least)) continue;
    best = p;
    least = cost;
  }
  return best;
}

/**
 * Removes the `p`-th weight left, the others making up for it; the last one takes its place.
 *
 * @returns what that adds to the loss.
 */
function eliminate(row: Row, p: number): number {
  const { cols, inverse, floor, weights, columns, diagonal, factor, pivots, products } = row;
  const pivot = diagonal[p]!;
  const scale = 1 / Math.sqrt(pivot);
  const size = weights[p]! * scale;
  const from = columns[p]! * cols;
  const step = row.cols - row.left;
  const last = --row.left;
  pivots.set(factor.subarray(p * cols, p * cols + step));
  if (p < last) {
    factor.copyWithin(p * cols, last * cols, last * cols + step);
    weights[p] = weights[last]!;
    columns[p] = columns[last]!;
    diagonal[p] = diagonal[last]!;
  }
  explained(row, step);
  for (let i = 0; i < last; i++) {
    const column = columns[i]!;
    const v = (inverse[from + column]! - products[i]!) * scale;
    factor[i * cols + step] = v;
    weights[i]! -= size * v;
    diagonal[i] = Math.max(diagonal[i]! - v * v, floor[column]!);
  }
  return 0.5 * size * size;
}

/** Σ_s v_s[i]·v_s[p] over `steps` for all weights left, four at a time. */
function explained({ cols, factor, pivots, products, left }: Row, steps: number): void {
  let i = 0;
  for (; i + 3 < left; i += 4) {
    const a = i * cols;
    const [b, c, d] = [a + cols, a + 2 * cols, a + 3 * cols];
    let [sa, sb, sc, sd] = [0, 0, 0, 0];
    for (let s = 0; s < steps; s++) {
      const pivot = pivots[s]!;
      sa += factor[a + s]! * pivot;
      sb += factor[b + s]! * pivot;
      sc += factor[c + s]! * pivot;
      sd += factor[d + s]! * pivot;
    }
    products[i] = sa;
    products[i + 1] = sb;
    products[i + 2] = sc;
    products[i + 3] = sd;
  }
  for (; i < left; i++) products[i] = dot(factor, i * cols, pivots, 0, steps);
}
