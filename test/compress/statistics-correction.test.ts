import assert from "node:assert/strict";
import { test } from "node:test";
import { foldAffine, statisticsCorrection } from "../../agent/compress/statistics-correction.ts";
import { createRandom } from "../../agent/math/random.ts";

test("statistics correction: gives pruned outputs the dense mean and spread, folded in", () => {
  const random = createRandom(1);
  const x = new Float64Array(500).map(() => random.normal());
  const outputs = (w: number, b: number) => {
    const y = x.map((value) => w * value + b);
    const mean = y.reduce((a, v) => a + v, 0) / y.length;
    return { mean, variance: y.reduce((a, v) => a + (v - mean) ** 2, 0) / y.length };
  };
  const dense = outputs(2, -1);
  const weights = Float32Array.of(0.7);
  const bias = Float32Array.of(3);
  const pruned = outputs(0.7, 3);
  const affine = statisticsCorrection(
    { mean: [dense.mean], variance: [dense.variance] },
    { mean: [pruned.mean], variance: [pruned.variance] },
  );
  foldAffine(weights, bias, affine);
  const after = outputs(weights[0]!, bias[0]!);
  assert.ok(Math.abs(after.mean - dense.mean) < 1e-5);
  assert.ok(Math.abs(after.variance - dense.variance) < 1e-5);
});

test("statistics correction: channels without spread are only shifted, factors are bounded", () => {
  const dense = { mean: [1, 1, 1, 0, 5], variance: [4, 4, 0, 4, Number.NaN] };
  const pruned = { mean: [3, 3, 3, 0, 5], variance: [0, 1e-9, 0, 0.01, 1] };
  const { scale, shift } = statisticsCorrection(dense, pruned);
  assert.deepEqual([...scale], [1, 1, 1, 10, 1]);
  assert.deepEqual([...shift], [-2, -2, -2, 0, 0]);
});

test("statistics correction: zeros stay zeros, sizes are checked", () => {
  const weights = Float32Array.of(0, 2, 3, 0);
  const bias = Float32Array.of(1, 1);
  const affine = { scale: Float64Array.of(2, -1), shift: Float64Array.of(0.5, 0) };
  foldAffine(weights, bias, affine);
  assert.deepEqual([...weights].map(Math.abs), [0, 4, 3, 0]);
  assert.deepEqual([...bias], [2.5, -1]);
  assert.throws(() => foldAffine(new Float32Array(3), bias, affine), /expected 2 rows, got 3/);
  const one = { mean: [0], variance: [1] };
  assert.throws(() => statisticsCorrection(one, { mean: [], variance: [1] }), /pruned.mean/);
});
