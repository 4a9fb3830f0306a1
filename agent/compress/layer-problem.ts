import type { Gemm } from "../math/gemm.ts";
import { checkLength } from "../math/products.ts";
import { type FactoredHessian, factorHessian } from "./damping.ts";
import { biasCorrection, centeredHessian, type LayerGram } from "./hessian.ts";
import type { Pattern } from "./pattern.ts";
import { quadraticLoss } from "./refit.ts";
import { retarget } from "./retarget.ts";

/** A matrix product or convolution and the statistics of its inputs. */
export interface LayerOptions {
  /** `rows × cols`, row-major; a convolution's `Cout × Cin/groups × kh × kw` as it lies. */
  readonly weights: Float32Array;
  /** Outputs of all groups together; group g owns `rows/groups` neighboring ones. */
  readonly rows: number;
  readonly cols: number;
  /** One an output; zeros by default. */
  readonly bias?: Float32Array | undefined;
  /** Of the inputs the layer really gets, those of the compressed layers before it. */
  readonly gram: LayerGram;
  /** Σ x·x′ᵀ of dense x and compressed x′, and the dense means: aim at the dense outputs. */
  readonly cross?: LayerGram | undefined;
  /** Columns decided on at once. Default 128. */
  readonly blockSize?: number;
  /** λ as a share of the mean diagonal of H. Default 0.01. */
  readonly damping?: number;
  /** Whether the bias takes up the error of the mean. Default true. */
  readonly centered?: boolean;
  /** kh·kw: N:M groups and blocks then lie along input channels. Default 1. */
  readonly kernelArea?: number;
  readonly gemm?: Gemm | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** One group of a layer as the solvers take it, columns in the solver's order. */
export interface GroupProblem {
  /** Rows of the group. */
  readonly rows: number;
  readonly cols: number;
  /** Weights as given, `rows × cols`. */
  readonly original: Float64Array;
  /** Weights to come close to: the original or, with `cross`, the retargeted ones. */
  readonly target: Float64Array;
  readonly hessian: FactoredHessian;
  /** Mean of the compressed inputs, and of the dense ones. */
  readonly mean: Float64Array;
  readonly denseMean: Float64Array;
  /** N:M groups and blocks begin anew at every multiple of this. */
  readonly span: number;
}

/** How good a group's solution is, and its bias. */
export interface GroupOutcome {
  /** What to add to the bias, one a row. */
  readonly biasChange: Float64Array;
  /** ½tr(δHδᵀ) without damping. */
  readonly loss: number;
  /** ½tr(W·H·Wᵀ), what the loss is relative to. */
  readonly scale: number;
}

/**
 * Statistics → damped factor → (retarget), for group `g`.
 *
 * @param order from {@link solverOrder}.
 */
export async function openGroup(
  options: LayerOptions,
  g: number,
  order: ColumnOrder | undefined,
): Promise<GroupProblem> {
  const { cols, gram, cross, centered = true, gemm } = options;
  const rows = options.rows / gram.groups;
  const part = options.weights.subarray(g * rows * cols, (g + 1) * rows * cols);
  const original = reorder(Float64Array.from(part), rows, cols, order);
  const mean = reorder(groupOf(gram.mean, g, cols), 1, cols, order);
  const raw = reorderBoth(groupOf(gram.H, g, cols * cols), cols, order);
  const H = centered ? centeredHessian(raw, mean) : raw;
  const hessian = await factorHessian(H, cols, options.damping ?? 0.01, gemm);
  const common = { rows, cols, original, hessian, mean, span: order?.channels ?? cols };
  if (!cross) return { ...common, target: original, denseMean: mean };
  const denseMean = reorder(groupOf(cross.mean, g, cols), 1, cols, order);
  const C = reorderBoth(groupOf(cross.H, g, cols * cols), cols, order).slice();
  for (let i = 0; centered && i < cols; i++) {
    for (let j = 0; j < cols; j++) C[i * cols + j]! -= 2 * denseMean[i]! * mean[j]!;
  }
  const problem = { weights: original, rows, cols, cross: C, compressed: hessian, gemm };
  return { ...common, target: await retarget(problem), denseMean };
}

/** @param weights the group's solution, in single precision, in the solver's order. */
export async function judgeGroup(
  options: LayerOptions,
  problem: GroupProblem,
  weights: Float64Array,
): Promise<GroupOutcome> {
  const { rows, cols, original, target, hessian, mean, denseMean } = problem;
  const { centered = true, gemm } = options;
  const plain = undamped(hessian, cols);
  const loss = await quadraticLoss(weights, target, rows, plain, gemm);
  const scale = await quadraticLoss(target, new Float64Array(target.length), rows, plain, gemm);
  const biasChange = centered
    ? meanChange(original, denseMean, weights, mean)
    : new Float64Array(rows);
  return { biasChange, loss, scale };
}

/** The order of columns that the pattern wants; undefined where it is the stored one. */
export function solverOrder(
  cols: number,
  kernelArea: number,
  pattern: { readonly kind: Pattern["kind"] | "mask" },
): ColumnOrder | undefined {
  return pattern.kind === "n:m" || pattern.kind === "block"
    ? channelsLast(cols, kernelArea)
    : undefined;
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
 * How the solver sees the columns of a convolution under N:M and blocks:
 * ```
 * stored  (Cin, kh·kw):  column c·area + t
 * solver  (kh·kw, Cin):  column t·Cin  + c, so that neighbors are input channels
 * ```
 */
export interface ColumnOrder {
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

/** `rows × cols` data in the solver's order of columns. */
export function reorder(
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

/** @throws {RangeError} if a size or a statistic does not fit. */
export function checkLayer(options: LayerOptions): void {
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
