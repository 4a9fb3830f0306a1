import { checkLength } from "../math/products.ts";
import {
  checkPattern,
  groupEnds,
  type Pattern,
  pruneSmallest,
  zerosInGroup,
  zerosOf,
} from "./pattern.ts";

/**
 * Mask that keeps the largest |w|: over the whole layer, or in each N:M group; of blocks, those of
 * the largest Σ w².
 *
 * @param weights `rows × cols`, row-major. @returns 1 where a weight stays, `rows × cols`.
 */
export function magnitudeMask(
  weights: Float64Array,
  rows: number,
  cols: number,
  pattern: Pattern,
): Uint8Array {
  checkLength("weights", weights, rows * cols);
  checkPattern(pattern);
  const kept = new Uint8Array(rows * cols).fill(1);
  const scores = weights.map(Math.abs);
  if (pattern.kind === "unstructured") {
    pruneSmallest(scores, zerosOf(pattern.sparsity, scores.length), kept);
  } else if (pattern.kind === "block") pruneBlocks(scores, rows, cols, pattern, kept);
  else pruneGroups(scores, rows, cols, pattern, kept);
  return kept;
}

/**
 * Mask that keeps the largest |w|·‖x‖₂ in each row, or in each N:M group; of blocks, those of the
 * largest Σ (w·‖x‖₂)² in the layer. Sun et al. 2023,
 * arXiv:2306.11695 (Wanda).
 *
 * @param H second moments, `cols × cols`: ‖x_j‖₂ is √H_jj up to a factor.
 */
export function wandaMask(
  weights: Float64Array,
  rows: number,
  cols: number,
  H: Float64Array,
  pattern: Pattern,
): Uint8Array {
  checkLength("weights", weights, rows * cols);
  checkLength("H", H, cols * cols);
  checkPattern(pattern);
  const kept = new Uint8Array(rows * cols).fill(1);
  const scores = weights.map((w, i) => {
    const j = i % cols;
    return Math.abs(w) * Math.sqrt(Math.max(0, H[j * (cols + 1)]!));
  });
  if (pattern.kind === "n:m") pruneGroups(scores, rows, cols, pattern, kept);
  else if (pattern.kind === "block") pruneBlocks(scores, rows, cols, pattern, kept);
  else {
    const zeros = zerosOf(pattern.sparsity, cols);
    for (let at = 0; at < scores.length; at += cols) {
      pruneSmallest(scores.subarray(at, at + cols), zeros, kept.subarray(at, at + cols));
    }
  }
  return kept;
}

function pruneGroups(
  scores: Float64Array,
  rows: number,
  cols: number,
  { n, m }: Extract<Pattern, { kind: "n:m" }>,
  kept: Uint8Array,
): void {
  const ends = groupEnds(m, cols, cols);
  for (let r = 0; r < rows; r++) {
    let start = r * cols;
    for (const groupEnd of ends) {
      const end = r * cols + groupEnd;
      const zeros = zerosInGroup(n, m, end - start);
      pruneSmallest(scores.subarray(start, end), zeros, kept.subarray(start, end));
      start = end;
    }
  }
}

/** Prunes the blocks of the least mean square score in the whole layer. */
function pruneBlocks(
  scores: Float64Array,
  rows: number,
  cols: number,
  { size, sparsity }: Extract<Pattern, { kind: "block" }>,
  kept: Uint8Array,
): void {
  const ends = groupEnds(size, cols, cols);
  const energy = new Float64Array(rows * ends.length);
  const eachBlock = (visit: (block: number, start: number, end: number) => void): void => {
    for (let block = 0; block < energy.length; block++) {
      const row = Math.floor(block / ends.length) * cols;
      const b = block % ends.length;
      visit(block, row + (ends[b - 1] ?? 0), row + ends[b]!);
    }
  };
  eachBlock((block, start, end) => {
    for (let i = start; i < end; i++) energy[block]! += scores[i]! ** 2 / (end - start);
  });
  const chosen = new Uint8Array(energy.length).fill(1);
  pruneSmallest(energy, zerosOf(sparsity, energy.length), chosen);
  eachBlock((block, start, end) => {
    if (chosen[block] === 0) kept.fill(0, start, end);
  });
}
