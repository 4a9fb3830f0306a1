/** When a training counts as diverged. */
export interface DivergenceGuard {
  /**
   * A loss above mean + tolerance · max(spread, |mean|) of those before is a fault; above 0.
   * A batch twice as hard as the others is none, a network that forgot its classes is one.
   */
  readonly tolerance: number;
  /** Returns to the last good state, each at half the rate, after which training gives up. */
  readonly maxSetbacks: number;
}

/** The running level of a loss. */
export interface LossLevel {
  /** Losses followed so far. */
  readonly count: number;
  readonly mean: number;
  /** Mean absolute distance from the mean. */
  readonly spread: number;
}

/** The level before any loss. */
export const NO_LEVEL: LossLevel = { count: 0, mean: 0, spread: 0 };

/** Losses over which the level is taken, and those before which nothing is judged by it. */
const MEMORY = 50;
const LEAST = 10;

/** The level with one more loss: the mean of all at first, of about the last 50 later on. */
export function followLoss({ count, mean, spread }: LossLevel, loss: number): LossLevel {
  const fresh = 1 / Math.min(count + 1, MEMORY);
  const distance = count === 0 ? 0 : Math.abs(loss - mean);
  return {
    count: count + 1,
    mean: mean + fresh * (loss - mean),
    spread: spread + fresh * (distance - spread),
  };
}

/** Why a loss or the gradient behind it is a fault; null where it is none. */
export function faultOf(
  level: LossLevel,
  { tolerance }: DivergenceGuard,
  { loss, gradientNorm }: { readonly loss: number; readonly gradientNorm: number },
): string | null {
  if (!Number.isFinite(loss)) return `the loss is ${loss}`;
  if (!Number.isFinite(gradientNorm)) return "the gradient is not finite";
  const limit = level.mean + tolerance * Math.max(level.spread, Math.abs(level.mean));
  if (level.count < LEAST || loss <= limit) return null;
  return `a loss of ${loss.toPrecision(3)} where about ${level.mean.toPrecision(3)} is usual`;
}
