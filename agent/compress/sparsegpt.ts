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
import { decode, encode, type WeightQuantizer } from "./quantizer.ts";

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
  /** Rounds what is not pruned to its grid, in the same sweep (GPTQ). */
  readonly quantizer?: WeightQuantizer;
  /** Columns decided on at once. Default 128. */
  readonly blockSize?: number;
  /** 1 for an input without effect: its weights go first and cost nothing. */
  readonly dead?: Uint8Array;
  /** N:M groups and blocks begin anew at every multiple of this. Default `cols`. */
  readonly span?: number;
  readonly gemm?: Gemm | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** What {@link sparseGpt} did. */
export interface SparseGptResult {
  /** 1 where a weight stayed, `rows × cols`. */
  readonly kept: Uint8Array;
  /** ½·Σ e² with e = (w − q)/U_jj: the increase of ½tr(δ(H+λI)δᵀ) caused by all steps. */
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
 * With a quantizer the sweep is GPTQ (Frantar et al. 2022, arXiv:2210.17323, Algorithm 1), and
 * both at once with both. What counts against pruning a weight is then what it costs beyond
 * rounding it, w² − (w − q)².
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
    if (pattern.kind === "block") chooseGroups(problem, block, pattern.sparsity, kept);
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
  /** Ends of the groups of neighbors in it, or only its own end where there are none. */
  readonly ends: readonly number[];
}

function blocksOf(problem: SparseGptProblem): Block[] {
  const { cols, pattern, blockSize = 128, span = cols } = problem;
  const size = neighborsOf(pattern);
  const ends = size === undefined ? groupEnds(blockSize, cols, cols) : groupEnds(size, cols, span);
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

/** Neighbors that are decided on together; undefined where each weight is alone. */
function neighborsOf(pattern: SparseGptProblem["pattern"]): number | undefined {
  if (pattern.kind === "n:m") return pattern.m;
  return pattern.kind === "block" ? pattern.size : undefined;
}

/** The adaptive mask: the smallest scores of a block, across all its rows. */
function chooseInBlock(
  problem: SparseGptProblem,
  block: Block,
  sparsity: number,
  kept: Uint8Array,
): void {
  const { rows, cols } = problem;
  const width = block.end - block.start;
  const scores = new Float64Array(rows * width);
  for (let r = 0; r < rows; r++) {
    for (let j = block.start; j < block.end; j++) {
      scores[r * width + j - block.start] = scoreOf(problem, r, j);
    }
  }
  const chosen = new Uint8Array(rows * width).fill(1);
  pruneSmallest(scores, zerosOf(sparsity, rows * width), chosen);
  for (let r = 0; r < rows; r++) {
    kept.set(chosen.subarray(r * width, (r + 1) * width), r * cols + block.start);
  }
}

/**
 * Whole groups of neighbors, those that cost least per weight across all rows of the block. What
 * a group costs is Σ e² of its weights removed one after the other, which is
 * w_B·([H⁻¹]_BB)⁻¹·w_Bᵀ among the columns not yet passed.
 */
function chooseGroups(
  problem: SparseGptProblem,
  block: Block,
  sparsity: number,
  kept: Uint8Array,
): void {
  const { rows, cols } = problem;
  const { ends, start: first } = block;
  const scores = new Float64Array(rows * ends.length);
  for (let r = 0; r < rows; r++) {
    let start = first;
    for (const [b, end] of ends.entries()) {
      scores[r * ends.length + b] = groupScore(problem, r, start, end) / (end - start);
      start = end;
    }
  }
  const chosen = new Uint8Array(scores.length).fill(1);
  pruneSmallest(scores, zerosOf(sparsity, scores.length), chosen);
  for (let r = 0; r < rows; r++) {
    let start = first;
    for (const [b, end] of ends.entries()) {
      if (chosen[r * ends.length + b] === 0) kept.fill(0, r * cols + start, r * cols + end);
      start = end;
    }
  }
}

/** Twice what removing the columns [start, end) of one row adds to the loss. */
function groupScore(problem: SparseGptProblem, r: number, start: number, end: number): number {
  const { weights, cols, U, dead } = problem;
  const w = weights.slice(r * cols + start, r * cols + end);
  let score = 0;
  for (let i = start; i < end; i++) {
    if (dead?.[i]) continue;
    const e = w[i - start]! / U[i * (cols + 1)]!;
    score += e * e;
    for (let j = i + 1; j < end; j++) w[j - start]! -= e * U[i * cols + j]!;
  }
  return score;
}

function pruneRowByGroups(
  problem: SparseGptProblem,
  block: Block,
  r: number,
  kept: Uint8Array,
  errors: Float64Array,
): number {
  const { cols, pattern } = problem;
  if (pattern.kind !== "n:m") throw new TypeError(`expected an N:M pattern, got ${pattern.kind}`);
  let loss = 0;
  let start = block.start;
  for (const end of block.ends) {
    const at = r * cols + start;
    const scores = new Float64Array(end - start);
    for (let j = start; j < end; j++) scores[j - start] = scoreOf(problem, r, j);
    const zeros = zerosInGroup(pattern.n, pattern.m, end - start);
    pruneSmallest(scores, zeros, kept.subarray(at, at + end - start));
    loss += pruneRow(problem, block, r, start, end, kept, errors);
    start = end;
  }
  return loss;
}

/** What removing a weight adds to twice the loss, beyond what rounding it would. */
function scoreOf({ weights, cols, U, dead, quantizer }: SparseGptProblem, r: number, j: number) {
  if (dead?.[j]) return 0;
  const w = weights[r * cols + j]!;
  const rounding = quantizer ? w - decode(quantizer, r, encode(quantizer, r, w, j), j) : 0;
  return (w * w - rounding * rounding) / U[j * (cols + 1)]! ** 2;
}

/**
 * Removes the marked weights of one row in [from, to) and rounds the others, where there is a
 * quantizer, updating the row to the block's end.
 */
function pruneRow(
  problem: SparseGptProblem,
  block: Block,
  r: number,
  from: number,
  to: number,
  kept: Uint8Array,
  errors: Float64Array,
): number {
  const { weights, cols, U, dead, quantizer } = problem;
  const row = r * cols;
  const width = block.end - block.start;
  let loss = 0;
  for (let i = from; i < to; i++) {
    if (kept[row + i] === 1 && !quantizer) continue;
    const w = weights[row + i]!;
    const rounds = quantizer && kept[row + i] === 1;
    const q = rounds ? decode(quantizer, r, encode(quantizer, r, w, i), i) : 0;
    const e = (w - q) / U[i * (cols + 1)]!;
    weights[row + i] = q;
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
  if (!operand.large) {
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
