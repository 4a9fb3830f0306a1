import assert from "node:assert/strict";
import { test } from "node:test";
import { createRandom } from "../../agent/math/random.ts";
import { keepCheckpoint, resumeTraining } from "../../agent/train/checkpoint.ts";
import type { Optimizer } from "../../agent/train/optimizer.ts";
import { judgedWeights, startTraining, type TrainingOptions } from "../../agent/train/state.ts";
import { gatherGradients, judgeWeights, progressOf, takeStep } from "../../agent/train/steps.ts";
import { closedForm, linearGradient, linearProblem, PLAIN, weightsOf } from "./training.helpers.ts";

const SOLVERS: Record<string, Pick<TrainingOptions, "optimizer" | "schedule">> = {
  AdamW: {
    optimizer: { kind: "adamw", beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0 },
    schedule: { peak: 0.05, warmUp: 0.1, floor: 0 },
  },
  momentum: {
    optimizer: { kind: "sgd", momentum: 0.9, nesterov: false, weightDecay: 0 },
    schedule: { peak: 0.1, warmUp: 0.1, floor: 0.1 },
  },
  "Nesterov momentum": {
    optimizer: { kind: "sgd", momentum: 0.9, nesterov: true, weightDecay: 0 },
    schedule: { peak: 0.1, warmUp: 0.1, floor: 0.1 },
  },
};

for (const [name, solver] of Object.entries(SOLVERS)) {
  test(`training: ${name} brings a linear layer to the closed-form solution`, () => {
    const problem = linearProblem(3);
    const all = Array.from({ length: problem.samples }, (_, s) => s);
    const parameters = [weightsOf("W", new Array(15).fill(0)), weightsOf("b", [0, 0, 0])];
    const limits = { steps: 1500, budgetMs: Number.POSITIVE_INFINITY };
    const training = startTraining(parameters, { ...PLAIN, ...solver, limits });
    while (progressOf(training, 0) < 1) {
      const { loss, gradients } = linearGradient(problem, training.weights, all);
      gatherGradients(training, loss, gradients, all.length);
      assert.equal(takeStep(training, 0).kind, "stepped");
    }
    const { W, b } = closedForm(problem);
    for (const [i, w] of W.entries()) assert.ok(Math.abs(training.weights[0]![i]! - w) < 1e-5);
    for (const [i, w] of b.entries()) assert.ok(Math.abs(training.weights[1]![i]! - w) < 1e-5);
  });
}

test("training: micro-batches of unlike sizes add up to the gradient of the batch", () => {
  const problem = linearProblem(4);
  const start = [weightsOf("W", new Array(15).fill(0.1)), weightsOf("b", [1, 2, 3])];
  const whole = startTraining(start, PLAIN);
  const parts = startTraining(start, PLAIN);
  const batch = Array.from({ length: 11 }, (_, s) => s);
  const { loss, gradients } = linearGradient(problem, whole.weights, batch);
  gatherGradients(whole, loss, gradients, 11);
  for (const part of [batch.slice(0, 4), batch.slice(4, 5), batch.slice(5)]) {
    const micro = linearGradient(problem, parts.weights, part);
    gatherGradients(parts, micro.loss, micro.gradients, part.length);
  }
  const [one, other] = [takeStep(whole, 0), takeStep(parts, 0)];
  assert.ok(one.kind === "stepped" && other.kind === "stepped");
  assert.ok(Math.abs(one.loss - other.loss) < 1e-9);
  assert.ok(Math.abs(one.gradientNorm - other.gradientNorm) < 1e-5);
  for (const [p, weights] of whole.weights.entries()) {
    for (const [i, w] of weights.entries()) {
      assert.ok(Math.abs(w - parts.weights[p]![i]!) < 1e-6);
    }
  }
});

test("training: a long gradient is cut to the norm over all parameters, a short one is left", () => {
  const step = (clipNorm: number) => {
    const training = startTraining([weightsOf("a", [0, 0]), weightsOf("b", [0])], {
      ...PLAIN,
      clipNorm,
    });
    gatherGradients(training, 1, [Float32Array.of(2, -3), Float32Array.of(6)], 2);
    const outcome = takeStep(training, 0);
    assert.ok(outcome.kind === "stepped");
    return { norm: outcome.gradientNorm, moved: training.weights.flatMap((w) => [...w]) };
  };
  assert.equal(step(3.5).norm, 7, "of the gradient as it was");
  assert.deepEqual(step(3.5).moved, [...Float32Array.of(-0.1, 0.15, -0.3)]);
  assert.deepEqual(step(7).moved, [...Float32Array.of(-0.2, 0.3, -0.6)]);
});

test("training: factors scale the rate of a parameter, zero freezes it without a copy", () => {
  const frozen = { ...weightsOf("frozen", [1, 2]), rateFactor: 0 };
  const slow = { ...weightsOf("slow", [1]), rateFactor: 0.25 };
  const options = { ...PLAIN, averageDecay: 0.5 };
  const training = startTraining([frozen, slow, weightsOf("full", [1])], options);
  gatherGradients(training, 1, [null, Float32Array.of(1), Float32Array.of(1)], 1);
  const outcome = takeStep(training, 0);
  assert.ok(outcome.kind === "stepped" && Math.abs(outcome.gradientNorm - Math.SQRT2) < 1e-12);
  assert.equal(training.weights[0], frozen.initial);
  assert.deepEqual([...frozen.initial], [1, 2]);
  assert.equal(training.weights[1]![0], Math.fround(1 - 0.025));
  assert.equal(training.weights[2]![0], Math.fround(1 - 0.1));
  assert.deepEqual([...slow.initial], [1], "initial values are never changed");
});

test("training: decay spares the parameters that are said not to decay", () => {
  const optimizer = { ...PLAIN.optimizer, weightDecay: 0.5 } as Optimizer;
  const bias = { ...weightsOf("bias", [1]), decays: false };
  const training = startTraining([weightsOf("weight", [1]), bias], { ...PLAIN, optimizer });
  gatherGradients(training, 1, [new Float32Array(1), new Float32Array(1)], 1);
  takeStep(training, 0);
  assert.equal(training.weights[0]![0], Math.fround(0.95));
  assert.equal(training.weights[1]![0], 1);
});

/** A training on a parabola, whose loss and gradient can be made up. */
function parabola(options: Partial<TrainingOptions> = {}) {
  const training = startTraining([weightsOf("w", [1])], { ...PLAIN, ...options });
  const step = (loss?: number, gradient?: number) => {
    const w = training.weights[0]![0]!;
    gatherGradients(training, loss ?? 1 + w * w, [Float32Array.of(gradient ?? 2 * w)], 1);
    return takeStep(training, 0);
  };
  return { training, step, weight: () => training.weights[0]![0]! };
}

test("divergence: a loss or gradient that is not finite goes back to the beginning", () => {
  for (const [loss, gradient] of [
    [Number.NaN, 1],
    [Number.POSITIVE_INFINITY, 1],
    [1, Number.NaN],
    [1, Number.NEGATIVE_INFINITY],
  ] as const) {
    const { training, step, weight } = parabola({ averageDecay: 0.5 });
    step();
    assert.notEqual(weight(), 1);
    const outcome = step(loss, gradient);
    assert.equal(outcome.kind, "stepped-back");
    assert.equal(weight(), 1);
    assert.equal(judgedWeights(training)[0]![0], 1);
    assert.deepEqual([training.counters.step, training.counters.updates], [2, 0]);
    const next = step();
    assert.ok(next.kind === "stepped" && next.rate === 0.05, "half the rate");
  }
});

test("divergence: goes back to the last checkpoint, moments and all", () => {
  const optimizer = {
    kind: "adamw",
    beta1: 0.9,
    beta2: 0.99,
    epsilon: 1e-8,
    weightDecay: 0,
  } as const;
  const { training, step, weight } = parabola({ optimizer, averageDecay: 0.9 });
  for (let i = 0; i < 5; i++) step();
  keepCheckpoint(training);
  const kept = [weight(), training.averages![0]![0], ...training.moments[0]!.first];
  for (let i = 0; i < 3; i++) step();
  assert.equal(step(Number.NaN).kind, "stepped-back");
  assert.deepEqual([weight(), training.averages![0]![0], ...training.moments[0]!.first], kept);
  assert.deepEqual([training.counters.step, training.counters.updates], [9, 5]);
});

test("divergence: an exploding loss is seen before the weights are lost, then tamed", () => {
  // Gradient descent on w² diverges above a rate of 1.
  const { training, step, weight } = parabola({
    schedule: { peak: 3.1, warmUp: 0.2, floor: 1 },
    guard: { tolerance: 5, maxSetbacks: 5 },
  });
  const kinds = new Set<string>();
  for (let i = 0; i < 100; i++) kinds.add(step().kind);
  assert.deepEqual([...kinds].sort(), ["stepped", "stepped-back"]);
  assert.ok(training.counters.setbacks >= 1 && training.counters.setbacks <= 3);
  assert.ok(Math.abs(weight()) < 1e-3);
});

test("divergence: gives up after the stated setbacks, best and initial weights are whole", () => {
  const { training, step, weight } = parabola();
  step();
  const judged = weight();
  judgeWeights(training, 0.9);
  for (let i = 0; i < 5; i++) step();
  const outcomes = Array.from({ length: 4 }, () => step(Number.NaN));
  assert.deepEqual(
    outcomes.map(({ kind }) => kind),
    ["stepped-back", "stepped-back", "stepped-back", "diverged"],
  );
  assert.ok(outcomes[3]!.kind === "diverged" && /the loss is NaN/.test(outcomes[3]!.reason));
  assert.equal(training.best!.weights[0]![0], judged);
  assert.equal(training.parameters[0]!.initial[0], 1);
  assert.equal(weight(), 1);
});

test("divergence: noise around a falling loss, and a rare hard batch, are none", () => {
  const { training, step } = parabola({ schedule: { peak: 1e-3, warmUp: 0, floor: 1 } });
  const random = createRandom(6);
  for (let i = 0; i < 400; i++) {
    const hard = i % 50 === 49 ? 2 : 1;
    const loss = hard * (0.1 + 2 * Math.exp(-i / 60)) * Math.exp(0.4 * random.normal());
    assert.equal(step(loss).kind, "stepped", `loss ${loss} at ${i}`);
  }
  assert.equal(step(8 * training.counters.level.mean).kind, "stepped-back");
});

test("divergence: a level near or below zero is judged by its spread", () => {
  const { step } = parabola({ schedule: { peak: 1e-3, warmUp: 0, floor: 1 } });
  for (let i = 0; i < 60; i++) assert.equal(step(Math.sin(i)).kind, "stepped");
  assert.equal(step(100).kind, "stepped-back");
});

test("divergence: a validation score that is not finite goes back too", () => {
  const { training, step, weight } = parabola();
  step();
  const outcome = judgeWeights(training, Number.NaN);
  assert.equal(outcome.kind, "stepped-back");
  assert.equal(weight(), 1);
  assert.equal(training.best, null);
});

test("early stopping: stops after as many judgements without a gain as there is patience for", () => {
  const { training, step } = parabola({
    earlyStopping: { patience: 3, coolDown: 0, leastGain: 0.1 },
  });
  const scores = [0.5, 0.7, 0.75, 0.79, 0.6];
  const outcomes = scores.map((score) => {
    step();
    return judgeWeights(training, score);
  });
  assert.deepEqual(
    outcomes.map((outcome) => outcome.kind),
    ["go-on", "go-on", "go-on", "go-on", "stop"],
  );
  assert.equal(training.best!.score, 0.79, "the best counts, however small its gain");
  assert.equal(training.best!.step, 4);
  const { training: other } = parabola({
    earlyStopping: { patience: 2, coolDown: 0, leastGain: 0.1 },
  });
  const kinds = [0.5, 0.55, 0.65, 0.66, 0.67].map((score) => judgeWeights(other, score).kind);
  assert.deepEqual(kinds, ["go-on", "go-on", "go-on", "go-on", "stop"]);
});

test("early stopping: with a cool-down the rate falls to its end over so many steps more", () => {
  const schedule = { peak: 0.1, warmUp: 0, floor: 0.1 };
  const earlyStopping = { patience: 2, coolDown: 0.5, leastGain: 0 };
  const { training, step } = parabola({ schedule, earlyStopping });
  const rates: number[] = [];
  const walk = (score: number) => {
    const outcome = step();
    assert.ok(outcome.kind === "stepped");
    rates.push(outcome.rate);
    return judgeWeights(training, score).kind;
  };
  for (let i = 0; i < 20; i++) assert.equal(walk(i), "go-on");
  assert.equal(training.counters.coolingFrom, null);
  while (progressOf(training, 0) < 1) assert.equal(walk(0), "go-on");
  assert.equal(training.counters.coolingFrom!.step, 22);
  assert.equal(training.counters.step, 33, "half as many again");
  const [last, next, end] = [rates[21]!, rates[22]!, rates.at(-1)!];
  assert.ok(next < last && next > 0.8 * last, `the rate goes on from ${last} to ${next}`);
  assert.ok(end < 0.015, `and ends near its floor: ${end}`);
  const checkpoint = keepCheckpoint(training);
  const resumed = resumeTraining(checkpoint, training.parameters, training.options);
  assert.equal(progressOf(resumed, 0), progressOf(training, 0));
});

test("early stopping: keeps copies of the averages where there are any", () => {
  const { training, step, weight } = parabola({ averageDecay: 0.9 });
  step();
  step();
  const average = judgedWeights(training)[0]![0]!;
  assert.notEqual(average, weight());
  judgeWeights(training, 1);
  step();
  judgeWeights(training, 0.5);
  assert.equal(training.best!.weights[0]![0], average);
});

test("training: mistakes of the caller are named", () => {
  const w = weightsOf("w", [1, 0]);
  assert.throws(() => startTraining([w, w], PLAIN), /unlike names/);
  assert.throws(() => startTraining([{ ...w, rateFactor: -1 }], PLAIN), /w: expected a rateFactor/);
  assert.throws(() => startTraining([w], { ...PLAIN, clipNorm: 0 }), /clipNorm: expected/);
  const schedule = { ...PLAIN.schedule, warmUp: 1 };
  assert.throws(() => startTraining([w], { ...PLAIN, schedule }), /warmUp: expected/);
  const optimizer = { ...PLAIN.optimizer, momentum: 1 } as Optimizer;
  assert.throws(() => startTraining([w], { ...PLAIN, optimizer }), /momentum: expected/);
  const training = startTraining([w], PLAIN);
  assert.throws(() => takeStep(training, 0), /expected gathered gradients/);
  assert.throws(() => gatherGradients(training, 1, [], 1), /expected 1 gradients, got 0/);
  assert.throws(() => gatherGradients(training, 1, [null], 1), /w: expected a gradient of 2/);
  const short = [new Float32Array(1)];
  assert.throws(() => gatherGradients(training, 1, short, 1), /w: expected a gradient of 2, got 1/);
  assert.throws(() => gatherGradients(training, 1, [new Float32Array(2)], 0), /samples: expected/);
});
