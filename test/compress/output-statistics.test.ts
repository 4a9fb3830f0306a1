import assert from "node:assert/strict";
import { test } from "node:test";
import { outputStatistics } from "../../agent/compress/output-statistics.ts";
import { closeTo, gramOf, randomLayer } from "./layer.helpers.ts";

test("output statistics: are the mean and variance of the outputs themselves", async () => {
  const { W, X, rows, cols, samples } = randomLayer(4, 9, 120, 1);
  const bias = Float32Array.of(1, -2, 0, 5);
  const gram = gramOf(X, cols);
  const { mean, variance } = await outputStatistics(Float32Array.from(W), bias, gram);
  for (let r = 0; r < rows; r++) {
    const y = Float64Array.from({ length: samples }, (_, s) => {
      let sum = bias[r]!;
      for (let j = 0; j < cols; j++) sum += W[r * cols + j]! * X[s * cols + j]!;
      return sum;
    });
    const level = y.reduce((a, b) => a + b, 0) / samples;
    const spread = y.reduce((a, b) => a + (b - level) ** 2, 0) / samples;
    assert.ok(closeTo(mean[r]!, level, 1e-4));
    assert.ok(closeTo(variance[r]!, spread, 1e-4));
  }
});
