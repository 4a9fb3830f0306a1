import { checkLength } from "../math/products.ts";

/** Which integers a weight may become. */
export interface QuantizerOptions {
  /** 2 to 8. */
  readonly bits: number;
  /** Whether zero is code 0: what runtimes want of weights. Default true. */
  readonly symmetric?: boolean;
  /**
   * Whether the symmetric codes leave out −2^(bits−1), so that they reach as far up as down, as
   * ONNX Runtime and TensorRT take them. Default true; the code released with GPTQ keeps it.
   */
  readonly narrow?: boolean;
  /** Smallest share of a row's range that the scale may cover, in (0, 1]. Default 0.4. */
  readonly smallestRange?: number;
  /** Exponent of the error that the scale is chosen by. Default 2; OBC and GPTQ take 2.4. */
  readonly norm?: number;
  /** What an error in each column weighs, such as diag H, `cols`. Equal by default. */
  readonly importance?: Float64Array;
  /** Neighbors in a row that share a scale; divides `cols`. Default `cols`. */
  readonly gridSize?: number;
}

/** A grid for each row, or for each block of neighbors in a row: w ≈ scale·(code − zero). */
export interface WeightQuantizer {
  /** Smallest and largest code, within −128 … 127. */
  readonly lowest: number;
  readonly highest: number;
  /** Positive, one a row, or `rows × blocks.perRow`. */
  readonly scale: Float32Array;
  /** Code of exactly 0, as many as scales. */
  readonly zero: Int8Array;
  /** Set where a row has several grids, each for `size` neighbors. */
  readonly blocks?: { readonly size: number; readonly perRow: number };
}

/** Steps of the search over shares of the range. */
const STEPS = 20;

/**
 * A grid for every row of a matrix, or block of a row, by min-max or, where `smallestRange` is
 * below 1, by the share of the range that makes the least Σ |error|^norm: first in 20 steps over
 * the shares, then in 20 around the best one. Zero is always representable, so a pruned weight stays pruned. A row of
 * zeros gets the scale 1.
 *
 * @param weights `rows × cols`, row-major.
 * @param kept 1 where a weight counts, `rows × cols`; all by default.
 * @throws {RangeError} if a size or an option does not fit.
 */
export function fitQuantizer(
  weights: Float64Array,
  rows: number,
  cols: number,
  options: QuantizerOptions,
  kept?: Uint8Array,
): WeightQuantizer {
  checkLength("weights", weights, rows * cols);
  if (kept) checkLength("kept", kept, rows * cols);
  checkOptions(options, cols);
  const { bits, symmetric = true, narrow = true, smallestRange = 0.4 } = options;
  const { importance, gridSize: size = cols } = options;
  const perRow = cols / size;
  const highest = 2 ** (bits - 1) - 1;
  const lowest = symmetric && narrow ? -highest : -highest - 1;
  const quantizer = {
    lowest,
    highest,
    scale: new Float32Array(rows * perRow),
    zero: new Int8Array(rows * perRow),
    ...(perRow > 1 ? { blocks: { size, perRow } } : {}),
  };
  // Blocks follow each other as rows do, so each is taken for a row of its own.
  for (let r = 0; r < rows * perRow; r++) {
    const row = weights.subarray(r * size, (r + 1) * size);
    const mask = kept?.subarray(r * size, (r + 1) * size);
    const weighed = importance?.subarray((r % perRow) * size, ((r % perRow) + 1) * size);
    const range = rangeOf(row, mask, symmetric);
    const errorAt = (share: number): number => {
      const grid = gridOf(range, share, lowest, highest, symmetric);
      quantizer.scale[r] = grid.scale;
      quantizer.zero[r] = grid.zero;
      const stored = { scale: quantizer.scale[r]!, zero: grid.zero };
      return rowError(row, mask, stored, quantizer, options.norm ?? 2, weighed);
    };
    errorAt(smallestRange < 1 ? bestShare(errorAt, smallestRange) : 1);
  }
  return quantizer;
}

/** The code of a value on the grid of row `r` and, where a row has several, of column `j`. */
export function encode(quantizer: WeightQuantizer, r: number, value: number, j = 0): number {
  const at = gridAt(quantizer, r, j);
  const code = Math.round(value / quantizer.scale[at]!) + quantizer.zero[at]!;
  return Math.max(quantizer.lowest, Math.min(quantizer.highest, code));
}

/** The value of a code on the grid of row `r` and, where a row has several, of column `j`. */
export function decode(quantizer: WeightQuantizer, r: number, code: number, j = 0): number {
  const at = gridAt(quantizer, r, j);
  return quantizer.scale[at]! * (code - quantizer.zero[at]!);
}

function gridAt({ blocks }: WeightQuantizer, r: number, j: number): number {
  return blocks ? r * blocks.perRow + Math.floor(j / blocks.size) : r;
}

/** w ≈ scale·(code − zero). */
interface Grid {
  readonly scale: number;
  readonly zero: number;
}

/** Ends of a range, lowest ≤ 0 ≤ highest, not both 0. */
interface Range {
  readonly from: number;
  readonly to: number;
}

function rangeOf(row: Float64Array, mask: Uint8Array | undefined, symmetric: boolean): Range {
  let from = 0;
  let to = 0;
  for (let j = 0; j < row.length; j++) {
    if (mask?.[j] === 0) continue;
    from = Math.min(from, row[j]!);
    to = Math.max(to, row[j]!);
  }
  if (from === 0 && to === 0) return { from: -1, to: 1 };
  if (!symmetric) return { from, to };
  const largest = Math.max(-from, to);
  return { from: -largest, to: largest };
}

function gridOf(
  { from, to }: Range,
  share: number,
  lowest: number,
  highest: number,
  symmetric: boolean,
): Grid {
  const exact = (share * (to - from)) / (highest - lowest);
  // A row so small that its scale is no normal single gets the smallest one.
  const scale = Math.max(2 ** -126, Math.min(3e38, exact));
  if (symmetric) return { scale, zero: 0 };
  const zero = lowest + Math.round((-share * from) / scale);
  return { scale, zero: Math.max(lowest, Math.min(highest, zero)) };
}

/** The share in [smallest, 1] with the least error, 1 where none is better. */
function bestShare(errorAt: (share: number) => number, smallest: number): number {
  let best = 1;
  let least = errorAt(1);
  const search = (from: number, to: number): void => {
    for (let step = 0; step <= STEPS; step++) {
      const share = to - ((to - from) * step) / STEPS;
      const error = errorAt(share);
      if (error < least) {
        least = error;
        best = share;
      }
    }
  };
  search(smallest, 1);
  const step = (1 - smallest) / STEPS;
  search(Math.max(smallest, best - step), Math.min(1, best + step));
  return best;
}

function rowError(
  row: Float64Array,
  mask: Uint8Array | undefined,
  { scale: step, zero: middle }: Grid,
  { lowest, highest }: WeightQuantizer,
  norm: number,
  importance: Float64Array | undefined,
): number {
  let error = 0;
  for (let j = 0; j < row.length; j++) {
    if (mask?.[j] === 0) continue;
    const code = Math.max(lowest, Math.min(highest, Math.round(row[j]! / step) + middle));
    const difference = row[j]! - step * (code - middle);
    const size = norm === 2 ? difference * difference : Math.abs(difference) ** norm;
    error += importance ? importance[j]! * size : size;
  }
  return error;
}

function checkOptions(options: QuantizerOptions, cols: number): void {
  const { bits, smallestRange = 0.4, norm = 2, importance, gridSize = cols } = options;
  if (!(Number.isInteger(bits) && bits >= 2 && bits <= 8)) {
    throw new RangeError(`bits: expected a whole number from 2 to 8, got ${bits}`);
  }
  if (!(smallestRange > 0 && smallestRange <= 1)) {
    throw new RangeError(`smallestRange: expected a share in (0, 1], got ${smallestRange}`);
  }
  if (!(norm > 0)) throw new RangeError(`norm: expected a positive number, got ${norm}`);
  if (importance) checkLength("importance", importance, cols);
  if (!(Number.isInteger(gridSize) && gridSize >= 1 && cols % gridSize === 0)) {
    throw new RangeError(`gridSize: expected a divisor of ${cols} columns, got ${gridSize}`);
  }
}
