import { choleskyInverse, upperFactorOfInverseByGemm } from "../math/cholesky.ts";
import { type Gemm, type Matrix, referenceGemm } from "../math/gemm.ts";
import { pause } from "../math/pause.ts";
import { checkLength } from "../math/products.ts";
import {
  checkPattern,
  groupEnds,
  type Pattern,
  pruneSmallest,
  zerosInGroup,
  zerosOf,
} from "./pattern.ts";

/** A layer whose mask is to be found. */
interface AdmmProblem {
  /** W, `rows × cols`, row-major; read only. */
  readonly weights: Float64Array;
  readonly rows: number;
  readonly cols: number;
  /** Damped H, symmetric positive semidefinite, `cols × cols`; zero for dead inputs. */
  readonly H: Float64Array;
  readonly pattern: Pattern;
  /** N:M groups and blocks begin anew at every multiple of this. Default `cols`. */
  readonly span?: number;
  /** Penalties one after the other, each with the steps taken at it. */
  readonly stages?: readonly AdmmStage[];
  readonly gemm?: Gemm | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** Steps at one penalty; each penalty takes one inverse. */
interface AdmmStage {
  /** ρ, in units of a Hessian with a diagonal of ones. */
  readonly penalty: number;
  readonly steps: number;
}

/** A mask and where to start the refit on it. */
interface AdmmResult {
  /** 1 where a weight stays, `rows × cols`. */
  readonly kept: Uint8Array;
  /** `rows × cols`, zero wherever the mask is. */
  readonly weights: Float64Array;
}

const STAGES: readonly AdmmStage[] = [
  { penalty: 0.3, steps: 8 },
  { penalty: 1, steps: 8 },
  { penalty: 5, steps: 4 },
];
/** From here on the inverse by a supplied product is faster. */
const LARGE = 192;
/** Multiplications from which on a product is worth a call of the supplied engine. */
const WORTH_A_CALL = 1 << 19;

/**
 * Which weights to keep, by the alternating direction method of multipliers on
 * min ½tr((X−W)H(X−W)ᵀ) with X in the pattern (ALPS, Meng et al. 2024, arXiv:2406.07831, eq. 4):
 * unlike a sweep, which never takes a decision back, weights come and go until the least squares
 * and the pattern agree. Inputs are scaled to H_jj = 1 first.
 *
 * With M = ρ(H + ρI)⁻¹, the scaled dual u and D = T where kept, u = T where not (they share no
 * element, as D is the projection of T = X + u), one step is one product:
 * ```
 * T ← W + (±T − W)·M + (kept ? 0 : T)      + where kept, − where not
 * ```
 * ALPS lets ρ grow at every step, for which it decomposes H; a few values of ρ with an inverse
 * each come within 2 to 6 % of the loss. Single precision, which is enough for a mask.
 *
 * @throws {RangeError} if a size or the pattern does not fit.
 * @throws the signal's reason, when aborted between two steps.
 */
export async function admmMask(problem: AdmmProblem): Promise<AdmmResult> {
  const { weights, rows, cols, H, pattern, stages = STAGES, signal } = problem;
  checkLength("weights", weights, rows * cols);
  checkLength("H", H, cols * cols);
  checkPattern(pattern);
  const scale = scaleOf(H, cols);
  const W = scaledWeights(weights, scale);
  const project = projection(pattern, rows, cols, problem.span ?? cols);
  const state = { W, T: W.slice(), kept: new Uint8Array(rows * cols) };
  project(state.T, state.kept);
  let before = stages[0]?.penalty ?? 1;
  for (const { penalty, steps } of stages) {
    rescaleDual(state, before / penalty);
    before = penalty;
    const M = await penaltyInverse(problem, scale, penalty);
    for (let step = 0; step < steps; step++) {
      await pause(signal);
      await advance(state, M, rows, problem.gemm);
      project(state.T, state.kept);
    }
  }
  const { T, kept } = state;
  const result = new Float64Array(rows * cols);
  const largest = largestOf(weights, scale);
  for (let i = 0; i < result.length; i++) {
    const factor = scale[i % cols]!;
    if (kept[i] === 1 && factor > 0) result[i] = (T[i]! * largest) / factor;
  }
  return { kept, weights: result };
}

/** √H_jj, 0 for dead inputs, whose weights so go first. */
function scaleOf(H: Float64Array, cols: number): Float64Array {
  return Float64Array.from({ length: cols }, (_, j) => {
    const diagonal = H[j * (cols + 1)]!;
    return diagonal > 0 ? Math.sqrt(diagonal) : 0;
  });
}

/** The largest |w|·√H_jj, or 1: what weights are divided by to fit single precision. */
function largestOf(weights: Float64Array, scale: Float64Array): number {
  let largest = 0;
  for (let i = 0; i < weights.length; i++) {
    largest = Math.max(largest, Math.abs(weights[i]!) * scale[i % scale.length]!);
  }
  return largest > 0 ? largest : 1;
}

function scaledWeights(weights: Float64Array, scale: Float64Array): Float32Array {
  const largest = largestOf(weights, scale);
  const out = new Float32Array(weights.length);
  for (let i = 0; i < out.length; i++) {
    out[i] = (weights[i]! * scale[i % scale.length]!) / largest;
  }
  return out;
}

/** ρ(H + ρI)⁻¹ of the scaled H, in single precision. */
async function penaltyInverse(
  { H, cols, gemm }: AdmmProblem,
  scale: Float64Array,
  penalty: number,
): Promise<Matrix<Float32Array>> {
  const A = new Float64Array(cols * cols);
  const inverseScale = scale.map((s) => (s > 0 ? 1 / s : 0));
  for (let i = 0; i < cols; i++) {
    const own = inverseScale[i]!;
    for (let j = 0; j < cols; j++) A[i * cols + j] = H[i * cols + j]! * own * inverseScale[j]!;
    A[i * (cols + 1)]! += penalty;
  }
  const inverse = gemm && cols >= LARGE ? await byGemm(A, cols, gemm) : choleskyInverse(A, cols);
  if (!inverse) {
    throw new RangeError(
      `H: expected a finite positive semidefinite matrix, got one that ${penalty} on a diagonal ` +
        "of ones does not make positive definite: raise the damping",
    );
  }
  const data = new Float32Array(inverse);
  for (let i = 0; i < data.length; i++) data[i]! *= penalty;
  return { data, rows: cols, cols };
}

async function byGemm(A: Float64Array, n: number, gemm: Gemm): Promise<Float32Array | undefined> {
  const factor = await upperFactorOfInverseByGemm(A, n, 0, gemm);
  if (!factor) return undefined;
  const U = { data: new Float32Array(factor), rows: n, cols: n };
  return gemm(U, U, { transA: true });
}

/** The scaled weights W, the point T before projection and its mask. */
interface State {
  readonly W: Float32Array;
  readonly T: Float32Array;
  readonly kept: Uint8Array;
}

/** The dual ρ·u stays what it is when ρ changes. */
function rescaleDual({ T, kept }: State, factor: number): void {
  for (let i = 0; i < T.length; i++) if (kept[i] === 0) T[i]! *= factor;
}

async function advance(
  { W, T, kept }: State,
  M: Matrix<Float32Array>,
  rows: number,
  gemm?: Gemm,
): Promise<void> {
  const cols = M.cols;
  const left = new Float32Array(T.length);
  for (let i = 0; i < T.length; i++) left[i] = (kept[i] === 1 ? T[i]! : -T[i]!) - W[i]!;
  const multiply = gemm && rows * cols * cols >= WORTH_A_CALL ? gemm : referenceGemm;
  const product = await multiply({ data: left, rows, cols }, M, { transB: true });
  for (let i = 0; i < T.length; i++) T[i] = W[i]! + product[i]! + (kept[i] === 1 ? 0 : T[i]!);
}

/** Marks the elements of T that the pattern keeps. */
function projection(
  pattern: Pattern,
  rows: number,
  cols: number,
  span: number,
): (T: Float32Array, kept: Uint8Array) => void {
  if (pattern.kind === "unstructured") {
    const scores = new Float32Array(rows * cols);
    const zeros = zerosOf(pattern.sparsity, scores.length);
    return (T, kept) => {
      for (let i = 0; i < T.length; i++) scores[i] = Math.abs(T[i]!);
      kept.fill(1);
      pruneSmallest(scores, zeros, kept);
    };
  }
  if (pattern.kind === "block") return blockProjection(pattern, rows, cols, span);
  const ends = groupEnds(pattern.m, cols, span);
  const scores = new Float64Array(pattern.m);
  return (T, kept) => {
    kept.fill(1);
    for (let row = 0; row < T.length; row += cols) {
      let start = row;
      for (const groupEnd of ends) {
        const end = row + groupEnd;
        for (let i = start; i < end; i++) scores[i - start] = Math.abs(T[i]!);
        const zeros = zerosInGroup(pattern.n, pattern.m, end - start);
        pruneSmallest(scores.subarray(0, end - start), zeros, kept.subarray(start, end));
        start = end;
      }
    }
  };
}

function blockProjection(
  { size, sparsity }: Extract<Pattern, { kind: "block" }>,
  rows: number,
  cols: number,
  span: number,
): (T: Float32Array, kept: Uint8Array) => void {
  const ends = groupEnds(size, cols, span);
  const energy = new Float64Array(rows * ends.length);
  const chosen = new Uint8Array(energy.length);
  const zeros = zerosOf(sparsity, energy.length);
  return (T, kept) => {
    energy.fill(0);
    for (let b = 0; b < energy.length; b++) {
      const row = Math.floor(b / ends.length) * cols;
      const start = row + (ends[(b % ends.length) - 1] ?? 0);
      const end = row + ends[b % ends.length]!;
      for (let i = start; i < end; i++) energy[b]! += T[i]! ** 2 / (end - start);
    }
    chosen.fill(1);
    pruneSmallest(energy, zeros, chosen);
    for (let b = 0; b < energy.length; b++) {
      const row = Math.floor(b / ends.length) * cols;
      const start = row + (ends[(b % ends.length) - 1] ?? 0);
      kept.fill(chosen[b]!, start, row + ends[b % ends.length]!);
    }
  };
}
