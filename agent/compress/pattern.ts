/** Which weights may stay. */
export type Pattern =
  | {
      readonly kind: "unstructured";
      /** Share of zeros, in [0, 1]. */
      readonly sparsity: number;
    }
  | {
      /** N zeros in every M neighboring inputs of a row. */
      readonly kind: "n:m";
      readonly n: number;
      readonly m: number;
    }
  | {
      /** Neighboring inputs of a row that are zero together, or none of them. */
      readonly kind: "block";
      /** Inputs in a block, such as 4. */
      readonly size: number;
      /** Share of zeros, in [0, 1]. */
      readonly sparsity: number;
    };

/** @throws {RangeError} where a share, N or M makes no sense. */
export function checkPattern(pattern: Pattern): void {
  if (pattern.kind !== "n:m") {
    if (!(pattern.sparsity >= 0 && pattern.sparsity <= 1)) {
      throw new RangeError(`sparsity: expected a share in [0, 1], got ${pattern.sparsity}`);
    }
    if (pattern.kind === "unstructured") return;
    if (Number.isInteger(pattern.size) && pattern.size >= 1) return;
    throw new RangeError(`size: expected a positive whole number, got ${pattern.size}`);
  }
  const { n, m } = pattern;
  if (Number.isInteger(n) && Number.isInteger(m) && n >= 0 && m >= 1 && n <= m) return;
  throw new RangeError(`pattern: expected whole numbers 0 ≤ N ≤ M, M ≥ 1, got ${n}:${m}`);
}

/** What reports call a pattern: `50 %`, `2:4` or `50 % in blocks of 4`. */
export function patternName(pattern: Pattern): string {
  if (pattern.kind === "n:m") return `${pattern.n}:${pattern.m}`;
  const share = `${Number((100 * pattern.sparsity).toFixed(1))} %`;
  return pattern.kind === "block" ? `${share} in blocks of ${pattern.size}` : share;
}

/** ⌊sparsity · count⌋, safe against 0.29 · 100 = 28.999…. */
export function zerosOf(sparsity: number, count: number): number {
  return Math.min(count, Math.floor(sparsity * count + 1e-9 * count));
}

/**
 * Ends of the N:M groups over `cols` columns, ascending. Groups begin anew at every multiple of
 * `span` (the input channels of one kernel tap), so none reaches over two taps; where M does not
 * divide the span, its last group is shorter.
 */
export function groupEnds(m: number, cols: number, span: number): number[] {
  const ends: number[] = [];
  for (let start = 0; start < cols; start += span) {
    const stop = Math.min(cols, start + span);
    for (let at = start; at < stop; at += m) ends.push(Math.min(stop, at + m));
  }
  return ends;
}

/**
 * Zeros of a group of `width` ≤ M columns: N in a whole one, ⌊N·width/M⌋ in the shorter one at the
 * end. That is never fewer than a machine demands that fills the group up with zeros.
 */
export function zerosInGroup(n: number, m: number, width: number): number {
  return Math.floor((n * width) / m);
}

/**
 * Marks the `zeros` smallest scores as pruned, the earlier one of equals.
 *
 * @param kept 1 where a weight stays; entries of pruned ones are set to 0 at the same index.
 */
export function pruneSmallest(scores: Float64Array, zeros: number, kept: Uint8Array): void {
  if (zeros <= 0) return;
  const sorted = scores.slice().sort();
  const limit = sorted[zeros - 1]!;
  let left = zeros;
  for (let i = 0; i < scores.length; i++) {
    if (scores[i]! < limit) {
      kept[i] = 0;
      left--;
    }
  }
  for (let i = 0; left > 0 && i < scores.length; i++) {
    if (scores[i] === limit) {
      kept[i] = 0;
      left--;
    }
  }
}
