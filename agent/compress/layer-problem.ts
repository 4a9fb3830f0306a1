import type { Gemm } from "../math/gemm.ts";
import { checkLength, dot } from "../math/products.ts";
import { type DampedHessian, dampHessian, type FactoredHessian, factorHessian } from "./damping.ts";
import { centeredHessian, type LayerGram } from "./hessian.ts";
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
export interface GroupProblem<H extends DampedHessian = FactoredHessian> {
  /** Rows of the group. */
  readonly rows: number;
  readonly cols: number;
  /** Weights as given, `rows × cols`. */
  readonly original: Float64Array;
  /** Weights to come close to: the original or, with `cross`, the retargeted ones. */
  readonly target: Float64Array;
  readonly hessian: H;
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
  const { cols, cross, centered = true, damping = DAMPING, gemm } = options;
  const { H, ...common } = groupData(options, g, order);
  const { original, mean } = common;
  const hessian = await factorHessian(H, cols, damping, gemm);
  if (!cross) return { ...common, hessian, target: original, denseMean: mean };
  const denseMean = reorder(groupOf(cross.mean, g, cols), 1, cols, order);
  const C = reorderBoth(groupOf(cross.H, g, cols * cols), cols, order).slice();
  for (let i = 0; centered && i < cols; i++) {
    for (let j = 0; j < cols; j++) C[i * cols + j]! -= 2 * denseMean[i]! * mean[j]!;
  }
  const { rows } = common;
  const problem = { weights: original, rows, cols, cross: C, compressed: hessian, gemm };
  return { ...common, hessian, target: await retarget(problem), denseMean };
}

/** {@link openGroup} without `cross`, for solvers that need no factor. */
export function openUnfactored(
  options: LayerOptions,
  g: number,
  order: ColumnOrder | undefined,
): GroupProblem<DampedHessian> {
  const { H, ...common } = groupData(options, g, order);
  const hessian = dampHessian(H, options.cols, options.damping ?? DAMPING);
  return { ...common, hessian, target: common.original, denseMean: common.mean };
}

const DAMPING = 0.01;

function groupData(options: LayerOptions, g: number, order: ColumnOrder | undefined) {
  const { cols, gram, centered = true } = options;
  const rows = options.rows / gram.groups;
  const part = options.weights.subarray(g * rows * cols, (g + 1) * rows * cols);
  const original = reorder(new Float64Array(part), rows, cols, order);
  const mean = reorder(groupOf(gram.mean, g, cols), 1, cols, order);
  const raw = reorderBoth(groupOf(gram.H, g, cols * cols), cols, order);
  const H = centered ? centeredHessian(raw, mean) : raw;
  return { rows, cols, original, mean, H, span: order?.channels ?? cols };
}

/** ½tr(W·H·Wᵀ) of the target, without damping: what a group's loss is relative to. */
export function groupScale(problem: GroupProblem<DampedHessian>, gemm?: Gemm): Promise<number> {
  return plainLoss(problem, new Float64Array(problem.target.length), gemm);
}

/**
 * @param weights the group's solution, in single precision, in the solver's order.
 * @param scale from {@link groupScale}, where it is known.
 */
export async function judgeGroup(
  options: LayerOptions,
  problem: GroupProblem<DampedHessian>,
  weights: Float64Array,
  scale?: number,
): Promise<GroupOutcome> {
  const { rows, original, mean, denseMean } = problem;
  const { centered = true, gemm } = options;
  const loss = await plainLoss(problem, weights, gemm);
  const biasChange = centered
    ? meanChange(original, denseMean, weights, mean)
    : new Float64Array(rows);
  return { biasChange, loss, scale: scale ?? (await groupScale(problem, gemm)) };
}

/** ½tr(δHδᵀ) without what the damping adds to it, ½λ‖δ‖² over live inputs. */
async function plainLoss(
  { rows, cols, target, hessian }: GroupProblem<DampedHessian>,
  weights: Float64Array,
  gemm?: Gemm,
): Promise<number> {
  const { damped, dead, lambda } = hessian;
  let ridge = 0;
  for (let row = 0; row < target.length; row += cols) {
    for (let j = 0; j < cols; j++) {
      if (dead[j] === 0) ridge += (weights[row + j]! - target[row + j]!) ** 2;
    }
  }
  const loss = await quadraticLoss(weights, target, rows, damped, gemm);
  return Math.max(0, loss - 0.5 * lambda * ridge);
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
  const cols = mean.length;
  const out = new Float64Array(W.length / cols);
  for (let r = 0; r < out.length; r++) {
    const at = r * cols;
    out[r] = dot(W, at, denseMean, 0, cols) - dot(pruned, at, mean, 0, cols);
  }
  return out;
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
