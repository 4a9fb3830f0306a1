import { type Gemm, multiplyPrepared, prepareOperand } from "../math/gemm.ts";
import { pause } from "../math/pause.ts";
import { checkLength, subtractProduct } from "../math/products.ts";
import {
  checkPattern,
  groupEnds,
  type Pattern,
  pruneSmallest,
  zerosInGroup,
  zerosOf,
} from "./pattern.ts";

/** A layer to prune. */
export interface SparseGptProblem {
  /** W, `rows × cols`, row-major; overwritten by the pruned weights. */
  readonly weights: Float64Array;
  readonly rows: number;
  readonly cols: number;
  /** Upper Cholesky factor of (H + λI)⁻¹, `cols × cols`, row-major. */
  readonly U: Float64Array;
  /** What to prune, or a finished mask to apply: 1 keeps a weight, `rows × cols`. */
  readonly pattern: Pattern | { readonly kind: "mask"; readonly kept: Uint8Array };
  /** Columns decided on at once. Default 128. */
  readonly blockSize?: number;
  /** 1 for an input without effect: its weights go first and cost nothing. */
  readonly dead?: Uint8Array;
  /** N:M groups begin anew at every multiple of this. Default `cols`. */
  readonly span?: number;
  readonly gemm?: Gemm | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** What {@link sparseGpt} did. */
export interface SparseGptResult {
  /** 1 where a weight stayed, `rows × cols`. */
  readonly kept: Uint8Array;
  /** ½·Σ e² with e = w/U_jj: the increase of ½tr(δ(H+λI)δᵀ) caused by all removals. */
  readonly loss: number;
}

/**
 * Prunes one layer by SparseGPT (FastOBC): left to right, spreading the error of each removed
 * weight over the later columns. Frantar & Alistarh 2023, arXiv:2301.00774, Algorithm 1.
 *
 * Unstructured: exactly ⌊sparsity·rows·width⌋ zeros in every block of columns, chosen across rows
 * by w²/U_jj² when the block is reached (the released code takes one more). N:M: N zeros in M
 * neighbors, ⌊N·r/M⌋ in the r columns that remain where M does not divide; blocks are stretched
 * to the end of a group. Dead inputs go first, so they are among the zeros; the released code
 * sets all of them to 0, also beyond the quota.
 *
 * @throws {RangeError} if a size or the pattern does not fit, or U has a non-positive diagonal.
 * @throws the signal's reason, when aborted between two blocks.
 */
export async function sparseGpt(problem: SparseGptProblem): Promise<SparseGptResult> {
  const { weights, rows, cols, U, pattern, gemm, signal } = problem;
  checkProblem(problem);
  const kept = pattern.kind === "mask" ? pattern.kept.slice() : new Uint8Array(rows * cols).fill(1);
  let loss = 0;
  for (const block of blocksOf(problem)) {
    await pause(signal);
    if (pattern.kind === "unstructured") chooseInBlock(problem, block, pattern.sparsity, kept);
    const width = block.end - block.start;
    const errors = new Float64Array(rows * width);
    for (let r = 0; r < rows; r++) {
      if (pattern.kind === "n:m") loss += pruneRowByGroups(problem, block, r, kept, errors);
      else loss += pruneRow(problem, block, r, block.start, block.end, kept, errors);
    }
    await updateLater({ weights, rows, cols, U, errors, ...block }, gemm);
  }
  return { kept, loss };
}

interface Block {
  readonly start: number;
  readonly end: number;
  /** Ends of the N:M groups in it; none for other patterns. */
  readonly ends: readonly number[];
}

function blocksOf(problem: SparseGptProblem): Block[] {
  const { cols, pattern, blockSize = 128, span = cols } = problem;
  const ends =
    pattern.kind === "n:m"
      ? groupEnds(pattern.m, cols, span)
      : Array.from({ length: Math.ceil(cols / blockSize) }, (_, b) =>
          Math.min(cols, (b + 1) * blockSize),
        );
  const blocks: Block[] = [];
  let start = 0;
  let inside: number[] = [];
  for (const end of ends) {
    inside.push(end);
    if (end - start < blockSize && end < cols) continue;
    blocks.push({ start, end, ends: inside });
    start = end;
    inside = [];
  }
  return blocks;
}

/** The adaptive mask: the smallest scores of a block, across all its rows. */
function chooseInBlock(
  problem: SparseGptProblem,
  block: Block,
  sparsity: number,
  kept: Uint8Array,
): void {
  const { weights, rows, cols, U, dead } = problem;
  const width = block.end - block.start;
  const scores = new Float64Array(rows * width);
  for (let r = 0; r < rows; r++) {
    for (let j = block.start; j < block.end; j++) {
      const score = dead?.[j] ? 0 : (weights[r * cols + j]! / U[j * (cols + 1)]!) ** 2;
      scores[r * width + j - block.start] = score;
    }
  }
  const chosen = new Uint8Array(rows * width).fill(1);
  pruneSmallest(scores, zerosOf(sparsity, rows * width), chosen);
  for (let r = 0; r < rows; r++) {
    kept.set(chosen.subarray(r * width, (r + 1) * width), r * cols + block.start);
  }
}

function pruneRowByGroups(
  problem: SparseGptProblem,
  block: Block,
  r: number,
  kept: Uint8Array,
  errors: Float64Array,
): number {
  const { weights, cols, U, dead, pattern } = problem;
  if (pattern.kind !== "n:m") throw new TypeError(`expected an N:M pattern, got ${pattern.kind}`);
  let loss = 0;
  let start = block.start;
  for (const end of block.ends) {
    const at = r * cols + start;
    const scores = new Float64Array(end - start);
    for (let j = start; j < end; j++) {
      scores[j - start] = dead?.[j] ? 0 : (weights[r * cols + j]! / U[j * (cols + 1)]!) ** 2;
    }
    const zeros = zerosInGroup(pattern.n, pattern.m, end - start);
    pruneSmallest(scores, zeros, kept.subarray(at, at + end - start));
    loss += pruneRow(problem, block, r, start, end, kept, errors);
    start = end;
  }
  return loss;
}

/** Removes the marked weights of one row in [from, to), updating the row to the block's end. */
function pruneRow(
  problem: SparseGptProblem,
  block: Block,
  r: number,
  from: number,
  to: number,
  kept: Uint8Array,
  errors: Float64Array,
): number {
  const { weights, cols, U, dead } = problem;
  const row = r * cols;
  const width = block.end - block.start;
  let loss = 0;
  for (let i = from; i < to; i++) {
    if (kept[row + i] === 1) continue;
    const e = weights[row + i]! / U[i * (cols + 1)]!;
    weights[row + i] = 0;
    if (dead?.[i] || e === 0) continue;
    errors[r * width + i - block.start] = e;
    loss += 0.5 * e * e;
    const factors = i * cols;
    for (let j = i + 1; j < block.end; j++) weights[row + j]! -= e * U[factors + j]!;
  }
  return loss;
}

interface LaterUpdate extends Block {
  readonly weights: Float64Array;
  readonly rows: number;
  readonly cols: number;
  readonly U: Float64Array;
  /** Errors of the block, `rows × (end − start)`. */
  readonly errors: Float64Array;
}

/** W[:, end…] −= errors · U[start…end, end…]: the lazy batch update. */
async function updateLater(update: LaterUpdate, gemm?: Gemm): Promise<void> {
  const { weights, rows, cols, U, errors, start, end } = update;
  const width = end - start;
  const later = cols - end;
  if (later === 0) return;
  const Ut = new Float64Array(later * width);
  for (let i = 0; i < width; i++) {
    for (let j = 0; j < later; j++) Ut[j * width + i] = U[(start + i) * cols + end + j]!;
  }
  const operand = prepareOperand(Ut, later, width, rows, gemm);
  if (operand.data instanceof Float64Array) {
    const target = { data: weights, offset: end, stride: cols };
    const left = { data: errors, offset: 0, stride: width };
    const right = { data: Ut, offset: 0, stride: width };
    subtractProduct(target, left, right, rows, later, width);
    return;
  }
  const change = await multiplyPrepared(errors, rows, operand, gemm);
  for (let r = 0; r < rows; r++) {
    for (let j = 0; j < later; j++) weights[r * cols + end + j]! -= change[r * later + j]!;
  }
}

function checkProblem(problem: SparseGptProblem): void {
  const { weights, rows, cols, U, pattern, dead, blockSize = 128, span = cols } = problem;
  checkLength("weights", weights, rows * cols);
  checkLength("U", U, cols * cols);
  if (pattern.kind === "mask") checkLength("kept", pattern.kept, rows * cols);
  else checkPattern(pattern);
  if (dead) checkLength("dead", dead, cols);
  for (const [name, value] of Object.entries({ blockSize, span })) {
    if (!(Number.isInteger(value) && value >= 1)) {
      throw new RangeError(`${name}: expected a positive integer, got ${value}`);
    }
  }
  for (let j = 0; j < cols; j++) {
    const diagonal = U[j * (cols + 1)]!;
    if (!(diagonal > 0)) {
      throw new RangeError(`U: expected a positive diagonal, got ${diagonal} in column ${j}`);
    }
  }
}
