import { cholesky, solveCholesky } from "./cholesky.ts";
import { checkLength, productOfRows, transposed } from "./products.ts";

/** A regression `Y ≈ X·Wᵀ`. */
export interface RidgeProblem {
  /** `samples × inputs`, row-major. */
  readonly X: Float64Array;
  /** `samples × outputs`, row-major. */
  readonly Y: Float64Array;
  readonly samples: number;
  readonly inputs: number;
  readonly outputs: number;
  /** λ > 0 of the penalty λ‖W‖². */
  readonly lambda: number;
}

/**
 * Ridge regression in closed form: the W that minimizes ‖X·Wᵀ − Y‖² + λ‖W‖², by the normal
 * equations in inputs or, where there are fewer samples, in samples: W = Yᵀ(XXᵀ + λI)⁻¹X.
 *
 * @returns W, `outputs × inputs`, row-major.
 * @throws {RangeError} if sizes do not fit, or λ is too small to make the system solvable.
 */
export function solveRidge(problem: RidgeProblem): Float64Array {
  const { X, Y, samples, inputs, outputs, lambda } = problem;
  checkLength("X", X, samples * inputs);
  checkLength("Y", Y, samples * outputs);
  if (!(lambda >= 0)) throw new RangeError(`lambda: expected 0 or more, got ${lambda}`);
  const Xt = transposed(X, samples, inputs);
  const Yt = transposed(Y, samples, outputs);
  if (inputs <= samples) {
    const L = factorGram(Xt, inputs, samples, lambda);
    const W = productOfRows(Yt, Xt, outputs, inputs, samples);
    solveCholesky(L, inputs, W);
    return W;
  }
  const L = factorGram(X, samples, inputs, lambda);
  solveCholesky(L, samples, Yt);
  return productOfRows(Yt, Xt, outputs, inputs, samples);
}

function factorGram(rows: Float64Array, n: number, depth: number, lambda: number): Float64Array {
  const G = productOfRows(rows, rows, n, n, depth);
  for (let i = 0; i < n; i++) G[i * (n + 1)]! += lambda;
  if (!cholesky(G, n)) {
    throw new RangeError(`lambda: expected enough to solve a singular system, got ${lambda}`);
  }
  return G;
}
