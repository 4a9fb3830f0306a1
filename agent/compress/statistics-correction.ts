import { checkLength } from "../math/products.ts";

/** Means and variances of a layer's outputs, one of each for every channel. */
export interface ChannelStatistics {
  readonly mean: ArrayLike<number>;
  /** Not negative. */
  readonly variance: ArrayLike<number>;
}

/** y ← scale·y + shift, for every channel. */
export interface ChannelAffine {
  readonly scale: Float64Array;
  readonly shift: Float64Array;
}

/** Below this share of the dense spread, what is left of a channel is noise not worth raising. */
const DEAD = 1e-3;

/**
 * The affine map that gives the outputs of a pruned layer the means and spreads that the dense
 * layer has: y ← (y − μ_p)·σ_d/(σ_p + ε) + μ_d, after OBC's statistics correction
 * (Frantar & Alistarh 2022, arXiv:2208.11580, `postproc.py`, ε = 1e-9). A channel whose spread is
 * gone, σ_p ≤ 1e-3·σ_d, or is not finite is only shifted.
 *
 * @param maxScale largest factor a channel is raised by. Default 10.
 * @throws {RangeError} if the sizes differ.
 */
export function statisticsCorrection(
  dense: ChannelStatistics,
  pruned: ChannelStatistics,
  maxScale = 10,
): ChannelAffine {
  const channels = dense.mean.length;
  checkLength("dense.variance", dense.variance, channels);
  checkLength("pruned.mean", pruned.mean, channels);
  checkLength("pruned.variance", pruned.variance, channels);
  const scale = new Float64Array(channels).fill(1);
  const shift = new Float64Array(channels);
  for (let c = 0; c < channels; c++) {
    const wanted = Math.sqrt(Math.max(0, dense.variance[c]!));
    const left = Math.sqrt(Math.max(0, pruned.variance[c]!));
    const factor = wanted / (left + 1e-9);
    if (left > DEAD * wanted && Number.isFinite(factor)) scale[c] = Math.min(maxScale, factor);
    const offset = dense.mean[c]! - scale[c]! * pruned.mean[c]!;
    if (Number.isFinite(offset)) shift[c] = offset;
  }
  return { scale, shift };
}

/**
 * Folds the map into the layer before it, in place: row c of the weights times scale_c, bias
 * b_c·scale_c + shift_c. Zeros stay zeros.
 *
 * @param weights `channels × anything`, row-major. @param bias one a channel.
 * @throws {RangeError} if the sizes do not fit.
 */
export function foldAffine(
  weights: Float32Array,
  bias: Float32Array,
  { scale, shift }: ChannelAffine,
): void {
  checkLength("bias", bias, scale.length);
  const cols = weights.length / scale.length;
  if (!Number.isInteger(cols)) {
    throw new RangeError(`weights: expected ${scale.length} rows, got ${weights.length} elements`);
  }
  for (let i = 0; i < weights.length; i++) weights[i]! *= scale[Math.floor(i / cols)]!;
  for (let c = 0; c < bias.length; c++) bias[c] = bias[c]! * scale[c]! + shift[c]!;
}
