import { type Gemm, multiplyPrepared, prepareOperand } from "../math/gemm.ts";
import { checkLength, transposed } from "../math/products.ts";
import type { FactoredHessian } from "./damping.ts";

/** A layer whose inputs were changed by the compression of those before it. */
export interface RetargetProblem {
  /** Dense weights W, `rows × cols`, row-major; read only. */
  readonly weights: Float64Array;
  readonly rows: number;
  readonly cols: number;
  /** C = 2/n·Σ x·x′ᵀ of dense inputs x (rows) and compressed ones x′, `cols × cols`. */
  readonly cross: Float64Array;
  /** H′ = 2/n·Σ x′·x′ᵀ, damped and factored. */
  readonly compressed: FactoredHessian;
  readonly gemm?: Gemm | undefined;
}

/**
 * The weights that, on compressed inputs X′, come closest to the dense outputs W·X:
 * V = W + W·(C − H′)·(H′ + λI)⁻¹, which minimizes ‖V·X′ − W·X‖² + λ‖V − W‖². To be used as W by
 * the pruning of the same layer. The plain form W·C·(H′ + λI)⁻¹ shrinks toward zero instead of
 * toward W and so changes a layer whose inputs did not change; this one does not. With means taken
 * off both C and H′, the bias follows as b + W·x̄ − V·x̄′.
 *
 * @returns V, `rows × cols`, row-major.
 * @throws {RangeError} if a size does not fit.
 */
export async function retarget(problem: RetargetProblem): Promise<Float64Array> {
  const { weights, rows, cols, cross, compressed, gemm } = problem;
  checkLength("weights", weights, rows * cols);
  checkLength("cross", cross, cols * cols);
  const { damped, U, dead, lambda } = compressed;
  const gapTransposed = new Float64Array(cols * cols);
  for (let j = 0; j < cols; j++) {
    if (dead[j]) continue;
    for (let i = 0; i < cols; i++) {
      const own = damped[j * cols + i]! - (i === j ? lambda : 0);
      gapTransposed[j * cols + i] = cross[i * cols + j]! - own;
    }
  }
  const times = (left: Float64Array, rightTransposed: Float64Array) => {
    const operand = prepareOperand(rightTransposed, cols, cols, rows, gemm);
    return multiplyPrepared(left, rows, operand, gemm);
  };
  const shifted = await times(weights, gapTransposed);
  const half = await times(shifted, U);
  const change = await times(half, transposed(U, cols, cols));
  return weights.map((w, i) => w + change[i]!);
}
