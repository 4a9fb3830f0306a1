import { type DivergenceGuard, type LossLevel, NO_LEVEL } from "./divergence.ts";
import { checkSchedule, type LearningRateSchedule, type TrainingLimits } from "./learning-rate.ts";
import {
  checkOptimizer,
  checkParameter,
  isFrozen,
  type Moments,
  type Optimizer,
  type TrainedParameter,
  zeroMoments,
} from "./optimizer.ts";

/** When a training ends before its limits. */
interface EarlyStopping {
  /** Judgements in a row without a gain after which training draws to its end; at least 1. */
  readonly patience: number;
  /**
   * Steps that are taken then, while the rate falls as it would have over all that were left, as a
   * share of the steps before: what does not gain at a high rate may at a low one. 0: none.
   */
  readonly coolDown: number;
  /** By how much a score must exceed the last one that counted as a gain, at least 0. */
  readonly leastGain: number;
}

/** How a network is trained. A training is only taken up again with the very same options. */
export interface TrainingOptions {
  /** Of all random numbers drawn for the training (see `randomAt`); any safe integer. */
  readonly seed: number;
  readonly optimizer: Optimizer;
  readonly schedule: LearningRateSchedule;
  readonly limits: TrainingLimits;
  /** Longest gradient over all parameters together; longer ones are scaled down to it. */
  readonly clipNorm: number;
  /** Memory of the moving average of the weights, in [0, 1); null: the weights themselves count. */
  readonly averageDecay: number | null;
  readonly guard: DivergenceGuard;
  readonly earlyStopping: EarlyStopping;
}

/** The best weights that were judged. */
export interface BestWeights {
  readonly score: number;
  /** Steps taken before. */
  readonly step: number;
  /** One array a parameter; of a frozen one, its initial values. */
  readonly weights: readonly Float32Array[];
}

/** Where a training stands, in numbers. */
export interface TrainingCounters {
  /** Steps tried, those included that ended in a setback. */
  readonly step: number;
  /** Updates behind the weights: those before a setback do not count. */
  readonly updates: number;
  /** Returns to the last good state so far; each halved the learning rate. */
  readonly setbacks: number;
  /** Time spent up to the last step, as the caller told it. */
  readonly elapsedMs: number;
  readonly level: LossLevel;
  /** Judgements since the last gain. */
  readonly withoutGain: number;
  /** The last score that was a gain. */
  readonly gainedScore: number | null;
  /** Where training began to draw to its end, and how far it was then; null: it has not. */
  readonly coolingFrom: { readonly step: number; readonly progress: number } | null;
}

/** Gradients of the samples of one step, added up. */
export interface GatheredGradients {
  /** Σ samples·loss. */
  readonly loss: number;
  readonly samples: number;
  /** Samples of the first addend: the sum counts as if it were of that many. */
  readonly unit: number;
  /** One array a parameter; null for a frozen one. */
  readonly gradients: readonly (Float32Array | null)[];
}

/** A network in training. Changed in place by the functions of `steps.ts` and `checkpoint.ts`. */
export interface Training {
  readonly parameters: readonly TrainedParameter[];
  readonly options: TrainingOptions;
  /** What a step computes with, one array a parameter; of a frozen one, its initial values. */
  readonly weights: readonly Float32Array[];
  /** Moving averages of the weights, in the same form; null without averaging. */
  readonly averages: readonly Float32Array[] | null;
  readonly moments: readonly Moments[];
  counters: TrainingCounters;
  best: BestWeights | null;
  gathered: GatheredGradients | null;
  /** The last checkpoint, to which a setback returns; null: the beginning. */
  checkpoint: Uint8Array | null;
}

/**
 * A training at its beginning. It keeps copies: the initial values stay as they are.
 *
 * @throws {RangeError} where an option or a parameter is out of its range.
 */
export function startTraining(
  parameters: readonly TrainedParameter[],
  options: TrainingOptions,
): Training {
  checkOptions(options);
  for (const parameter of parameters) checkParameter(parameter);
  const names = new Set(parameters.map(({ name }) => name));
  if (names.size < parameters.length) throw new RangeError("expected parameters of unlike names");
  const weights = parameters.map(ownCopy);
  return {
    parameters,
    options,
    weights,
    averages: options.averageDecay === null ? null : parameters.map(ownCopy),
    moments: parameters.map((parameter) => zeroMoments(options.optimizer, parameter)),
    counters: {
      step: 0,
      updates: 0,
      setbacks: 0,
      elapsedMs: 0,
      level: NO_LEVEL,
      withoutGain: 0,
      gainedScore: null,
      coolingFrom: null,
    },
    best: null,
    gathered: null,
    checkpoint: null,
  };
}

/** The initial values of a parameter, copied unless it is frozen. */
export function ownCopy(parameter: TrainedParameter): Float32Array {
  return isFrozen(parameter) ? parameter.initial : parameter.initial.slice();
}

/** The weights to judge and to keep: the averages where there are any. Not to be changed. */
export function judgedWeights({ averages, weights }: Training): readonly Float32Array[] {
  return averages ?? weights;
}

function checkOptions(options: TrainingOptions): void {
  const { seed, clipNorm, averageDecay, guard, earlyStopping } = options;
  checkOptimizer(options.optimizer);
  checkSchedule(options.schedule);
  const expect = (holds: boolean, name: string, range: string, got: number | null): void => {
    if (!holds) throw new RangeError(`${name}: expected ${range}, got ${got}`);
  };
  const { patience, coolDown, leastGain } = earlyStopping;
  const { tolerance, maxSetbacks } = guard;
  expect(Number.isSafeInteger(seed), "seed", "an integer", seed);
  expect(clipNorm > 0, "clipNorm", "a number above 0", clipNorm);
  const decays = averageDecay === null || (averageDecay >= 0 && averageDecay < 1);
  expect(decays, "averageDecay", "a number in [0, 1) or null", averageDecay);
  expect(tolerance > 0, "tolerance", "a number above 0", tolerance);
  expect(maxSetbacks >= 0, "maxSetbacks", "at least 0", maxSetbacks);
  expect(patience >= 1, "patience", "at least 1", patience);
  expect(coolDown >= 0, "coolDown", "at least 0", coolDown);
  expect(leastGain >= 0, "leastGain", "at least 0", leastGain);
}
