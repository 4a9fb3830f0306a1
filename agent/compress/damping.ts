import { upperFactorOfInverse, upperFactorOfInverseByGemm } from "../math/cholesky.ts";
import type { Gemm } from "../math/gemm.ts";
import { checkLength } from "../math/products.ts";

/** A Hessian made fit for the solvers. */
export interface DampedHessian {
  /** H + λI, exactly symmetric, `cols × cols`; rows and columns of dead inputs are zero. */
  readonly damped: Float64Array;
  /** 1 for an input that never is anything but 0 (or, centered, never changes). */
  readonly dead: Uint8Array;
  /** λ, in units of H. */
  readonly lambda: number;
  /** The relative damping that was enough: the one asked for, or a power of ten above it. */
  readonly damping: number;
}

/** A damped Hessian and the factor of its inverse. */
export interface FactoredHessian extends DampedHessian {
  /** U upper triangular with (H + λI)⁻¹ = Uᵀ·U; the diagonal of dead inputs is arbitrary. */
  readonly U: Float64Array;
}

/** From here on the factorization by a supplied product is faster. */
const LARGE = 192;
/** What a damping of 0 is raised to where it does not do. */
const SMALLEST = 1e-8;
const LARGEST = 10;
const TILE = 32;

/**
 * Damps and factors a Hessian: λ = damping · mean(diag H) over live inputs. Where that is not
 * positive definite (fewer samples than columns and little damping), damping is raised tenfold
 * until it is, and the result says so. Dead inputs take part as independent ones, so they lie
 * wherever they lie; the authors' code gives them a diagonal of 1 instead and counts it in the
 * mean, which makes λ depend on the unit of the inputs.
 *
 * @param H `cols × cols`; read only.
 * @throws {RangeError} if a size does not fit or H is not finite or not positive semidefinite.
 */
export async function factorHessian(
  H: Float64Array,
  cols: number,
  damping: number,
  gemm?: Gemm,
): Promise<FactoredHessian> {
  checkLength("H", H, cols * cols);
  if (!(damping >= 0)) throw new RangeError(`damping: expected 0 or more, got ${damping}`);
  const { symmetric, dead, meanDiagonal } = prepare(H, cols);
  for (let j = 0; j < cols; j++) if (dead[j]) symmetric[j * (cols + 1)] = meanDiagonal;
  for (let tried = damping; tried <= LARGEST; tried = Math.max(10 * tried, SMALLEST)) {
    const lambda = tried * meanDiagonal;
    const U = await factorOnce(symmetric, cols, lambda, gemm);
    if (!U) continue;
    for (let j = 0; j < cols; j++) {
      const at = j * (cols + 1);
      symmetric[at] = dead[j] ? 0 : symmetric[at]! + lambda;
    }
    return { damped: symmetric, U, dead, lambda, damping: tried };
  }
  throw new RangeError(
    `H: expected a finite positive semidefinite matrix, got one that a damping of ${LARGEST} ` +
      "times its mean diagonal does not make positive definite",
  );
}

/**
 * Damps a Hessian as {@link factorHessian} does, for solvers that need no factor: nobody looks
 * whether the damping is enough, so it is to be well above what rounding takes away.
 *
 * @param H `cols × cols`; read only.
 * @throws {RangeError} if a size does not fit or H has NaN on its diagonal.
 */
export function dampHessian(H: Float64Array, cols: number, damping: number): DampedHessian {
  checkLength("H", H, cols * cols);
  const { symmetric, dead, meanDiagonal } = prepare(H, cols);
  const lambda = damping * meanDiagonal;
  for (let j = 0; j < cols; j++) if (!dead[j]) symmetric[j * (cols + 1)]! += lambda;
  return { damped: symmetric, dead, lambda, damping };
}

function factorOnce(
  H: Float64Array,
  cols: number,
  lambda: number,
  gemm?: Gemm,
): Promise<Float64Array | undefined> {
  return gemm && cols >= LARGE
    ? upperFactorOfInverseByGemm(H, cols, lambda, gemm)
    : Promise.resolve(upperFactorOfInverse(H, cols, lambda));
}

function prepare(H: Float64Array, cols: number) {
  const symmetric = new Float64Array(H.length);
  const dead = new Uint8Array(cols);
  let sum = 0;
  let live = 0;
  for (let i = 0; i < cols; i++) {
    const diagonal = H[i * (cols + 1)]!;
    if (diagonal > 0) {
      sum += diagonal;
      live++;
    } else if (Number.isNaN(diagonal)) {
      throw new RangeError(`H: expected finite numbers, got NaN in column ${i}`);
    } else dead[i] = 1;
  }
  // By tiles, as walking down a column of a large matrix misses the cache at every step.
  for (let top = 0; top < cols; top += TILE) {
    for (let left = 0; left <= top; left += TILE) {
      for (let i = top; i < Math.min(cols, top + TILE); i++) {
        if (dead[i]) continue;
        for (let j = left; j < Math.min(i + 1, left + TILE); j++) {
          const value = dead[j] ? 0 : (H[i * cols + j]! + H[j * cols + i]!) / 2;
          symmetric[i * cols + j] = value;
          symmetric[j * cols + i] = value;
        }
      }
    }
  }
  return { symmetric, dead, meanDiagonal: live > 0 ? sum / live : 1 };
}
