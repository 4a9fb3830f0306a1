import assert from "node:assert/strict";
import { test } from "node:test";
import { averageWeights } from "../../agent/train/averaging.ts";
import { learningRate, trainingProgress } from "../../agent/train/learning-rate.ts";

const SCHEDULE = { peak: 0.01, warmUp: 0.1, floor: 0.05 };
const near = (got: number, expected: number) =>
  assert.ok(Math.abs(got - expected) < 1e-12, `${got} is not ${expected}`);

test("learning rate: climbs linearly, falls by a cosine, ends on its floor", () => {
  near(learningRate(SCHEDULE, 0), 0);
  near(learningRate(SCHEDULE, 0.05), 0.005);
  near(learningRate(SCHEDULE, 0.1), 0.01);
  near(learningRate(SCHEDULE, 0.55), 0.01 * (0.05 + 0.95 * 0.5));
  near(learningRate(SCHEDULE, 1), 0.0005);
  near(learningRate(SCHEDULE, 7), 0.0005);
  near(learningRate({ ...SCHEDULE, warmUp: 0 }, 0), 0.01);
  near(learningRate({ ...SCHEDULE, floor: 1 }, 0.7), 0.01);
});

test("learning rate: never rises behind the warm-up, never jumps", () => {
  let before = learningRate(SCHEDULE, 0);
  for (let i = 1; i <= 1000; i++) {
    const rate = learningRate(SCHEDULE, i / 1000);
    if (i > 100) assert.ok(rate <= before);
    assert.ok(Math.abs(rate - before) < 0.00011);
    before = rate;
  }
});

test("learning rate: no step of a training is lost on a rate of zero", () => {
  const limits = { steps: 8, budgetMs: Number.POSITIVE_INFINITY };
  const schedule = { ...SCHEDULE, floor: 0 };
  for (let step = 0; step < 8; step++) {
    assert.ok(learningRate(schedule, trainingProgress(step, 1e9, limits)) > 0);
  }
  assert.equal(trainingProgress(8, 0, limits), 1);
});

test("learning rate: time or steps, whichever is further", () => {
  const limits = { steps: 100, budgetMs: 1000 };
  assert.equal(trainingProgress(10, 500, limits), 0.5);
  assert.equal(trainingProgress(80, 500, limits), 0.805);
  assert.equal(trainingProgress(0, 1000, { ...limits, steps: Number.POSITIVE_INFINITY }), 1);
  assert.throws(() => trainingProgress(0, 0, { steps: 0, budgetMs: 1 }), /expected limits above 0/);
  assert.throws(() => learningRate(SCHEDULE, Number.NaN), /progress: expected/);
});

test("averages: follow the weights by their decay, faster at the beginning", () => {
  const average = Float32Array.of(1, 0);
  averageWeights(average, Float32Array.of(2, 0), 0.9, 1_000_000);
  assert.ok(Math.abs(average[0]! - 1.1) < 1e-6);
  assert.equal(average[1], 0);
  averageWeights(average, Float32Array.of(2, 0), 0.9, 1);
  assert.ok(Math.abs(average[0]! - (1.1 + 0.9 * (9 / 11))) < 1e-6);
  averageWeights(average, Float32Array.of(5, 0), 0, 1_000_000);
  assert.deepEqual([...average], [5, 0]);
});

test("averages: of still weights are these weights", () => {
  const weights = Float32Array.of(0.1, -3, 1e-20, 0);
  const average = weights.slice();
  for (let t = 1; t < 100; t++) averageWeights(average, weights, 0.999, t);
  assert.deepEqual(average, weights);
});
