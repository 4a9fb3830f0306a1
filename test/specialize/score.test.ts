import assert from "node:assert/strict";
import { test } from "node:test";
import { referenceGemm } from "../../agent/math/gemm.ts";
import { createRandom } from "../../agent/math/random.ts";
import type { TrainingFeatures } from "../../agent/specialize/fit-head.ts";
import { expectedDrop, hitsOf, scoreFeatures, standingOf } from "../../agent/specialize/score.ts";

const OPTIONS = { seed: 1, gemm: referenceGemm, signal: new AbortController().signal };

/** Three classes around three centers, in eight dimensions; `bursts` of four pictures each. */
function clouds(noise: number, bursts: number): TrainingFeatures {
  const random = createRandom(5);
  const labels: number[] = [];
  const names: string[] = [];
  const features: number[] = [];
  for (let i = 0; i < 3 * bursts * 4; i++) {
    const label = i % 3;
    labels.push(label);
    names.push(`${label} ${Math.floor(i / 12)}`);
    for (let j = 0; j < 8; j++) features.push((j === label ? 1 : 0) + noise * random.normal());
  }
  return { features: Float32Array.from(features), inputs: 8, labels, bursts: names, classes: 3 };
}

test("score: features that tell the classes apart score near 1, noisier ones lower", async () => {
  const clear = await scoreFeatures(clouds(0.05, 8), OPTIONS);
  const noisy = await scoreFeatures(clouds(0.6, 8), OPTIONS);
  assert.ok(clear.expectedAccuracy > 0.97, `${clear.expectedAccuracy}`);
  assert.ok(noisy.expectedAccuracy < 0.9, `${noisy.expectedAccuracy}`);
  assert.ok(noisy.expectedAccuracy > 1 / 3, `${noisy.expectedAccuracy}`);
  assert.ok(noisy.loss > clear.loss);
  const { points, standardError } = expectedDrop(clear, noisy);
  assert.ok(Math.abs(points - 100 * (clear.expectedAccuracy - noisy.expectedAccuracy)) < 1e-9);
  assert.ok(standardError > 0 && standardError < points);
});

test("score: the standard error of a drop is what the mean scatters by over other pictures", () => {
  const random = createRandom(3);
  const labels = Array.from({ length: 60 }, (_, i) => i % 3);
  const draw = () => {
    const dense = labels.map(() => 0.9 + 0.05 * random.normal());
    const other = dense.map((value, i) => value - 0.02 * labels[i]! + 0.1 * random.normal());
    return expectedDrop({ hits: dense, labels }, { hits: other, labels });
  };
  const drops = Array.from({ length: 400 }, draw);
  const mean = drops.reduce((sum, { points }) => sum + points, 0) / drops.length;
  const spread = Math.sqrt(
    drops.reduce((sum, { points }) => sum + (points - mean) ** 2, 0) / drops.length,
  );
  const stated = drops.reduce((sum, { standardError }) => sum + standardError, 0) / drops.length;
  assert.ok(Math.abs(mean - 2) < 0.3, `${mean}`);
  assert.ok(Math.abs(stated / spread - 1) < 0.1, `${stated} for ${spread}`);
});

test("score: what was fitted is judged by pictures kept back, what was not by all", () => {
  const labels = [0, 1, 0, 1, 0, 1, 0, 1];
  const scoreOf = (hits: number[]) => ({ expectedAccuracy: 0, loss: 0, hits, labels });
  // The last two are kept back.
  const keptBack = ({ hits }: { hits: readonly number[] }) =>
    scoreOf(hits.map((hit, i) => (i < 6 ? Number.NaN : hit)));
  const dense = scoreOf([1, 1, 1, 1, 1, 1, 1, 1]);
  const own = { score: dense, points: 0, caution: 0 };
  const smaller = scoreOf([1, 1, 1, 1, 1, 1, 0.6, 1]);
  const sized = standingOf(smaller, { standing: own, fitted: false }, dense, keptBack);
  assert.ok(Math.abs(sized.points - 5) < 1e-9, "40 of 800 points, by all pictures");
  assert.equal(sized.caution, 0);
  const narrow = scoreOf([1, 1, 1, 1, 1, 1, 0.4, 0.9]);
  const fitted = standingOf(narrow, { standing: sized, fitted: true }, dense, keptBack);
  assert.ok(Math.abs(fitted.points - 20) < 1e-9, "5, and 20 and 10 of 200 of those kept back");
  const same = standingOf(narrow, { standing: fitted, fitted: false }, dense, keptBack);
  assert.deepEqual([same.points, same.caution], [fitted.points, fitted.caution]);
});

test("score: scores of other pictures are not compared", () => {
  const one = { hits: [0.5, 0.6], labels: [0, 1] };
  assert.throws(() => expectedDrop(one, { hits: [0.5, 0.6], labels: [1, 0] }), RangeError);
});

test("score: one burst a class leaves nothing to judge on, and no number is made up", async () => {
  const { expectedAccuracy } = await scoreFeatures(clouds(0.05, 1), OPTIONS);
  assert.ok(Number.isNaN(expectedAccuracy));
});

test("score: hits of logits count what is above one half, with soft edges", () => {
  const logits = Float32Array.of(5, -5, -5, 5, 0, 0, Math.log(3), 0);
  const [right, wrong, undecided, likely] = hitsOf(logits, [0, 0, 1, 0]);
  assert.ok(right! > 0.999 && wrong! < 0.001);
  assert.equal(undecided, 0.5);
  // 0.75⁴ / (0.75⁴ + 0.25⁴)
  assert.ok(Math.abs(likely! - 81 / 82) < 1e-6, `${likely}`);
});
