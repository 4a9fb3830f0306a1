import { upperFactorOfInverse } from "../math/cholesky.ts";
import { type Gemm, multiplyPrepared, type Operand, prepareOperand } from "../math/gemm.ts";
import { pause } from "../math/pause.ts";
import { checkLength, dot } from "../math/products.ts";
import type { FactoredHessian } from "./damping.ts";
import type { Pattern } from "./pattern.ts";
import { decode, encode, type WeightQuantizer } from "./quantizer.ts";
import { sparseGpt } from "./sparsegpt.ts";

/** A layer to quantize. */
export interface GptqProblem {
  /** W, `rows × cols`, row-major; read only. */
  readonly weights: Float64Array;
  readonly rows: number;
  readonly cols: number;
  /** H + λI of the layer's inputs and the factor of its inverse. */
  readonly hessian: FactoredHessian;
  /** One grid a row, or a block of columns. */
  readonly quantizer: WeightQuantizer;
  /** What to prune in the same pass, or the mask of what is pruned (1 stays). Default nothing. */
  readonly pattern?: Pattern | { readonly kind: "mask"; readonly kept: Uint8Array };
  /** Columns by descending H_jj instead of from left to right; not for N:M and blocks. Default false. */
  readonly activationOrder?: boolean;
  /** Another place to round and start from, such as the refitted weights, `rows × cols`. */
  readonly start?: Float64Array;
  /** Rounds of coordinate descent after the sweep. Default 2. */
  readonly descents?: number;
  /** Whether each round fits the scales of whole rows anew to the codes. Default false. */
  readonly fitScale?: boolean;
  /** Columns decided on at once. Default 128. */
  readonly blockSize?: number;
  /** N:M groups begin anew at every multiple of this. Default `cols`. */
  readonly span?: number;
  readonly gemm?: Gemm | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** Quantized weights: Ŵ = scale·(codes − zero), row by row. */
export interface GptqResult {
  /** `rows × cols`; the code of 0 where a weight is pruned. */
  readonly codes: Int8Array<ArrayBuffer>;
  /** The given one, with other scales where `fitScale` asked for them. */
  readonly quantizer: WeightQuantizer;
  /** Ŵ, `rows × cols`. */
  readonly weights: Float64Array;
  /** 1 where a weight stayed, `rows × cols`. */
  readonly kept: Uint8Array;
  /** ½tr(δHδᵀ) with δ = Ŵ − W and the damped H. */
  readonly loss: number;
  /** The same for W rounded on this mask; never below `loss`, also row by row. */
  readonly roundingLoss: number;
}

/**
 * Quantizes one layer: GPTQ's sweep (see {@link sparseGpt}), which may prune in the same pass;
 * for each row the best of it, of plain rounding and of the rounded `start`; then coordinate
 * descent, which moves one code at a time to where the quadratic is least given all others
 * (QuantEase, Behdin et al. 2023, arXiv:2309.01885), so that the sweep's early columns get to know
 * the late ones. Every step lowers the loss or does nothing.
 *
 * @throws {RangeError} if a size or the pattern does not fit.
 * @throws the signal's reason, when aborted between two blocks.
 */
export async function gptq(problem: GptqProblem): Promise<GptqResult> {
  const { weights: target, rows, cols, hessian, start, gemm, signal } = problem;
  const { descents = 2, fitScale = false } = problem;
  checkProblem(problem);
  const scale = problem.quantizer.scale.slice();
  const quantizer = { ...problem.quantizer, scale };
  const { weights, kept } = await sweep(problem);
  const H = prepareOperand(hessian.damped, cols, cols, rows, gemm);
  const descent = await open(weights, target, H, gemm);
  const rounded = await open(round(target, kept, quantizer, cols), target, H, gemm);
  takeBetter(descent, rounded, cols);
  if (start) {
    takeBetter(descent, await open(round(start, kept, quantizer, cols), target, H, gemm), cols);
  }
  for (let round = 0; round < descents; round++) {
    await pause(signal);
    const moved = descend(descent, kept, quantizer, hessian.damped, cols);
    if (fitScale && !quantizer.blocks) await refitScales(descent, quantizer, H, gemm);
    else if (moved === 0) break;
  }
  const losses = rowLosses(descent, target, cols);
  const codes = new Int8Array(rows * cols);
  for (let i = 0; i < codes.length; i++) {
    const r = Math.floor(i / cols);
    codes[i] = encode(quantizer, r, weights[i]!, i % cols);
    weights[i] = decode(quantizer, r, codes[i]!, i % cols);
  }
  const loss = losses.reduce((sum, value) => sum + value, 0);
  const roundingLoss = rounded.losses.reduce((sum, value) => sum + value, 0);
  return { codes, quantizer, weights, kept, loss, roundingLoss };
}

/** GPTQ proper, in the order of columns that is asked for. */
async function sweep(problem: GptqProblem): Promise<{ weights: Float64Array; kept: Uint8Array }> {
  const { weights, rows, cols, hessian, quantizer, blockSize, span, gemm, signal } = problem;
  const pattern = problem.pattern ?? { kind: "unstructured", sparsity: 0 };
  const common = {
    rows,
    cols,
    quantizer,
    gemm,
    signal,
    ...(blockSize === undefined ? {} : { blockSize }),
    ...(span === undefined ? {} : { span }),
  };
  if (!problem.activationOrder) {
    const { U, dead } = hessian;
    const solved = weights.slice();
    const { kept } = await sparseGpt({ ...common, weights: solved, U, dead, pattern });
    return { weights: solved, kept };
  }
  const order = descendingDiagonal(hessian.damped, cols);
  const solved = permute(weights, order, rows);
  const mask =
    pattern.kind === "mask"
      ? { kind: pattern.kind, kept: permute(pattern.kept, order, rows) }
      : pattern;
  const result = await sparseGpt({
    ...common,
    weights: solved,
    U: factorInOrder(hessian, order),
    dead: permute(hessian.dead, order, 1),
    pattern: mask,
  });
  const back = new Int32Array(cols);
  for (let j = 0; j < cols; j++) back[order[j]!] = j;
  return { weights: permute(solved, back, rows), kept: permute(result.kept, back, rows) };
}

function descendingDiagonal(H: Float64Array, cols: number): Int32Array {
  const order = Int32Array.from({ length: cols }, (_, j) => j);
  return order.sort((a, b) => H[b * (cols + 1)]! - H[a * (cols + 1)]! || a - b);
}

/** Column j of the result is column order[j] of the data. */
function permute<T extends Float64Array | Uint8Array>(data: T, order: Int32Array, rows: number): T {
  const cols = order.length;
  const out = data.slice() as T;
  for (let r = 0; r < rows; r++) {
    for (let j = 0; j < cols; j++) out[r * cols + j] = data[r * cols + order[j]!]!;
  }
  return out;
}

/** U of the permuted H; dead inputs come last and stay independent of all others. */
function factorInOrder({ damped, dead }: FactoredHessian, order: Int32Array): Float64Array {
  const cols = order.length;
  const H = new Float64Array(cols * cols);
  for (let i = 0; i < cols; i++) {
    const from = order[i]! * cols;
    for (let j = 0; j < cols; j++) H[i * cols + j] = damped[from + order[j]!]!;
    if (dead[order[i]!]) H[i * (cols + 1)] = 1;
  }
  const U = upperFactorOfInverse(H, cols, 0);
  if (U) return U;
  throw new RangeError(
    "hessian: expected a positive definite matrix, got one that is not in the order of its " +
      "diagonal: raise the damping",
  );
}

/** Rounded weights under descent. */
interface Descent {
  readonly weights: Float64Array;
  /** (Ŵ − W)·H, kept up to date. */
  readonly gradient: Float64Array;
  /** ½δHδᵀ of each row as it was opened. */
  readonly losses: Float64Array;
}

async function open(
  weights: Float64Array,
  target: Float64Array,
  H: Operand,
  gemm?: Gemm,
): Promise<Descent> {
  const rows = target.length / H.cols;
  const delta = weights.map((w, i) => w - target[i]!);
  const gradient = await multiplyPrepared(delta, rows, H, gemm);
  const descent = { weights, gradient, losses: new Float64Array(rows) };
  descent.losses.set(rowLosses(descent, target, H.cols));
  return descent;
}

function rowLosses({ weights, gradient }: Descent, target: Float64Array, cols: number) {
  const losses = new Float64Array(target.length / cols);
  for (let i = 0; i < target.length; i++) {
    losses[Math.floor(i / cols)]! += 0.5 * (weights[i]! - target[i]!) * gradient[i]!;
  }
  return losses;
}

function round(
  values: Float64Array,
  kept: Uint8Array,
  quantizer: WeightQuantizer,
  cols: number,
): Float64Array {
  return values.map((value, i) => {
    const r = Math.floor(i / cols);
    const j = i % cols;
    return kept[i] === 1 ? decode(quantizer, r, encode(quantizer, r, value, j), j) : 0;
  });
}

/** Rows of `other` that have less loss replace those of `best`. */
function takeBetter(best: Descent, other: Descent, cols: number): void {
  for (let r = 0; r < best.losses.length; r++) {
    if (!(other.losses[r]! < best.losses[r]!)) continue;
    const [from, to] = [r * cols, (r + 1) * cols];
    best.weights.set(other.weights.subarray(from, to), from);
    best.gradient.set(other.gradient.subarray(from, to), from);
    best.losses[r] = other.losses[r]!;
  }
}

/** One round over all codes; returns how many moved. */
function descend(
  { weights, gradient }: Descent,
  kept: Uint8Array,
  quantizer: WeightQuantizer,
  H: Float64Array,
  cols: number,
): number {
  let moved = 0;
  for (let at = 0; at < weights.length; at += cols) {
    const r = at / cols;
    for (let j = 0; j < cols; j++) {
      const curvature = H[j * (cols + 1)]!;
      if (kept[at + j] === 0 || !(curvature > 0)) continue;
      const w = weights[at + j]!;
      const slope = gradient[at + j]!;
      const q = decode(quantizer, r, encode(quantizer, r, w - slope / curvature, j), j);
      const step = q - w;
      if (step === 0 || !(step * (slope + 0.5 * step * curvature) < 0)) continue;
      weights[at + j] = q;
      moved++;
      const column = j * cols;
      for (let k = 0; k < cols; k++) gradient[at + k]! += step * H[column + k]!;
    }
  }
  return moved;
}

/**
 * The scale of each row that makes its codes fit best: with q = s·c, s −= (q·g)·s/(q·H·qᵀ), g
 * the gradient. The rows' grids, weights and gradients change with it.
 */
async function refitScales(
  { weights, gradient }: Descent,
  quantizer: WeightQuantizer,
  H: Operand,
  gemm?: Gemm,
): Promise<void> {
  const { cols } = H;
  const rows = weights.length / cols;
  const products = await multiplyPrepared(weights, rows, H, gemm);
  for (let r = 0; r < rows; r++) {
    const at = r * cols;
    const curvature = dot(weights, at, products, at, cols);
    if (!(curvature > 0)) continue;
    const old = quantizer.scale[r]!;
    const wanted = old * (1 - dot(weights, at, gradient, at, cols) / curvature);
    if (!(wanted > 0.5 * old && wanted < 2 * old)) continue;
    quantizer.scale[r] = wanted;
    const change = quantizer.scale[r]! / old - 1;
    for (let i = at; i < at + cols; i++) {
      weights[i]! *= 1 + change;
      gradient[i]! += change * products[i]!;
    }
  }
}

function checkProblem(problem: GptqProblem): void {
  const { weights, rows, cols, hessian, quantizer, start, pattern, activationOrder } = problem;
  checkLength("weights", weights, rows * cols);
  checkLength("hessian", hessian.damped, cols * cols);
  const grids = rows * (quantizer.blocks?.perRow ?? 1);
  checkLength("quantizer.scale", quantizer.scale, grids);
  checkLength("quantizer.zero", quantizer.zero, grids);
  if (start) checkLength("start", start, rows * cols);
  if (activationOrder && quantizer.blocks) {
    throw new RangeError("activationOrder: expected false for blocks of columns with a scale each");
  }
  if (activationOrder && (pattern?.kind === "n:m" || pattern?.kind === "block")) {
    throw new RangeError("activationOrder: expected false for N:M and blocks, which are neighbors");
  }
}
