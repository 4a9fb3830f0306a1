import assert from "node:assert/strict";
import { test } from "node:test";
import { createRandom } from "../../agent/math/random.ts";
import { createSampler, logitOffsets, randomAt } from "../../agent/train/batches.ts";

/** Labels of classes with such different counts, shuffled. */
function longTail(counts: readonly number[], seed: number): number[] {
  const labels = counts.flatMap((count, label) => new Array<number>(count).fill(label));
  return createRandom(seed).shuffle(labels);
}

test("sampler: takes every class as often as every other, to one sample", () => {
  const labels = longTail([40, 3, 17, 1, 9], 1);
  const sampler = createSampler(labels, 8, 5);
  const taken = new Map<number, number>();
  for (let step = 0; step < 53; step++) {
    for (const sample of sampler.batch(step)) {
      taken.set(labels[sample]!, (taken.get(labels[sample]!) ?? 0) + 1);
    }
    const counts = [...taken.values()];
    assert.ok(Math.max(...counts) - Math.min(...counts) <= 1);
  }
  assert.equal(taken.size, 5);
});

test("sampler: takes all samples of a class before it takes one again", () => {
  const labels = longTail([6, 4, 5], 2);
  const sampler = createSampler(labels, 7, 3);
  const visits = new Map<number, number[]>();
  for (let step = 0; step < 60; step++) {
    for (const sample of sampler.batch(step)) {
      const label = labels[sample]!;
      visits.set(label, [...(visits.get(label) ?? []), sample]);
    }
  }
  const orders = new Set<string>();
  for (const [label, samples] of visits) {
    const count = labels.filter((other) => other === label).length;
    for (let i = 0; i + count <= samples.length; i += count) {
      const epoch = samples.slice(i, i + count);
      assert.equal(new Set(epoch).size, count);
      orders.add(epoch.join());
    }
  }
  assert.ok(orders.size > 30, "the order is drawn anew for every epoch");
});

test("sampler: a step gives the same batch, whatever was asked before", () => {
  const labels = longTail([12, 5, 2], 4);
  const one = createSampler(labels, 4, 9);
  const steps = Array.from({ length: 40 }, (_, step) => one.batch(step));
  const other = createSampler(labels, 4, 9);
  for (const step of createRandom(1).shuffle([...steps.keys()])) {
    assert.deepEqual(other.batch(step), steps[step]);
  }
  const seeds = [0, 1, 2 ** 40, -7].map((seed) => createSampler(labels, 4, seed));
  const runs = seeds.map((s) => Array.from({ length: 10 }, (_, step) => s.batch(step)).join());
  assert.equal(new Set(runs).size, 4);
});

test("sampler: one class, one sample, odd labels", () => {
  assert.deepEqual(createSampler([7], 3, 1).batch(12), [0, 0, 0]);
  const plain = createSampler([1, 1, 1, 1], 2, 1);
  assert.deepEqual([...plain.batch(0), ...plain.batch(1)].sort(), [0, 1, 2, 3]);
  assert.throws(() => createSampler([], 2, 1), /at least one label/);
  assert.throws(() => createSampler([1], 0, 1), /batchSize/);
  assert.throws(() => createSampler([1], 2, 0.5), /seed/);
});

test("random places: independent streams, the same for the same place", () => {
  const places = [[0], [1], [0, 0], [0, 1], [1, 0], [2 ** 31], [-1]];
  const starts = [3, 4, 2 ** 33 + 3].flatMap((seed) =>
    places.map((place) => randomAt(seed, ...place).uniform()),
  );
  assert.equal(new Set(starts).size, starts.length);
  assert.equal(randomAt(3, 5, 6).uniform(), randomAt(3, 5, 6).uniform());
  const count = 20_000;
  let sum = 0;
  let neighbors = 0;
  for (let i = 0; i < count; i++) {
    const here = randomAt(1, i).uniform() - 0.5;
    sum += here;
    neighbors += here * (randomAt(1, i + 1).uniform() - 0.5);
  }
  // Four standard errors of the mean and of the product of independent uniform numbers.
  assert.ok(Math.abs(sum / count) < 4 * Math.sqrt(1 / 12 / count));
  assert.ok(Math.abs(neighbors / count) < 4 * (1 / 12 / Math.sqrt(count)));
});

test("logit offsets: are the log of the prior but for a constant", () => {
  const offsets = logitOffsets([50, 5, 0, 50], 1);
  assert.equal(offsets[0], 0);
  assert.equal(offsets[3], 0);
  assert.ok(Math.abs(offsets[1]! - Math.log(0.1)) < 1e-6);
  assert.ok(Math.abs(offsets[2]! - Math.log(1 / 50)) < 1e-6);
  assert.ok(Math.abs(logitOffsets([50, 5], 0.5)[1]! - 0.5 * Math.log(0.1)) < 1e-6);
  assert.ok(logitOffsets([8, 1, 30], 0).every((offset) => Math.abs(offset) === 0));
});
