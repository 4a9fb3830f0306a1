import { pause } from "../math/pause.ts";
import {
  type ColumnOrder,
  checkLayer,
  judgeGroup,
  type LayerOptions,
  openGroup,
  solverOrder,
} from "./layer-problem.ts";
import type { Pattern } from "./pattern.ts";
import { refit } from "./refit.ts";
import { sparseGpt } from "./sparsegpt.ts";

/** A matrix product or convolution, and what to do to it. */
export interface PruneLayerOptions extends LayerOptions {
  readonly pattern: Pattern;
  /** Whether surviving weights are fitted by least squares afterwards. Default true. */
  readonly refit?: boolean;
}

/** A pruned layer. */
export interface PrunedLayer {
  /** New array, in the layout of the given weights. */
  readonly weights: Float32Array;
  /** New array; changed only where `centered` or `cross` ask for it. */
  readonly bias: Float32Array;
  /** 1 where a weight may be other than zero, in the layout of the weights. */
  readonly kept: Uint8Array;
  /** Share of weights kept by the mask. */
  readonly density: number;
  /** Squared output error summed over rows, averaged over inputs, without damping. */
  readonly loss: number;
  /**
   * ‖(Ŵ−W)X‖²/‖WX‖² (with means taken off, if `centered`); W are the retargeted weights where
   * `cross` is given.
   */
  readonly relativeLoss: number;
  /** The largest damping that a group needed. */
  readonly dampingUsed: number;
}

/**
 * Prunes one layer, group by group: statistics → damped factor → (retarget) → SparseGPT → least
 * squares on the mask → bias. Gives way to the event loop between blocks of columns.
 *
 * @throws {RangeError} if a size, the pattern or a statistic does not fit.
 * @throws the signal's reason, when aborted.
 */
export async function pruneLayer(options: PruneLayerOptions): Promise<PrunedLayer> {
  const { rows, cols, gram, pattern, kernelArea = 1 } = options;
  checkLayer(options);
  const order = solverOrder(cols, kernelArea, pattern);
  const weights = new Float32Array(rows * cols);
  const bias = options.bias?.slice() ?? new Float32Array(rows);
  const kept = new Uint8Array(rows * cols);
  const groupRows = rows / gram.groups;
  let loss = 0;
  let scale = 0;
  let dampingUsed = 0;
  for (let g = 0; g < gram.groups; g++) {
    await pause(options.signal);
    const pruned = await pruneGroup(options, g, order);
    const first = g * groupRows;
    for (let i = 0; i < groupRows * cols; i++) {
      const from = order ? i - (i % cols) + order.from[i % cols]! : i;
      weights[first * cols + i] = pruned.weights[from]!;
      kept[first * cols + i] = pruned.kept[from]!;
    }
    for (let r = 0; r < groupRows; r++) bias[first + r]! += pruned.biasChange[r]!;
    loss += pruned.loss;
    scale += pruned.scale;
    dampingUsed = Math.max(dampingUsed, pruned.damping);
  }
  const density = kept.reduce((sum, k) => sum + k, 0) / kept.length;
  const relativeLoss = scale > 0 ? loss / scale : 0;
  return { weights, bias, kept, density, loss, relativeLoss, dampingUsed };
}

interface PrunedGroup {
  /** `rows/groups × cols`, in the solver's order of columns. */
  readonly weights: Float64Array;
  readonly kept: Uint8Array;
  readonly biasChange: Float64Array;
  readonly loss: number;
  readonly scale: number;
  readonly damping: number;
}

async function pruneGroup(
  options: PruneLayerOptions,
  g: number,
  order: ColumnOrder | undefined,
): Promise<PrunedGroup> {
  const { pattern, gemm, signal } = options;
  const problem = await openGroup(options, g, order);
  const { rows, cols, target, hessian, span } = problem;
  const solved = target.slice();
  const { kept } = await sparseGpt({
    weights: solved,
    rows,
    cols,
    U: hessian.U,
    pattern,
    dead: hessian.dead,
    span,
    gemm,
    signal,
    ...(options.blockSize === undefined ? {} : { blockSize: options.blockSize }),
  });
  if (options.refit ?? true) {
    const { damped: H } = hessian;
    await refit({ target, weights: solved, kept, rows, cols, H, gemm, signal });
  }
  const weights = Float64Array.from(Float32Array.from(solved));
  const outcome = await judgeGroup(options, problem, weights);
  return { weights, kept, ...outcome, damping: hessian.damping };
}
