import assert from "node:assert/strict";
import { test } from "node:test";
import { referenceGemm } from "../../agent/math/gemm.ts";
import { createRandom } from "../../agent/math/random.ts";
import type { TrainingFeatures } from "../../agent/specialize/fit-head.ts";
import { expectedDropPoints, scoreFeatures } from "../../agent/specialize/score.ts";

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
  const drop = expectedDropPoints(clear, noisy);
  assert.ok(Math.abs(drop - 100 * (clear.expectedAccuracy - noisy.expectedAccuracy)) < 1e-9);
});

test("score: one burst a class leaves nothing to judge on, and no number is made up", async () => {
  const { expectedAccuracy } = await scoreFeatures(clouds(0.05, 1), OPTIONS);
  assert.ok(Number.isNaN(expectedAccuracy));
});
