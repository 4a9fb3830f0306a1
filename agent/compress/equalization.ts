import { checkLength } from "../math/products.ts";

/** Largest |w| of each row. @param weights `rows × cols`, row-major. */
export function rowRanges(weights: ArrayLike<number>, rows: number, cols: number): Float64Array {
  checkLength("weights", weights, rows * cols);
  const out = new Float64Array(rows);
  for (let i = 0; i < weights.length; i++) {
    const r = Math.floor(i / cols);
    out[r] = Math.max(out[r]!, Math.abs(weights[i]!));
  }
  return out;
}

/** Largest |w| of each column. @param weights `rows × cols`, row-major. */
export function columnRanges(weights: ArrayLike<number>, rows: number, cols: number): Float64Array {
  checkLength("weights", weights, rows * cols);
  const out = new Float64Array(cols);
  for (let i = 0; i < weights.length; i++) {
    const j = i % cols;
    out[j] = Math.max(out[j]!, Math.abs(weights[i]!));
  }
  return out;
}

/**
 * Factors that make the channels between two layers alike in range: with row c of the producer
 * (and its bias) divided by s_c and column c of the consumer multiplied by it, the network
 * computes the same wherever what lies between passes on positive factors (nothing, ReLU,
 * pooling, a depthwise convolution).
 *
 * At a strength of ½ this is s = √(produced/consumed), which makes both ranges equal (Nagel et al.
 * 2019, arXiv:1906.04721, eq. 11); with the ranges of activations as `produced` it is SmoothQuant
 * (Xiao et al. 2022, arXiv:2211.10438, eq. 4), which suits weights that have a scale a row and
 * activations that have one a tensor. Channels without range on one side keep the factor 1, and
 * the factors' geometric mean over the others is 1.
 *
 * @param produced range of each channel as it is made. @param consumed as it is taken in.
 * @param strength in [0, 1]: how much of the produced range is passed on. Default 0.5.
 * @param limit the factors stay within 1/limit … limit. Default 100.
 * @throws {RangeError} if the sizes differ or a range is negative or not finite.
 */
export function equalizationFactors(
  produced: ArrayLike<number>,
  consumed: ArrayLike<number>,
  strength = 0.5,
  limit = 100,
): Float64Array {
  checkLength("consumed", consumed, produced.length);
  const logs = new Float64Array(produced.length).fill(Number.NaN);
  let sum = 0;
  let live = 0;
  for (let c = 0; c < produced.length; c++) {
    for (const range of [produced[c]!, consumed[c]!]) {
      if (!(range >= 0 && Number.isFinite(range))) {
        throw new RangeError(`range of channel ${c}: expected a finite number ≥ 0, got ${range}`);
      }
    }
    if (produced[c] === 0 || consumed[c] === 0) continue;
    logs[c] = strength * Math.log(produced[c]!) - (1 - strength) * Math.log(consumed[c]!);
    sum += logs[c]!;
    live++;
  }
  return logs.map((log) => {
    if (Number.isNaN(log)) return 1;
    return Math.min(limit, Math.max(1 / limit, Math.exp(log - sum / live)));
  });
}
