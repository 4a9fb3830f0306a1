import { averageWeights } from "./averaging.ts";
import { returnToCheckpoint } from "./checkpoint.ts";
import { faultOf, followLoss } from "./divergence.ts";
import { learningRate, trainingProgress } from "./learning-rate.ts";
import { isFrozen, sumOfSquares, updateWeights } from "./optimizer.ts";
import { type GatheredGradients, judgedWeights, ownCopy, type Training } from "./state.ts";

/** Training went back to its last good state, or gave up there for good. */
interface Setback {
  /** `diverged`: there were too many; {@link Training.best} and the initial values are whole. */
  readonly kind: "stepped-back" | "diverged";
  readonly reason: string;
}

/** What became of one step. */
export type StepOutcome =
  | {
      readonly kind: "stepped";
      /** Mean over the samples of the step. */
      readonly loss: number;
      /** Learning rate, before factors of parameters. */
      readonly rate: number;
      /** Length of the gradient before it was clipped. */
      readonly gradientNorm: number;
    }
  | Setback;

/** What became of one judgement. */
export type JudgeOutcome =
  | {
      /** `stop`: as many judgements without a gain as there is patience for, and no cool-down. */
      readonly kind: "go-on" | "stop";
      /** Whether these weights are the best so far, and were kept. */
      readonly best: boolean;
    }
  | Setback;

/** How far a training is; from 1 on it is over. */
export function progressOf({ counters, options }: Training, elapsedMs: number): number {
  const { step, coolingFrom: from } = counters;
  const usual = trainingProgress(step, elapsedMs, options.limits);
  if (from === null) return usual;
  const steps = Math.max(1, Math.ceil(options.earlyStopping.coolDown * from.step));
  const share = step >= from.step + steps ? 1 : (step + 0.5 - from.step) / steps;
  return Math.max(usual, from.progress + (1 - from.progress) * share);
}

/**
 * Adds the gradients of a micro-batch to those of the step; each counts by its samples.
 *
 * @param loss mean over the samples. @param gradients of that mean, one array a parameter; those of
 *   frozen ones may be null. Those of the first micro-batch are kept and changed.
 * @throws {RangeError} where a size does not fit.
 */
export function gatherGradients(
  training: Training,
  loss: number,
  gradients: readonly (Float32Array | null)[],
  samples: number,
): void {
  if (!(samples > 0)) throw new RangeError(`samples: expected more than 0, got ${samples}`);
  const own = trainedGradients(training, gradients);
  const before = training.gathered;
  if (before === null) {
    training.gathered = { loss: loss * samples, samples, unit: samples, gradients: own };
    return;
  }
  const share = samples / before.unit;
  for (const [i, sum] of before.gradients.entries()) {
    if (sum !== null) addScaled(sum, own[i]!, share);
  }
  training.gathered = {
    ...before,
    loss: before.loss + loss * samples,
    samples: before.samples + samples,
  };
}

/**
 * Changes the weights by the gradients gathered since the last step. Where loss or gradient show
 * that training went wrong it goes back to the last checkpoint instead and halves the rate; the
 * step is counted all the same, so that the next one sees other samples.
 *
 * @param elapsedMs time spent on the training so far, that before a resume included.
 * @throws {RangeError} where no gradients were gathered.
 */
export function takeStep(training: Training, elapsedMs: number): StepOutcome {
  const { gathered, options, counters } = training;
  if (gathered === null) throw new RangeError("expected gathered gradients, got none");
  training.gathered = null;
  const rate =
    learningRate(options.schedule, progressOf(training, elapsedMs)) * 0.5 ** counters.setbacks;
  training.counters = { ...counters, step: counters.step + 1, elapsedMs };
  const loss = gathered.loss / gathered.samples;
  const gradientNorm = normOf(gathered);
  const fault = faultOf(counters.level, options.guard, { loss, gradientNorm });
  if (fault !== null) return stepBack(training, fault);
  updateAll(training, gathered, rate, gradientNorm);
  training.counters = {
    ...training.counters,
    updates: counters.updates + 1,
    level: followLoss(counters.level, loss),
  };
  return { kind: "stepped", loss, rate, gradientNorm };
}

/**
 * Notes how good the {@link judgedWeights} are, and keeps them where they are the best so far. Too
 * long without a gain, training draws to its end: see {@link EarlyStopping}.
 *
 * @param score on pictures that were not trained on, more is better. One that is not finite is a
 *   fault, as in {@link takeStep}.
 */
export function judgeWeights(training: Training, score: number): JudgeOutcome {
  if (!Number.isFinite(score)) return stepBack(training, `the validation score is ${score}`);
  const { counters, best } = training;
  const isBest = best === null || score > best.score;
  if (isBest) keepBest(training, score);
  const { patience, coolDown, leastGain } = training.options.earlyStopping;
  const gained = counters.gainedScore === null || score > counters.gainedScore + leastGain;
  const withoutGain = gained ? 0 : counters.withoutGain + 1;
  const gainedScore = gained ? score : counters.gainedScore;
  training.counters = { ...counters, withoutGain, gainedScore };
  if (withoutGain < patience || counters.coolingFrom !== null) {
    return { kind: "go-on", best: isBest };
  }
  if (coolDown === 0) return { kind: "stop", best: isBest };
  const { step, elapsedMs } = counters;
  const coolingFrom = { step, progress: progressOf(training, elapsedMs) };
  training.counters = { ...training.counters, coolingFrom };
  return { kind: "go-on", best: isBest };
}

function trainedGradients(
  { parameters }: Training,
  gradients: readonly (Float32Array | null)[],
): (Float32Array | null)[] {
  if (gradients.length !== parameters.length) {
    throw new RangeError(`expected ${parameters.length} gradients, got ${gradients.length}`);
  }
  return parameters.map((parameter, i) => {
    if (isFrozen(parameter)) return null;
    const gradient = gradients[i] ?? null;
    const { name, initial } = parameter;
    if (gradient?.length !== initial.length) {
      throw new RangeError(
        `${name}: expected a gradient of ${initial.length}, got ${gradient?.length ?? "none"}`,
      );
    }
    return gradient;
  });
}

function addScaled(sum: Float32Array, addend: Float32Array, share: number): void {
  for (let i = 0; i < sum.length; i++) sum[i] = sum[i]! + share * addend[i]!;
}

/** Length of the mean gradient over all parameters. */
function normOf({ gradients, unit, samples }: GatheredGradients): number {
  let squares = 0;
  for (const gradient of gradients) if (gradient !== null) squares += sumOfSquares(gradient);
  return Math.sqrt(squares) * (unit / samples);
}

function updateAll(
  training: Training,
  { gradients, unit, samples }: GatheredGradients,
  rate: number,
  gradientNorm: number,
): void {
  const { parameters, weights, moments, averages, options, counters } = training;
  const updates = counters.updates + 1;
  const clip = gradientNorm > options.clipNorm ? options.clipNorm / gradientNorm : 1;
  for (const [i, gradient] of gradients.entries()) {
    if (gradient === null) continue;
    const { decays, rateFactor } = parameters[i]!;
    updateWeights(options.optimizer, weights[i]!, moments[i]!, gradient, decays, {
      rate: rate * rateFactor,
      gradient: (unit / samples) * clip,
      updates,
    });
    if (averages !== null) {
      averageWeights(averages[i]!, weights[i]!, options.averageDecay!, updates);
    }
  }
}

/** Copies into the arrays of the best weights before, where there are any. */
function keepBest(training: Training, score: number): void {
  const { parameters, best, counters } = training;
  const kept = best?.weights ?? parameters.map(ownCopy);
  for (const [i, weights] of judgedWeights(training).entries()) {
    if (!isFrozen(parameters[i]!)) kept[i]!.set(weights);
  }
  training.best = { score, step: counters.step, weights: kept };
}

function stepBack(training: Training, reason: string): Setback {
  returnToCheckpoint(training);
  const setbacks = training.counters.setbacks + 1;
  training.counters = { ...training.counters, setbacks };
  const diverged = setbacks > training.options.guard.maxSetbacks;
  return { kind: diverged ? "diverged" : "stepped-back", reason };
}
