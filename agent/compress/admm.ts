import { type Gemm, type Matrix, referenceGemm } from "../math/gemm.ts";
import { invertInPlace } from "../math/inverse.ts";
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
  /** Penalties one after the other, each with the most steps taken at it. */
  readonly stages?: readonly AdmmStage[];
  readonly gemm?: Gemm | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** Steps at one penalty, fewer where the mask settles; each penalty takes one inverse. */
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

/**
 * At 0.3 the mask goes on changing by a tenth a step, which explores; at 1 it settles, within some
 * eight steps at half of the weights and some twelve at a fifth. Where it does not, as in patterns of
 * few weights, 5 makes it.
 */
const STAGES: readonly AdmmStage[] = [
  { penalty: 0.3, steps: 8 },
  { penalty: 1, steps: 12 },
  { penalty: 5, steps: 4 },
];
/**
 * Share of the mask that changes in a step, below which it has settled, which ends the search: then
 * larger penalties change nothing. In layers of fewer weights than one in that share all steps are
 * taken: a step without a change proves nothing there.
 */
const SETTLED = 2e-4;
/** Multiplications from which on a product is worth a call of the supplied engine. */
const WORTH_A_CALL = 1 << 17;

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
 * @returns undefined where H is so far from positive semidefinite that a penalty does not help:
 *   its damping is to be raised.
 * @throws {RangeError} if a size or the pattern does not fit.
 * @throws the signal's reason, when aborted between two steps.
 */
export async function tryAdmmMask(problem: AdmmProblem): Promise<AdmmResult | undefined> {
  const { weights, rows, cols, H, pattern, stages = STAGES, signal } = problem;
  checkLength("weights", weights, rows * cols);
  checkLength("H", H, cols * cols);
  checkPattern(pattern);
  const scale = scaleOf(H, cols);
  const unit = largestOf(weights, scale);
  const W = scaledWeights(weights, scale, unit);
  const scaledH = scaledHessian(H, scale);
  const M = { data: new Float32Array(cols * cols), rows: cols, cols };
  const project = projection(pattern, rows, cols, problem.span ?? cols);
  const kept = new Uint8Array(rows * cols);
  const state = { W, T: W.slice(), kept, left: new Float32Array(rows * cols) };
  project(state.T, state.kept);
  const last = new Uint8Array(rows * cols);
  let before = stages[0]?.penalty ?? 1;
  let settled = false;
  for (const [stage, { penalty, steps }] of stages.entries()) {
    rescaleDual(state, before / penalty);
    before = penalty;
    M.data.set(scaledH);
    if (!(await invertPenalty(M, penalty, problem.gemm))) return undefined;
    for (let step = 0; step < steps; step++) {
      await pause(signal);
      last.set(state.kept);
      await advance(state, M, rows, problem.gemm);
      project(state.T, state.kept);
      // The first penalty explores, and the first step at another shows what that led to.
      settled =
        stage > 0 && step > 0 && countChanges(last, state.kept) < Math.floor(SETTLED * last.length);
      if (settled) break;
    }
    if (settled) break;
  }
  return { kept, weights: unscaled(state, scale, unit) };
}

/**
 * {@link tryAdmmMask} of an H that is known to be positive semidefinite.
 *
 * @throws {RangeError} also where it is not.
 */
export async function admmMask(problem: AdmmProblem): Promise<AdmmResult> {
  const found = await tryAdmmMask(problem);
  if (found) return found;
  throw new RangeError(
    "H: expected a finite positive semidefinite matrix, got one that no penalty makes positive " +
      "definite: raise the damping",
  );
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
  const cols = scale.length;
  let largest = 0;
  for (let row = 0; row < weights.length; row += cols) {
    for (let j = 0; j < cols; j++) {
      const size = Math.abs(weights[row + j]! * scale[j]!);
      if (size > largest) largest = size;
    }
  }
  return largest > 0 ? largest : 1;
}

function scaledWeights(weights: Float64Array, scale: Float64Array, unit: number): Float32Array {
  const cols = scale.length;
  const out = new Float32Array(weights.length);
  for (let row = 0; row < out.length; row += cols) {
    for (let j = 0; j < cols; j++) out[row + j] = (weights[row + j]! * scale[j]!) / unit;
  }
  return out;
}

/** The kept part of T in the units of the weights. */
function unscaled({ T, kept }: State, scale: Float64Array, unit: number): Float64Array {
  const cols = scale.length;
  const out = new Float64Array(T.length);
  for (let row = 0; row < out.length; row += cols) {
    for (let j = 0; j < cols; j++) {
      if (kept[row + j] === 1 && scale[j]! > 0) out[row + j] = (T[row + j]! * unit) / scale[j]!;
    }
  }
  return out;
}

/** H with a diagonal of ones (zero for dead inputs), in single precision. */
function scaledHessian(H: Float64Array, scale: Float64Array): Float32Array {
  const cols = scale.length;
  const inverse = scale.map((s) => (s > 0 ? 1 / s : 0));
  const out = new Float32Array(cols * cols);
  for (let i = 0; i < cols; i++) {
    const own = inverse[i]!;
    for (let j = 0; j < cols; j++) out[i * cols + j] = H[i * cols + j]! * own * inverse[j]!;
  }
  return out;
}

/** M ← ρ(M + ρI)⁻¹; false where that is not positive definite. */
async function invertPenalty(
  { data, cols }: Matrix<Float32Array>,
  penalty: number,
  gemm: Gemm = referenceGemm,
): Promise<boolean> {
  for (let j = 0; j < cols; j++) data[j * (cols + 1)]! += penalty;
  const inverted = await invertInPlace(data, cols, gemm);
  for (let i = 0; i < data.length; i++) data[i]! *= penalty;
  return inverted;
}

/** The scaled weights W, the point T before projection and its mask. */
interface State {
  readonly W: Float32Array;
  readonly T: Float32Array;
  readonly kept: Uint8Array;
  /** What is multiplied by M; overwritten at every step. */
  readonly left: Float32Array;
}

function countChanges(before: Uint8Array, after: Uint8Array): number {
  let changes = 0;
  for (let i = 0; i < after.length; i++) changes += before[i]! ^ after[i]!;
  return changes;
}

/** The dual ρ·u stays what it is when ρ changes. */
function rescaleDual({ T, kept }: State, factor: number): void {
  for (let i = 0; i < T.length; i++) T[i]! *= factor + kept[i]! * (1 - factor);
}

async function advance(
  { W, T, kept, left }: State,
  M: Matrix<Float32Array>,
  rows: number,
  gemm?: Gemm,
): Promise<void> {
  const cols = M.cols;
  for (let i = 0; i < T.length; i++) left[i] = (2 * kept[i]! - 1) * T[i]! - W[i]!;
  const multiply = gemm && rows * cols * cols >= WORTH_A_CALL ? gemm : referenceGemm;
  // M is symmetric, and read along its rows by every engine.
  const product = await multiply({ data: left, rows, cols }, M);
  for (let i = 0; i < T.length; i++) T[i] = W[i]! + product[i]! + (1 - kept[i]!) * T[i]!;
}

/** Marks the elements of T that the pattern keeps. */
function projection(
  pattern: Pattern,
  rows: number,
  cols: number,
  span: number,
): (T: Float32Array, kept: Uint8Array) => void {
  if (pattern.kind === "unstructured") {
    const zeros = zerosOf(pattern.sparsity, rows * cols);
    const counts = new Uint32Array(1 << 16);
    return (T, kept) => {
      keepLargest(T, zeros, kept, counts);
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

/**
 * Marks all but the `zeros` smallest |T|, the earlier of equals first. Without their sign, numbers
 * are ordered as their bits are: the upper 16 are counted, then the lower 15 of those at the limit.
 *
 * @param counts 2¹⁶ elements to work in; overwritten.
 */
function keepLargest(T: Float32Array, zeros: number, kept: Uint8Array, counts: Uint32Array): void {
  if (zeros === 0) {
    kept.fill(1);
    return;
  }
  const bits = new Int32Array(T.buffer, T.byteOffset, T.length);
  counts.fill(0);
  for (let i = 0; i < bits.length; i++) counts[(bits[i]! & MAGNITUDE) >>> 15]!++;
  const upper = ranked(counts, zeros);
  counts.fill(0);
  for (let i = 0; i < bits.length; i++) {
    if ((bits[i]! & MAGNITUDE) >>> 15 === upper.bin) counts[bits[i]! & 0x7fff]!++;
  }
  const lower = ranked(counts, upper.rank);
  const limit = upper.bin * 2 ** 15 + lower.bin;
  // The sign of the difference: a branch here would be guessed wrong every other time.
  for (let i = 0; i < bits.length; i++) kept[i] = (limit - (bits[i]! & MAGNITUDE)) >>> 31;
  for (let i = bits.length - 1, spared = counts[lower.bin]! - lower.rank; spared > 0; i--) {
    if ((bits[i]! & MAGNITUDE) !== limit) continue;
    kept[i] = 1;
    spared--;
  }
}

/** All bits of a single-precision number but its sign. */
const MAGNITUDE = 0x7fffffff;

/** The bin that holds the `rank`-th element (from 1), and its rank in there. */
function ranked(counts: Uint32Array, rank: number): { bin: number; rank: number } {
  let bin = 0;
  let left = rank;
  while (left > counts[bin]!) left -= counts[bin++]!;
  return { bin, rank: left };
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
