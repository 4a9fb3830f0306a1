import type { Gemm } from "../math/gemm.ts";
import { pause } from "../math/pause.ts";
import { checkLength } from "../math/products.ts";
import { type FactoredHessian, factorHessian } from "./damping.ts";
import { biasCorrection, centeredHessian, type LayerGram } from "./hessian.ts";
import type { Pattern } from "./pattern.ts";
import { quadraticLoss, refit } from "./refit.ts";
import { retarget } from "./retarget.ts";
import { sparseGpt } from "./sparsegpt.ts";

/** A matrix product or convolution, and what to do to it. */
export interface PruneLayerOptions {
  /** `rows × cols`, row-major; a convolution's `Cout × Cin/groups × kh × kw` as it lies. */
  readonly weights: Float32Array;
  /** Outputs of all groups together; group g owns `rows/groups` neighboring ones. */
  readonly rows: number;
  readonly cols: number;
  /** One an output; zeros by default. */
  readonly bias?: Float32Array | undefined;
  /** Of the inputs the layer really gets, those of the compressed layers before it. */
  readonly gram: LayerGram;
  /** Σ x·x′ᵀ of dense x and compressed x′, and the dense means: prune toward the dense outputs. */
  readonly cross?: LayerGram | undefined;
  readonly pattern: Pattern;
  /** Columns decided on at once. Default 128. */
  readonly blockSize?: number;
  /** λ as a share of the mean diagonal of H. Default 0.01. */
  readonly damping?: number;
  /** Whether surviving weights are fitted by least squares afterwards. Default true. */
  readonly refit?: boolean;
  /** Whether the bias takes up the error of the mean. Default true. */
  readonly centered?: boolean;
  /** kh·kw: N:M groups then lie along input channels. Default 1. */
  readonly kernelArea?: number;
  readonly gemm?: Gemm | undefined;
  readonly signal?: AbortSignal | undefined;
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
  const order = pattern.kind === "n:m" ? channelsLast(cols, kernelArea) : undefined;
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
  /** ½tr(W·H·Wᵀ), what the loss is relative to. */
  readonly scale: number;
  readonly damping: number;
}

async function pruneGroup(
  options: PruneLayerOptions,
  g: number,
  order: ColumnOrder | undefined,
): Promise<PrunedGroup> {
  const { rows, cols, gram, cross, pattern, centered = true, gemm, signal } = options;
  const count = rows / gram.groups;
  const part = options.weights.subarray(g * count * cols, (g + 1) * count * cols);
  const original = reorder(Float64Array.from(part), count, cols, order);
  const mean = reorder(groupOf(gram.mean, g, cols), 1, cols, order);
  const raw = reorderBoth(groupOf(gram.H, g, cols * cols), cols, order);
  const H = centered ? centeredHessian(raw, mean) : raw;
  const factored = await factorHessian(H, cols, options.damping ?? 0.01, gemm);
  const crossOf = cross && {
    C: reorderBoth(groupOf(cross.H, g, cols * cols), cols, order),
    mean: reorder(groupOf(cross.mean, g, cols), 1, cols, order),
  };
  const target = crossOf
    ? await retargetGroup({ original, count, cols, factored, centered, mean, gemm }, crossOf)
    : original;
  const solved = target.slice();
  const { kept } = await sparseGpt({
    weights: solved,
    rows: count,
    cols,
    U: factored.U,
    pattern,
    dead: factored.dead,
    span: order ? order.channels : cols,
    gemm,
    signal,
    ...(options.blockSize === undefined ? {} : { blockSize: options.blockSize }),
  });
  if (options.refit ?? true) {
    const { damped } = factored;
    await refit({ target, weights: solved, kept, rows: count, cols, H: damped, gemm, signal });
  }
  const weights = Float64Array.from(Float32Array.from(solved));
  const plain = undamped(factored, cols);
  const loss = await quadraticLoss(weights, target, count, plain, gemm);
  const scale = await quadraticLoss(target, new Float64Array(target.length), count, plain, gemm);
  const biasChange = centered
    ? meanChange(original, crossOf ? crossOf.mean : mean, weights, mean)
    : new Float64Array(count);
  return { weights, kept, biasChange, loss, scale, damping: factored.damping };
}

interface RetargetGroup {
  readonly original: Float64Array;
  readonly count: number;
  readonly cols: number;
  readonly factored: FactoredHessian;
  readonly centered: boolean;
  readonly mean: Float64Array;
  readonly gemm: Gemm | undefined;
}

function retargetGroup(
  group: RetargetGroup,
  cross: { readonly C: Float64Array; readonly mean: Float64Array },
): Promise<Float64Array> {
  const { original, count, cols, factored, centered, mean, gemm } = group;
  const C = cross.C.slice();
  for (let i = 0; centered && i < cols; i++) {
    for (let j = 0; j < cols; j++) C[i * cols + j]! -= 2 * cross.mean[i]! * mean[j]!;
  }
  return retarget({ weights: original, rows: count, cols, cross: C, compressed: factored, gemm });
}

/** W·x̄ − Ŵ·x̄′: what the bias takes up. */
function meanChange(
  W: Float64Array,
  denseMean: Float64Array,
  pruned: Float64Array,
  mean: Float64Array,
): Float64Array {
  const zeros = new Float64Array(W.length);
  const lost = biasCorrection(zeros, pruned, mean);
  return biasCorrection(W, zeros, denseMean).map((wanted, r) => wanted + lost[r]!);
}

function undamped(factored: FactoredHessian, cols: number): Float64Array {
  const H = factored.damped.slice();
  for (let j = 0; j < cols; j++) {
    const at = j * (cols + 1);
    H[at] = factored.dead[j] ? 0 : H[at]! - factored.lambda;
  }
  return H;
}

/**
 * How the solver sees the columns of a convolution under N:M:
 * ```
 * stored  (Cin, kh·kw):  column c·area + t
 * solver  (kh·kw, Cin):  column t·Cin  + c, so that neighbors are input channels
 * ```
 */
interface ColumnOrder {
  readonly channels: number;
  /** Stored column of each solver column. */
  readonly to: Int32Array;
  /** Solver column of each stored column. */
  readonly from: Int32Array;
}

function channelsLast(cols: number, area: number): ColumnOrder | undefined {
  if (area === 1) return undefined;
  const channels = cols / area;
  const to = new Int32Array(cols);
  const from = new Int32Array(cols);
  for (let t = 0; t < area; t++) {
    for (let c = 0; c < channels; c++) {
      to[t * channels + c] = c * area + t;
      from[c * area + t] = t * channels + c;
    }
  }
  return { channels, to, from };
}

function reorder(
  data: Float64Array,
  rows: number,
  cols: number,
  order: ColumnOrder | undefined,
): Float64Array {
  if (!order) return data;
  const out = new Float64Array(data.length);
  for (let r = 0; r < rows; r++) {
    for (let j = 0; j < cols; j++) out[r * cols + j] = data[r * cols + order.to[j]!]!;
  }
  return out;
}

function reorderBoth(
  data: Float64Array,
  cols: number,
  order: ColumnOrder | undefined,
): Float64Array {
  if (!order) return data;
  const out = new Float64Array(data.length);
  for (let i = 0; i < cols; i++) {
    for (let j = 0; j < cols; j++) out[i * cols + j] = data[order.to[i]! * cols + order.to[j]!]!;
  }
  return out;
}

function groupOf(data: Float64Array, g: number, size: number): Float64Array {
  return data.subarray(g * size, (g + 1) * size);
}

function checkLayer(options: PruneLayerOptions): void {
  const { weights, rows, cols, bias, gram, cross, kernelArea = 1 } = options;
  checkLength("weights", weights, rows * cols);
  if (bias) checkLength("bias", bias, rows);
  for (const [name, statistics] of Object.entries(cross ? { gram, cross } : { gram })) {
    if (statistics.cols !== cols || statistics.groups !== gram.groups) {
      throw new RangeError(
        `${name}: expected ${gram.groups} groups of ${cols} columns, ` +
          `got ${statistics.groups} of ${statistics.cols}`,
      );
    }
  }
  if (rows % gram.groups !== 0) {
    throw new RangeError(`rows: expected a multiple of ${gram.groups} groups, got ${rows}`);
  }
  if (!(Number.isInteger(kernelArea) && kernelArea >= 1 && cols % kernelArea === 0)) {
    throw new RangeError(`kernelArea: expected a divisor of ${cols} columns, got ${kernelArea}`);
  }
  const broken = weights.findIndex((w) => !Number.isFinite(w));
  if (broken >= 0) throw new RangeError(`weights[${broken}]: expected finite, got NaN or infinite`);
}
