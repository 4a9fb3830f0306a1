/** One point of a run's loss curve. */
export interface TrainingPoint {
  /** Optimizer steps done so far, over all rounds. */
  readonly step: number;
  /** Seconds of training so far, over all lives of the run. */
  readonly seconds: number;
  readonly learningRate: number;
  /** Mean over the steps since the last point. */
  readonly loss: number;
  /** On training bursts that are not trained on; null where there are none. */
  readonly validationLoss: number | null;
  /** Share of their pictures that are right, in [0, 1]. */
  readonly validationAccuracy: number | null;
}
