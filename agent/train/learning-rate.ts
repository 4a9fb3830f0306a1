/** How the learning rate moves over a training. */
export interface LearningRateSchedule {
  /** Highest rate, reached at the end of the warm-up. */
  readonly peak: number;
  /** Share of the training over which the rate climbs linearly from 0, in [0, 1). */
  readonly warmUp: number;
  /** Rate at the end, as a share of `peak`, in [0, 1]. */
  readonly floor: number;
}

/** What a training may take; `Infinity` where it has no such limit. */
export interface TrainingLimits {
  readonly steps: number;
  readonly budgetMs: number;
}

/**
 * How far a training has come: the middle of the next step where steps count, so that neither the
 * first one nor the last one is lost on a rate of zero, and the time gone where that is further.
 *
 * @param step steps taken so far.
 * @returns 0 at the start; from 1 on the training is over.
 */
export function trainingProgress(
  step: number,
  elapsedMs: number,
  { steps, budgetMs }: TrainingLimits,
): number {
  if (!(steps > 0 && budgetMs > 0)) {
    throw new RangeError(`expected limits above 0, got ${steps} steps and ${budgetMs} ms`);
  }
  return step >= steps ? 1 : Math.max((step + 0.5) / steps, elapsedMs / budgetMs);
}

/**
 * Linear warm-up, then half a cosine down to the floor (Loshchilov & Hutter 2017,
 * arXiv:1608.03983, eq. 5, without restarts).
 *
 * @param progress share of the training that is done, ≥ 0; 1 and more give the floor.
 */
export function learningRate(schedule: LearningRateSchedule, progress: number): number {
  const { peak, warmUp, floor } = schedule;
  if (!(progress >= 0)) throw new RangeError(`progress: expected at least 0, got ${progress}`);
  if (progress < warmUp) return (peak * progress) / warmUp;
  const share = Math.min(1, (progress - warmUp) / (1 - warmUp));
  return peak * (floor + (1 - floor) * 0.5 * (1 + Math.cos(Math.PI * share)));
}

/** @throws {RangeError} where a schedule is out of its ranges. */
export function checkSchedule({ peak, warmUp, floor }: LearningRateSchedule): void {
  if (!(peak > 0 && Number.isFinite(peak))) {
    throw new RangeError(`peak: expected a rate above 0, got ${peak}`);
  }
  if (!(warmUp >= 0 && warmUp < 1)) {
    throw new RangeError(`warmUp: expected a share in [0, 1), got ${warmUp}`);
  }
  if (!(floor >= 0 && floor <= 1)) {
    throw new RangeError(`floor: expected a share in [0, 1], got ${floor}`);
  }
}
