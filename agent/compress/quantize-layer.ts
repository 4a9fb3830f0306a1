import { pause } from "../math/pause.ts";
import { gptq } from "./gptq.ts";
import {
  type ColumnOrder,
  checkLayer,
  judgeGroup,
  type LayerOptions,
  openGroup,
  solverOrder,
} from "./layer-problem.ts";
import type { Pattern } from "./pattern.ts";
import { decode, encode, fitQuantizer, type QuantizerOptions } from "./quantizer.ts";
import { refit } from "./refit.ts";

/** A matrix product or convolution, and how to quantize its weights. */
export interface QuantizeLayerOptions extends LayerOptions {
  /** `importance` is set to diag H where it is not given. */
  readonly quantizer: QuantizerOptions;
  /** What to prune in the same pass. By default the weights that are 0 stay 0. */
  readonly pattern?: Pattern;
  /** Columns by descending H_jj; not for N:M and blocks. Default false. */
  readonly activationOrder?: boolean;
  /** Rounds of coordinate descent after the sweep. Default 2. */
  readonly descents?: number;
}

/** A quantized layer: Ŵ = scale·(codes − zero), one scale and zero a row, or block of a row. */
export interface QuantizedLayer {
  /** In the layout of the given weights. */
  readonly codes: Int8Array<ArrayBuffer>;
  readonly scale: Float32Array<ArrayBuffer>;
  readonly zero: Int8Array<ArrayBuffer>;
  /** Ŵ. */
  readonly weights: Float32Array<ArrayBuffer>;
  /** New array; changed only where `centered` or `cross` ask for it. */
  readonly bias: Float32Array;
  /** 1 where a weight may be other than zero. */
  readonly kept: Uint8Array;
  /** Squared output error summed over rows, averaged over inputs, without damping. */
  readonly loss: number;
  /** The same with the given weights rounded to nearest on the same mask and first scales. */
  readonly roundingLoss: number;
  /** ‖(Ŵ−W)X‖²/‖WX‖², with means taken off if `centered`. */
  readonly relativeLoss: number;
  /** The largest damping that a group needed. */
  readonly dampingUsed: number;
}

/**
 * Quantizes the weights of one layer, group by group, and lets the bias take up the change of the
 * mean; with a pattern, prunes in the same pass: one sweep finds the mask, least squares the best
 * weights on it, and a second sweep rounds with scales fitted to those.
 *
 * @throws {RangeError} if a size, the pattern, an option or a statistic does not fit.
 * @throws the signal's reason, when aborted.
 */
export async function quantizeLayer(options: QuantizeLayerOptions): Promise<QuantizedLayer> {
  const { rows, cols, gram, pattern = { kind: "mask" }, kernelArea = 1 } = options;
  checkLayer(options);
  const order = solverOrder(cols, kernelArea, pattern);
  const { gridSize = cols } = options.quantizer;
  if (order && gridSize !== cols) {
    throw new RangeError(
      "quantizer.gridSize: expected one scale a row where columns are reordered",
    );
  }
  const scales = (rows * cols) / gridSize;
  const layer = {
    codes: new Int8Array(rows * cols),
    scale: new Float32Array(scales),
    zero: new Int8Array(scales),
    weights: new Float32Array(rows * cols),
    bias: options.bias?.slice() ?? new Float32Array(rows),
    kept: new Uint8Array(rows * cols),
  };
  const count = rows / gram.groups;
  const grids = scales / gram.groups;
  let [loss, roundingLoss, scale, dampingUsed] = [0, 0, 0, 0];
  for (let g = 0; g < gram.groups; g++) {
    await pause(options.signal);
    const group = await quantizeGroup(options, g, order);
    const first = g * count;
    for (let i = 0; i < count * cols; i++) {
      const from = order ? i - (i % cols) + order.from[i % cols]! : i;
      layer.codes[first * cols + i] = group.codes[from]!;
      layer.weights[first * cols + i] = group.weights[from]!;
      layer.kept[first * cols + i] = group.kept[from]!;
    }
    layer.scale.set(group.quantizer.scale, g * grids);
    layer.zero.set(group.quantizer.zero, g * grids);
    for (let r = 0; r < count; r++) layer.bias[first + r]! += group.biasChange[r]!;
    loss += group.loss;
    roundingLoss += group.roundingLoss;
    scale += group.scale;
    dampingUsed = Math.max(dampingUsed, group.damping);
  }
  const relativeLoss = scale > 0 ? loss / scale : 0;
  return { ...layer, loss, roundingLoss, relativeLoss, dampingUsed };
}

async function quantizeGroup(
  options: QuantizeLayerOptions,
  g: number,
  order: ColumnOrder | undefined,
) {
  const problem = await openGroup(options, g, order);
  const { rows, cols, original, target, hessian, span } = problem;
  const { pattern, gemm, signal } = options;
  const importance = diagonal(hessian.damped, cols);
  const grid = { importance, ...options.quantizer };
  const common = {
    weights: target,
    rows,
    cols,
    hessian,
    span,
    gemm,
    signal,
    ...(options.blockSize === undefined ? {} : { blockSize: options.blockSize }),
    ...(options.activationOrder === undefined ? {} : { activationOrder: options.activationOrder }),
  };
  let kept: Uint8Array = Uint8Array.from(original, (w) => (w === 0 ? 0 : 1));
  const start = target.slice();
  if (pattern) {
    const quantizer = fitQuantizer(target, rows, cols, grid);
    const joint = await gptq({ ...common, pattern, quantizer, descents: 0 });
    kept = joint.kept;
    start.set(joint.weights);
  } else for (let i = 0; i < start.length; i++) if (kept[i] === 0) start[i] = 0;
  const { damped: H } = hessian;
  if (kept.includes(0)) {
    await refit({ target, weights: start, kept, rows, cols, H, gemm, signal });
  }
  const quantizer = fitQuantizer(start, rows, cols, grid, kept);
  const solved = await gptq({
    ...common,
    pattern: { kind: "mask", kept },
    quantizer,
    start,
    fitScale: true,
    ...(options.descents === undefined ? {} : { descents: options.descents }),
  });
  const rounded = original.map((w, i) => {
    const r = Math.floor(i / cols);
    const j = i % cols;
    return kept[i] === 1 ? decode(quantizer, r, encode(quantizer, r, w, j), j) : 0;
  });
  const weights = Float64Array.from(Float32Array.from(solved.weights));
  const outcome = await judgeGroup(options, problem, weights);
  const { loss: roundingLoss } = await judgeGroup(options, problem, rounded);
  const { codes } = solved;
  return {
    codes,
    weights,
    kept,
    quantizer: solved.quantizer,
    roundingLoss,
    ...outcome,
    damping: hessian.damping,
  };
}

function diagonal(H: Float64Array, cols: number): Float64Array {
  return Float64Array.from({ length: cols }, (_, j) => H[j * (cols + 1)]!);
}
