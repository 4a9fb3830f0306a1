import { type Gemm, multiplyPrepared, prepareOperand } from "../math/gemm.ts";
import { checkLength, transposed } from "../math/products.ts";
import { factorHessian } from "./damping.ts";
import { refit } from "./refit.ts";

/** A layer that is to come close to given outputs on the inputs that it gets. */
export interface AffineRefitProblem {
  /** T = 2/n·Σ y·x′ᵀ of the outputs aimed at, `rows × cols`, row-major; see {@link aimOf}. */
  readonly aim: Float64Array;
  /** S, what to shrink toward, `rows × cols`, row-major; read only. */
  readonly start: Float64Array;
  readonly rows: number;
  /** Inputs x′. */
  readonly cols: number;
  /** H′ = 2/n·Σ x′·x′ᵀ, `cols × cols`. */
  readonly gram: Float64Array;
  /** λ as a share of the mean diagonal of H′ over live inputs. */
  readonly damping: number;
  /** 1 where a weight may be other than that of S, `rows × cols`; all by default. S is 0 elsewhere. */
  readonly kept?: Uint8Array | undefined;
  readonly gemm?: Gemm | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** What {@link affineRefit} found. */
export interface AffineRefit {
  /** Ŵ, `rows × cols`, row-major. */
  readonly weights: Float64Array;
  /**
   * E‖y‖² − E‖Ŵx′ − y‖², summed over rows: how much of the aim is reached. Inputs that never
   * change count as if they had no weight.
   */
  readonly explained: number;
  /** The relative damping that was needed. */
  readonly damping: number;
}

/**
 * The weights that come closest to given outputs: Ŵ = S + (T − S·H′)·(H′ + λI)⁻¹, which minimizes
 * E‖Ŵx′ − y‖² + λ/2·‖Ŵ − S‖² over Ŵ.
 *
 * Where x′ is a part of x, y = Wx and S = W_:K, it is W·(H + λI)_:K·(H + λI)_KK⁻¹: the survivors of
 * structured elimination (also GRAIL, arXiv:2602.23795). Where x′ comes out of a network changed
 * up to here and y out of the dense one, it makes up for the errors of the layers before. With
 * means taken off T and H′ the bias follows by {@link affineBias}, as in CORP (arXiv:2602.05243).
 * Inputs that never change keep the weights of S: they belong to the bias.
 *
 * With `kept`, the minimum over the weights that are kept: Ŵ above, the minimum over all of them,
 * makes the loss ½(w − Ŵ)(H′ + λI)(w − Ŵ)ᵀ and a constant, which {@link refit} makes least on a mask.
 *
 * @throws {RangeError} if a size does not fit or H′ is not positive semidefinite.
 * @throws the signal's reason, when aborted.
 */
export async function affineRefit(problem: AffineRefitProblem): Promise<AffineRefit> {
  const { aim, start, rows, cols, gram, damping, kept, gemm, signal } = problem;
  checkLength("aim", aim, rows * cols);
  checkLength("start", start, rows * cols);
  const { damped, U, dead, damping: used } = await factorHessian(gram, cols, damping, gemm);
  const times = (left: Float64Array, rightTransposed: Float64Array) =>
    multiplyPrepared(left, rows, prepareOperand(rightTransposed, cols, cols, rows, gemm), gemm);
  const own = await times(start, gram);
  const residual = aim.map((value, i) => (dead[i % cols] ? 0 : value - own[i]!));
  const half = await times(residual, U);
  const change = await times(half, transposed(U, cols, cols));
  let weights = start.map((s, i) => (dead[i % cols] ? s : s + change[i]!));
  if (kept !== undefined) {
    const target = weights;
    weights = start.slice();
    await refit({ target, weights, kept, rows, cols, H: damped, gemm, signal });
  }
  const live = weights.map((w, i) => (dead[i % cols] ? 0 : w));
  const reached = await times(live, gram);
  let explained = 0;
  for (let i = 0; i < live.length; i++) explained += live[i]! * (aim[i]! - 0.5 * reached[i]!);
  return { weights, explained, damping: used };
}

/**
 * The aim of a layer that keeps some of its inputs: T = W·H_:K.
 *
 * @param weights W, `rows × cols`. @param H_K columns K of H, `cols × kept`.
 * @returns `rows × kept`, row-major.
 */
export function aimOf(
  weights: Float64Array,
  rows: number,
  H_K: Float64Array,
  gemm?: Gemm,
): Promise<Float64Array> {
  const cols = weights.length / rows;
  const kept = H_K.length / cols;
  checkLength("H_K", H_K, cols * Math.round(kept));
  const right = prepareOperand(transposed(H_K, cols, kept), kept, cols, rows, gemm);
  return multiplyPrepared(weights, rows, right, gemm);
}

/**
 * The bias that goes with weights, so that the mean output is the one aimed at: ȳ − Ŵ·x̄′.
 *
 * @param aimMean ȳ, one a row. @param weights Ŵ, `aimMean.length × mean.length`.
 * @param mean x̄′.
 */
export function affineBias(
  aimMean: Float64Array,
  weights: Float64Array,
  mean: Float64Array,
): Float64Array {
  const cols = mean.length;
  checkLength("weights", weights, aimMean.length * cols);
  return aimMean.map((value, r) => {
    let sum = value;
    for (let j = 0; j < cols; j++) sum -= weights[r * cols + j]! * mean[j]!;
    return sum;
  });
}
