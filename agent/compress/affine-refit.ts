import { type Gemm, multiplyPrepared, prepareOperand } from "../math/gemm.ts";
import { checkLength, transposed } from "../math/products.ts";
import { factorHessian } from "./damping.ts";

/** A layer some of whose inputs are gone, or whose inputs have changed, or both. */
export interface AffineRefitProblem {
  /** The weights whose outputs are aimed at, W, `rows × cols`, row-major; read only. */
  readonly target: Float64Array;
  readonly rows: number;
  /** Inputs x of the target. */
  readonly cols: number;
  /** What to shrink toward, `rows × kept`, row-major; read only. As a rule W's own columns. */
  readonly start: Float64Array;
  /** Inputs x′ that are left. */
  readonly kept: number;
  /** C = 2/n·Σ x·x′ᵀ, `cols × kept`. */
  readonly cross: Float64Array;
  /** H′ = 2/n·Σ x′·x′ᵀ, `kept × kept`. */
  readonly gram: Float64Array;
  /** λ as a share of the mean diagonal of H′ over live inputs. */
  readonly damping: number;
  readonly gemm?: Gemm | undefined;
}

/** What {@link affineRefit} found. */
export interface AffineRefit {
  /** Ŵ, `rows × kept`, row-major. */
  readonly weights: Float64Array;
  /**
   * ½E‖Wx‖² − ½E‖Ŵx′ − Wx‖² in units of C and H′, summed over rows: how much of the aim is
   * reached. Inputs that never change count as if they had no weight.
   */
  readonly explained: number;
  /** The relative damping that was needed. */
  readonly damping: number;
}

/**
 * The weights that come closest to the outputs of others on inputs of their own:
 * Ŵ = S + (W·C − S·H′)·(H′ + λI)⁻¹, which minimizes ‖Ŵx′ − Wx‖² + λ‖Ŵ − S‖² over Ŵ.
 *
 * Where x′ is a part of x, C = H_:K, H′ = H_KK and S = W_:K, it is W·(H + λI)_:K·(H + λI)_KK⁻¹:
 * the survivors of structured elimination (also GRAIL, arXiv:2602.23795). Where x′ comes out of a
 * network compressed up to here, it corrects the errors of the layers before (GPTAQ's asymmetric
 * target). With means taken off both C and H′, the bias follows by {@link affineBias}, as in CORP
 * (arXiv:2602.05243). Inputs that never change keep the weights of S: they belong to the bias.
 *
 * @throws {RangeError} if a size does not fit or H′ is not positive semidefinite.
 */
export async function affineRefit(problem: AffineRefitProblem): Promise<AffineRefit> {
  const { target, rows, cols, start, kept, cross, gram, damping, gemm } = problem;
  checkLength("target", target, rows * cols);
  checkLength("start", start, rows * kept);
  checkLength("cross", cross, cols * kept);
  const { U, dead, damping: used } = await factorHessian(gram, kept, damping, gemm);
  const times = (left: Float64Array, rightTransposed: Float64Array, depth: number) =>
    multiplyPrepared(left, rows, prepareOperand(rightTransposed, kept, depth, rows, gemm), gemm);
  const aim = await times(target, transposed(cross, cols, kept), cols);
  const own = await times(start, gram, kept);
  const residual = aim.map((value, i) => (dead[i % kept] ? 0 : value - own[i]!));
  const half = await times(residual, U, kept);
  const change = await times(half, transposed(U, kept, kept), kept);
  const weights = start.map((s, i) => (dead[i % kept] ? s : s + change[i]!));
  const live = weights.map((w, i) => (dead[i % kept] ? 0 : w));
  const reached = await times(live, gram, kept);
  let explained = 0;
  for (let i = 0; i < live.length; i++) explained += live[i]! * (aim[i]! - 0.5 * reached[i]!);
  return { weights, explained, damping: used };
}

/**
 * The bias that goes with refitted weights, so that the mean output stays: b + W·x̄ − Ŵ·x̄′.
 *
 * @param target W, `bias.length × mean.length`. @param weights Ŵ, `bias.length × ownMean.length`.
 */
export function affineBias(
  bias: ArrayLike<number>,
  target: Float64Array,
  mean: Float64Array,
  weights: Float64Array,
  ownMean: Float64Array,
): Float64Array {
  checkLength("target", target, bias.length * mean.length);
  checkLength("weights", weights, bias.length * ownMean.length);
  const out = Float64Array.from(bias);
  for (let r = 0; r < out.length; r++) {
    for (let j = 0; j < mean.length; j++) out[r]! += target[r * mean.length + j]! * mean[j]!;
    for (let j = 0; j < ownMean.length; j++) {
      out[r]! -= weights[r * ownMean.length + j]! * ownMean[j]!;
    }
  }
  return out;
}
