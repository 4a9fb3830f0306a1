/** Bins over a range that is at most twice as wide as the values on each side. */
const BINS = 4096;

/**
 * How often each value of a tensor occurs, streamed: the range doubles toward where a value does
 * not fit, which joins pairs of bins. Smallest and largest value are exact.
 */
export class ActivationHistogram {
  /** Smallest and largest value seen; 0 where there was none. */
  min = 0;
  max = 0;
  readonly counts = new Float64Array(BINS);
  #count = 0;
  #from = 0;
  #width = 0;

  /** Values counted. */
  get count(): number {
    return this.#count;
  }

  /** Lower end of the first bin, and the width of every bin. */
  get bins(): { readonly from: number; readonly width: number } {
    return { from: this.#from, width: this.#width / BINS };
  }

  /**
   * Adds values.
   *
   * @param every counts only one value in so many; the extremes come from all. Default 1.
   * @throws {RangeError} if a value is not finite.
   */
  add(values: Float32Array, every = 1): void {
    if (values.length === 0) return;
    let min = values[0]!;
    let max = min;
    let sum = 0;
    for (let i = 0; i < values.length; i++) {
      const value = values[i]!;
      if (value < min) min = value;
      else if (value > max) max = value;
      sum += value - value;
    }
    if (sum !== 0) throw new RangeError("expected finite values, got NaN or infinity");
    this.#cover(min, max);
    const { from, width } = this.bins;
    for (let i = 0; i < values.length; i += every) {
      const bin = Math.floor((values[i]! - from) / width);
      this.counts[Math.max(0, Math.min(BINS - 1, bin))]!++;
      this.#count++;
    }
  }

  #cover(min: number, max: number): void {
    if (this.#count === 0) {
      this.min = min;
      this.max = max;
      this.#from = min;
      this.#width = Math.max(max - min, 1e-6 * Math.max(Math.abs(min), Math.abs(max)), 1e-30);
      return;
    }
    this.min = Math.min(this.min, min);
    this.max = Math.max(this.max, max);
    while (max > this.#from + this.#width) this.#double(0);
    while (min < this.#from) {
      this.#double(BINS / 2);
      this.#from -= this.#width / 2;
    }
  }

  /** Joins bins 2b and 2b + 1 into bin `first` + b of a range twice as wide. */
  #double(first: number): void {
    const joined = new Float64Array(BINS);
    for (let b = 0; b < BINS / 2; b++) {
      joined[first + b] = this.counts[2 * b]! + this.counts[2 * b + 1]!;
    }
    this.counts.set(joined);
    this.#width *= 2;
  }
}

/** Integers that activations become: unsigned with a zero point, or signed around 0. */
export type ActivationType = "u8" | "s8";

/** A way to quantize one tensor: x ≈ scale·(q − zeroPoint). */
export interface ActivationRange {
  readonly method: "min-max" | `percentile ${number}` | "mse";
  /** Positive, exact in single precision. */
  readonly scale: number;
  readonly zeroPoint: number;
  /** E[(x − x̂)²]/E[x²] over the histogram. */
  readonly error: number;
}

const PERCENTILES = [99.9, 99.99, 99.999];
/** Shares of a range tried on each side, and rounds around the best. */
const STEPS = 12;
const ROUNDS = 3;

/**
 * Ranges to choose from for one tensor: min-max, three percentiles (that share of values lies
 * within, what falls out is halved over both sides) and the one of least squared error, found by a
 * search over both ends. The last has the least `error`; which one serves the network best is for
 * the caller to measure.
 *
 * @returns from the least error up, without repetitions.
 */
export function activationRanges(
  histogram: ActivationHistogram,
  type: ActivationType,
): ActivationRange[] {
  const { min, max } = histogram;
  const judge = (method: ActivationRange["method"], from: number, to: number) => {
    const grid = gridOf(from, to, type);
    return { method, ...grid, error: relativeError(histogram, grid, type) };
  };
  const ranges: ActivationRange[] = [judge("min-max", min, max)];
  for (const percentile of PERCENTILES) {
    const out = (1 - percentile / 100) / 2;
    ranges.push(
      judge(`percentile ${percentile}`, quantile(histogram, out), quantile(histogram, 1 - out)),
    );
  }
  const best = leastSquares(histogram, type);
  ranges.push(judge("mse", best.from, best.to));
  ranges.sort((a, b) => a.error - b.error);
  return ranges.filter(
    ({ scale, zeroPoint }, i) =>
      !ranges.slice(0, i).some((r) => r.scale === scale && r.zeroPoint === zeroPoint),
  );
}

/**
 * The range of least squared error that begins at −offset exactly, for a value of which nothing
 * below matters: scale · zeroPoint = offset.
 *
 * @param offset positive.
 */
export function gateRange(
  histogram: ActivationHistogram,
  offset: number,
): { readonly scale: number; readonly zeroPoint: number } {
  if (!(offset > 0)) throw new RangeError(`offset: expected a positive number, got ${offset}`);
  const top = Math.max(0, histogram.max);
  let best = { scale: 1, zeroPoint: 0 };
  let least = Number.POSITIVE_INFINITY;
  for (let share = 1; share > 0.1; share -= 0.02) {
    const wanted = Math.round((255 * offset) / (offset + share * top));
    const zeroPoint = Math.max(1, Math.min(254, wanted));
    const grid = { scale: Math.fround(offset / zeroPoint), zeroPoint };
    const error = relativeError(histogram, grid, "u8", -offset);
    if (error >= least) continue;
    [best, least] = [grid, error];
  }
  return best;
}

/** The grid over [from, to], stretched to hold 0. */
function gridOf(from: number, to: number, type: ActivationType) {
  const low = Math.min(0, from);
  const high = Math.max(0, to);
  const exact = type === "u8" ? (high - low) / 255 : Math.max(-low, high) / 127;
  const scale = Math.fround(exact > 0 ? Math.max(exact, 2 ** -126) : 1);
  const zeroPoint = type === "u8" ? Math.max(0, Math.min(255, Math.round(-low / scale))) : 0;
  return { scale, zeroPoint };
}

/**
 * E[(x − x̂)²]/E[x²] with every value at the middle of its bin, or at the extremes.
 *
 * @param above only of values above it.
 */
function relativeError(
  histogram: ActivationHistogram,
  { scale, zeroPoint }: { readonly scale: number; readonly zeroPoint: number },
  type: ActivationType,
  above = Number.NEGATIVE_INFINITY,
): number {
  const { counts, min, max } = histogram;
  const { from, width } = histogram.bins;
  const [lowest, highest] = type === "u8" ? [0, 255] : [-128, 127];
  let error = 0;
  let energy = 0;
  for (let b = 0; b < BINS; b++) {
    const count = counts[b]!;
    if (count === 0) continue;
    const x = Math.max(min, Math.min(max, from + (b + 0.5) * width));
    if (x < above) continue;
    const q = Math.max(lowest, Math.min(highest, Math.round(x / scale) + zeroPoint));
    error += count * (x - scale * (q - zeroPoint)) ** 2;
    energy += count * x * x;
  }
  return energy > 0 ? error / energy : 0;
}

/** The value below which a share of all values lies. */
function quantile(histogram: ActivationHistogram, share: number): number {
  const { counts, min, max, count } = histogram;
  const { from, width } = histogram.bins;
  let left = share * count;
  for (let b = 0; b < BINS; b++) {
    if (left <= counts[b]! && counts[b]! > 0) {
      const x = from + width * (b + left / counts[b]!);
      return Math.max(min, Math.min(max, x));
    }
    left -= counts[b]!;
  }
  return max;
}

/** Both ends of the range of least squared error: a grid of shares, narrowed three times. */
function leastSquares(histogram: ActivationHistogram, type: ActivationType) {
  let best = { low: 1, high: 1, error: Number.POSITIVE_INFINITY };
  const low = Math.min(0, histogram.min);
  const high = Math.max(0, histogram.max);
  let reach = 0.5;
  for (let round = 0; round < ROUNDS; round++, reach /= STEPS / 2) {
    const center = best.error === Number.POSITIVE_INFINITY ? { low: 0.5, high: 0.5 } : best;
    for (const lowShare of low < 0 ? sharesAround(center.low, reach) : [1]) {
      for (const highShare of high > 0 ? sharesAround(center.high, reach) : [1]) {
        const grid = gridOf(lowShare * low, highShare * high, type);
        const error = relativeError(histogram, grid, type);
        if (error < best.error) best = { low: lowShare, high: highShare, error };
      }
    }
  }
  return { from: best.low * low, to: best.high * high };
}

/** From the widest down, so that the widest wins among equals. */
function sharesAround(center: number, reach: number): number[] {
  const from = Math.max(1 / 256, center - reach);
  const to = Math.min(1, center + reach);
  return Array.from({ length: STEPS + 1 }, (_, i) => to - ((to - from) * i) / STEPS);
}
