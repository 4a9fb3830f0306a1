/** How long to wait between attempts. */
export interface Backoff {
  /** Upper bound of the first wait in milliseconds. */
  readonly baseMs: number;
  /** Upper bound of every wait in milliseconds. */
  readonly capMs: number;
}

/**
 * Exponential backoff with full jitter: uniform in [0, min(cap, base · 2^attempt)), so that a
 * fleet that lost its broker at one moment does not come back at one moment.
 * Brooker 2015, "Exponential Backoff And Jitter" (AWS Architecture Blog).
 *
 * @param attempt failures in a row before this wait, from 0.
 * @param random uniform in [0, 1).
 * @returns whole milliseconds.
 * @throws {RangeError} if `attempt` is no whole number from 0, or the bounds are not 0 < base ≤ cap.
 */
export function backoffMs(attempt: number, backoff: Backoff, random: () => number): number {
  const { baseMs, capMs } = backoff;
  if (!Number.isInteger(attempt) || attempt < 0) {
    throw new RangeError(`attempt: expected a whole number from 0, got ${attempt}`);
  }
  if (!(baseMs > 0 && baseMs <= capMs && Number.isFinite(capMs))) {
    throw new RangeError(`backoff: expected 0 < base <= cap, got ${baseMs} and ${capMs}`);
  }
  return Math.floor(random() * Math.min(capMs, baseMs * 2 ** attempt));
}
