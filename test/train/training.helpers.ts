import { createRandom } from "../../agent/math/random.ts";
import { randomAt } from "../../agent/train/batches.ts";
import type { TrainedParameter } from "../../agent/train/optimizer.ts";
import type { Training, TrainingOptions } from "../../agent/train/state.ts";
import { gatherGradients, type StepOutcome, takeStep } from "../../agent/train/steps.ts";

/** Options under which nothing but the plain rule is at work. */
export const PLAIN: TrainingOptions = {
  seed: 1,
  optimizer: { kind: "sgd", momentum: 0, nesterov: false, weightDecay: 0 },
  schedule: { peak: 0.1, warmUp: 0, floor: 1 },
  limits: { steps: 100, budgetMs: Number.POSITIVE_INFINITY },
  clipNorm: Number.POSITIVE_INFINITY,
  averageDecay: null,
  guard: { tolerance: 5, maxSetbacks: 3 },
  earlyStopping: { patience: 3, coolDown: 0, leastGain: 0 },
};

export function weightsOf(name: string, values: readonly number[]): TrainedParameter {
  const initial = Float32Array.from(values);
  return { name, initial, decays: true, rateFactor: 1 };
}

/** A least-squares problem y = W·x + b with noise. */
export interface LinearProblem {
  readonly X: Float64Array;
  readonly Y: Float64Array;
  readonly samples: number;
  readonly inputs: number;
  readonly outputs: number;
}

export function linearProblem(seed: number): LinearProblem {
  const [samples, inputs, outputs] = [60, 5, 3];
  const random = createRandom(seed);
  const X = new Float64Array(samples * inputs).map(() => random.normal());
  const truth = new Float64Array(outputs * inputs).map(() => random.normal());
  const Y = new Float64Array(samples * outputs);
  for (let s = 0; s < samples; s++) {
    for (let o = 0; o < outputs; o++) {
      let y = 0.5 * o + 0.3 * random.normal();
      for (let i = 0; i < inputs; i++) y += truth[o * inputs + i]! * X[s * inputs + i]!;
      Y[s * outputs + o] = y;
    }
  }
  return { X, Y, samples, inputs, outputs };
}

/** ½·mean ‖W·x + b − y‖² over some samples, and its gradient. */
export function linearGradient(
  { X, Y, inputs, outputs }: LinearProblem,
  [W, b]: readonly Float32Array[],
  batch: readonly number[],
): { loss: number; gradients: Float32Array[] } {
  const dW = new Float32Array(outputs * inputs);
  const db = new Float32Array(outputs);
  let loss = 0;
  for (const s of batch) {
    for (let o = 0; o < outputs; o++) {
      let error = b![o]! - Y[s * outputs + o]!;
      for (let i = 0; i < inputs; i++) error += W![o * inputs + i]! * X[s * inputs + i]!;
      loss += (0.5 * error * error) / batch.length;
      db[o]! += error / batch.length;
      for (let i = 0; i < inputs; i++) {
        dW[o * inputs + i]! += (error * X[s * inputs + i]!) / batch.length;
      }
    }
  }
  return { loss, gradients: [dW, db] };
}

/** One step on eight samples that follow from the seed and the step. */
export function linearStep(training: Training, problem: LinearProblem): StepOutcome {
  const { step } = training.counters;
  const random = randomAt(training.options.seed, step);
  const batch = Array.from({ length: 8 }, () => random.integer(problem.samples));
  const { loss, gradients } = linearGradient(problem, training.weights, batch);
  gatherGradients(training, loss, gradients, batch.length);
  return takeStep(training, step);
}

/** Ordinary least squares by the normal equations and Gauss–Jordan: W, then b, of each output. */
export function closedForm({ X, Y, samples, inputs, outputs }: LinearProblem): {
  W: number[];
  b: number[];
} {
  const size = inputs + 1;
  const row = (s: number): number[] => [...X.subarray(s * inputs, (s + 1) * inputs), 1];
  const A = Array.from({ length: size }, () => new Array<number>(size + outputs).fill(0));
  for (let s = 0; s < samples; s++) {
    const x = [...row(s), ...Y.subarray(s * outputs, (s + 1) * outputs)];
    for (let i = 0; i < size; i++) A[i] = A[i]!.map((sum, j) => sum + x[i]! * x[j]!);
  }
  for (let p = 0; p < size; p++) {
    const pivot = A[p]![p]!;
    A[p] = A[p]!.map((value) => value / pivot);
    for (let r = 0; r < size; r++) {
      if (r === p) continue;
      const factor = A[r]![p]!;
      A[r] = A[r]!.map((value, j) => value - factor * A[p]![j]!);
    }
  }
  const at = (o: number, i: number) => A[i]![size + o]!;
  const each = Array.from({ length: outputs }, (_, o) => o);
  return {
    W: each.flatMap((o) => Array.from({ length: inputs }, (_, i) => at(o, i))),
    b: each.map((o) => at(o, inputs)),
  };
}
