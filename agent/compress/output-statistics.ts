import { type Gemm, multiplyPrepared, prepareOperand } from "../math/gemm.ts";
import { checkLength } from "../math/products.ts";
import { centeredHessian, type LayerGram } from "./hessian.ts";

/** Mean and variance of each output of a layer, one value a row. */
export interface OutputStatistics {
  readonly mean: Float64Array;
  readonly variance: Float64Array;
}

/**
 * What a linear layer's outputs are on average and how far they spread, from the second moments
 * of its inputs alone: E[y] = W·x̄ + b and Var[y] = diag(W·Cov·Wᵀ) with Cov = H/2 − x̄x̄ᵀ.
 *
 * @param weights W, `rows × cols` over all groups, row-major. @param bias one a row.
 * @throws {RangeError} if the sizes do not fit.
 */
export async function outputStatistics(
  weights: Float32Array,
  bias: Float32Array,
  gram: LayerGram,
  gemm?: Gemm,
): Promise<OutputStatistics> {
  const { groups, cols } = gram;
  const rows = bias.length;
  checkLength("weights", weights, rows * cols);
  const perGroup = rows / groups;
  const mean = new Float64Array(rows);
  const variance = new Float64Array(rows);
  for (let g = 0; g < groups; g++) {
    const W = Float64Array.from(weights.subarray(g * perGroup * cols, (g + 1) * perGroup * cols));
    const inputMean = gram.mean.subarray(g * cols, (g + 1) * cols);
    const H = gram.H.subarray(g * cols * cols, (g + 1) * cols * cols);
    const covariance = prepareOperand(centeredHessian(H, inputMean), cols, cols, perGroup, gemm);
    const product = await multiplyPrepared(W, perGroup, covariance, gemm);
    for (let r = 0; r < perGroup; r++) {
      let spread = 0;
      let level = bias[g * perGroup + r]!;
      for (let j = 0; j < cols; j++) {
        spread += W[r * cols + j]! * product[r * cols + j]!;
        level += W[r * cols + j]! * inputMean[j]!;
      }
      mean[g * perGroup + r] = level;
      // centeredHessian is twice the covariance, as H is twice the second moment.
      variance[g * perGroup + r] = Math.max(0, spread / 2);
    }
  }
  return { mean, variance };
}
