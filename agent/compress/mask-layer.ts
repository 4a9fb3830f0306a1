import type { Gemm } from "../math/gemm.ts";
import { magnitudeMask, wandaMask } from "./baselines.ts";
import type { LayerGram } from "./hessian.ts";
import { type ColumnOrder, reorder, solverOrder } from "./layer-problem.ts";
import type { Pattern } from "./pattern.ts";
import { quadraticLoss } from "./refit.ts";

/** A layer to be pruned by a score of its weights, the others left as they are. */
export interface MaskLayerOptions {
  /** `rows × cols` over all groups, row-major. */
  readonly weights: Float32Array;
  readonly rows: number;
  readonly cols: number;
  /** One an output; zeros by default. */
  readonly bias?: Float32Array | undefined;
  readonly gram: LayerGram;
  readonly pattern: Pattern;
  /** kh·kw: N:M groups and blocks then lie along input channels. Default 1. */
  readonly kernelArea?: number;
  /** |w| over all rows of a group, or |w|·‖x‖ within each row (Wanda). */
  readonly score: "magnitude" | "wanda";
  readonly gemm?: Gemm | undefined;
}

/** What {@link maskLayer} made. */
export interface MaskedLayer {
  /** New array, in the layout of the given weights. */
  readonly weights: Float32Array;
  /** A copy of the given one. */
  readonly bias: Float32Array;
  /** ‖(Ŵ−W)X‖² / ‖WX‖². */
  readonly relativeLoss: number;
}

/**
 * Prunes one layer by magnitude or by Wanda, group by group, as their authors do: no other weight
 * and no bias changes. What the solvers are to be better than.
 *
 * @throws {RangeError} if a size or the pattern does not fit.
 */
export async function maskLayer(options: MaskLayerOptions): Promise<MaskedLayer> {
  const { rows, cols, gram, pattern, kernelArea = 1, gemm } = options;
  const order = solverOrder(cols, kernelArea, pattern);
  const weights = options.weights.slice();
  const groupRows = rows / gram.groups;
  let loss = 0;
  let scale = 0;
  for (let g = 0; g < gram.groups; g++) {
    const first = g * groupRows * cols;
    const original = Float64Array.from(weights.subarray(first, first + groupRows * cols));
    const H = gram.H.subarray(g * cols * cols, (g + 1) * cols * cols);
    const kept = maskOf(options, reorder(original, groupRows, cols, order), H, order);
    const pruned = original.map((w, i) => {
      const j = order ? order.from[i % cols]! : i % cols;
      return kept[i - (i % cols) + j] === 1 ? w : 0;
    });
    weights.set(pruned, first);
    loss += await quadraticLoss(pruned, original, groupRows, H, gemm);
    scale += await quadraticLoss(new Float64Array(original.length), original, groupRows, H, gemm);
  }
  const bias = options.bias?.slice() ?? new Float32Array(rows);
  return { weights, bias, relativeLoss: scale > 0 ? loss / scale : 0 };
}

/** @param weights of one group, in the solver's order of columns, as the mask is. */
function maskOf(
  { cols, pattern, score }: MaskLayerOptions,
  weights: Float64Array,
  H: Float64Array,
  order: ColumnOrder | undefined,
): Uint8Array {
  const rows = weights.length / cols;
  if (score === "magnitude") return magnitudeMask(weights, rows, cols, pattern);
  const diagonal = new Float64Array(cols * cols);
  for (let j = 0; j < cols; j++) {
    const stored = order ? order.to[j]! : j;
    diagonal[j * (cols + 1)] = H[stored * (cols + 1)]!;
  }
  return wandaMask(weights, rows, cols, diagonal, pattern);
}
