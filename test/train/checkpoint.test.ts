import assert from "node:assert/strict";
import { test } from "node:test";
import { keepCheckpoint, resumeTraining } from "../../agent/train/checkpoint.ts";
import type { Optimizer } from "../../agent/train/optimizer.ts";
import { startTraining, type Training, type TrainingOptions } from "../../agent/train/state.ts";
import { gatherGradients, judgeWeights, takeStep } from "../../agent/train/steps.ts";
import { linearProblem, linearStep, PLAIN, weightsOf } from "./training.helpers.ts";

const problem = linearProblem(7);

const OPTIMIZERS: Record<string, Optimizer> = {
  AdamW: { kind: "adamw", beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weightDecay: 0.05 },
  momentum: { kind: "sgd", momentum: 0.9, nesterov: true, weightDecay: 0.01 },
  "plain descent": PLAIN.optimizer,
};

function optionsOf(optimizer: Optimizer, averageDecay: number | null): TrainingOptions {
  return {
    ...PLAIN,
    optimizer,
    averageDecay,
    schedule: { peak: 0.02, warmUp: 0.2, floor: 0.1 },
    clipNorm: 1.5,
    earlyStopping: { patience: 50, coolDown: 0, leastGain: 0.001 },
  };
}

function layer() {
  const W = weightsOf("W", [0, 0.2, -0.4, 0, 0, 1, 0.3, 0, 0.1, 0, 2, 0, -1, 0.5, 0]);
  return [W, { ...weightsOf("b", [0, 0, 0]), decays: false }];
}

/** Steps to `until`; every 5 steps a judgement and a checkpoint, now and then a fault. */
function train(training: Training, until: number, onCheckpoint: (bytes: Uint8Array) => void) {
  const trace: string[] = [];
  while (training.counters.step < until) {
    const { step } = training.counters;
    let outcome = "";
    if (step === 13 || step === 31) {
      gatherGradients(training, Number.NaN, [new Float32Array(15), new Float32Array(3)], 8);
      outcome = takeStep(training, step).kind;
    } else {
      outcome = JSON.stringify(linearStep(training, problem));
    }
    trace.push(`${step}: ${outcome}`);
    if (training.counters.step % 5 === 0) {
      const first = training.weights[0]!;
      judgeWeights(training, -first.reduce((sum, w) => sum + Math.abs(w - 0.3), 0));
      onCheckpoint(keepCheckpoint(training));
    }
  }
  return trace;
}

/** Everything that decides how a training goes on, bit by bit. */
function bitsOf(training: Training) {
  const bits = (arrays: readonly Float32Array[]) =>
    arrays.map((array) =>
      Buffer.from(array.buffer, array.byteOffset, array.byteLength).toString("hex"),
    );
  return {
    weights: bits(training.weights),
    averages: training.averages && bits(training.averages),
    moments: training.moments.flatMap(({ first, second }) => bits([first, second])),
    counters: training.counters,
    best: training.best && { ...training.best, weights: bits(training.best.weights) },
  };
}

for (const [name, optimizer] of Object.entries(OPTIMIZERS)) {
  for (const averageDecay of [0.95, null]) {
    test(`checkpoint: ${name}, average ${averageDecay}, resumes to the very same bits`, () => {
      const options = optionsOf(optimizer, averageDecay);
      const files: Uint8Array[] = [];
      const whole = startTraining(layer(), options);
      const trace = train(whole, 40, (bytes) => files.push(bytes.slice()));
      assert.ok(whole.counters.setbacks === 2 && whole.best !== null);
      assert.equal(files.length, 8);
      for (const file of files) {
        const resumed = resumeTraining(file, layer(), options);
        const { step } = resumed.counters;
        assert.deepEqual(
          train(resumed, 40, () => undefined),
          trace.slice(step),
        );
        assert.deepEqual(bitsOf(resumed), bitsOf(whole));
      }
    });
  }
}

test("checkpoint: one that is read again and written again is the same file", () => {
  const options = optionsOf(OPTIMIZERS["AdamW"]!, 0.9);
  const training = startTraining(layer(), options);
  train(training, 12, () => undefined);
  const file = keepCheckpoint(training);
  // At an odd place in memory, as a reader of files may hand it over.
  const odd = new Uint8Array(file.length + 1).subarray(1);
  odd.set(file);
  assert.deepEqual(keepCheckpoint(resumeTraining(odd, layer(), options)), file);
});

test("checkpoint: holds the beginning too, and nothing of what is frozen", () => {
  const [W, b] = layer() as [ReturnType<typeof layer>[0], ReturnType<typeof layer>[1]];
  const frozen = { ...W!, rateFactor: 0 };
  const training = startTraining([frozen, b!], PLAIN);
  const file = keepCheckpoint(training);
  const resumed = resumeTraining(file, [frozen, b!], PLAIN);
  assert.deepEqual(bitsOf(resumed), bitsOf(training));
  assert.equal(resumed.weights[0], frozen.initial);
});

test("checkpoint: later steps do not change one that was kept", () => {
  const training = startTraining(layer(), optionsOf(OPTIMIZERS["AdamW"]!, 0.9));
  train(training, 5, () => undefined);
  const kept = keepCheckpoint(training);
  const copy = kept.slice();
  for (let i = 0; i < 4; i++) linearStep(training, problem);
  assert.deepEqual(kept, copy);
});

test("checkpoint: one that does not fit is refused with what does not", () => {
  const options = optionsOf(OPTIMIZERS["AdamW"]!, 0.9);
  const training = startTraining(layer(), options);
  linearStep(training, problem);
  const file = keepCheckpoint(training);
  const [W, b] = layer();
  const resume =
    (bytes: Uint8Array, parameters = layer(), given = options) =>
    () =>
      resumeTraining(bytes, parameters, given);
  assert.throws(resume(new Uint8Array(3)), /expected the content of a training, got 3 bytes/);
  assert.throws(resume(new Uint8Array(300)), /expected the content of a training/);
  assert.throws(resume(file.subarray(0, 40)), /expected a header of/);
  assert.throws(resume(file.subarray(0, file.length - 4)), /it is cut short or damaged/);
  const newer = file.slice();
  newer[8] = 9;
  assert.throws(resume(newer), /expected version 2, got 9/);
  assert.throws(resume(file, layer(), { ...options, seed: 2 }), /expected the options/);
  const wide = { ...b!, initial: new Float32Array(4) };
  assert.throws(resume(file, [W!, wide]), /parameter 1 to be "b" of 3 values, got "b" of 4/);
  assert.throws(resume(file, [W!]), /parameter 1 to be "b" of 3 values, got "none" of 0/);
  assert.throws(resume(file, [b!, W!]), /parameter 0 to be "W" of 15 values, got "b" of 3/);
  gatherGradients(training, 1, [new Float32Array(15), new Float32Array(3)], 1);
  assert.throws(() => keepCheckpoint(training), /between two steps/);
});
