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
export function pruneSmallest(
  scores: Float64Array | Float32Array,
  zeros: number,
  kept: Uint8Array,
): void {
  if (zeros <= 0) return;
  if (scores.length <= TINY) {
    pruneOneByOne(scores, zeros, kept);
    return;
  }
  const limit = scores.length < FEW ? scores.slice().sort()[zeros - 1]! : nth(scores, zeros);
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

/** Up to here taking the smallest one after the other costs less than a sorted copy. */
const TINY = 16;

function pruneOneByOne(scores: Float64Array | Float32Array, zeros: number, kept: Uint8Array): void {
  let taken = 0;
  for (let z = 0; z < zeros; z++) {
    let best = -1;
    for (let i = 0; i < scores.length; i++) {
      if ((taken & (1 << i)) === 0 && (best < 0 || scores[i]! < scores[best]!)) best = i;
    }
    taken |= 1 << best;
    kept[best] = 0;
  }
}

/** Up to here sorting costs less than counting. */
const FEW = 4096;

/**
 * The `rank`-th smallest (from 1). Numbers that are not negative are ordered as their bits are, so
 * counting the leading 16 bits behind the sign leaves only one bin to sort.
 */
function nth(scores: Float64Array | Float32Array, rank: number): number {
  const words = new Uint32Array(scores.buffer, scores.byteOffset, scores.byteLength / 4);
  const stride = scores.BYTES_PER_ELEMENT / 4;
  const bins = new Uint32Array(1 << 17);
  // Little-endian: the sign and the exponent lie in the last word of each number.
  for (let at = stride - 1; at < words.length; at += stride) bins[words[at]! >>> 15]!++;
  if (bins.subarray(1 << 16).some((count) => count > 0)) return scores.slice().sort()[rank - 1]!;
  let before = 0;
  let bin = 0;
  while (before + bins[bin]! < rank) before += bins[bin++]!;
  const inBin = new Float64Array(bins[bin]!);
  let found = 0;
  for (let i = 0; i < scores.length; i++) {
    if (words[stride * i + stride - 1]! >>> 15 === bin) inBin[found++] = scores[i]!;
  }
  return inBin.sort()[rank - before - 1]!;
}
