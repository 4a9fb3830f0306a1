import assert from "node:assert/strict";
import { test } from "node:test";
import { factorHessian } from "../../agent/compress/damping.ts";
import { biasCorrection, centeredHessian, GramAccumulator } from "../../agent/compress/hessian.ts";
import { upperFactorOfInverse } from "../../agent/math/cholesky.ts";
import { gramOf, hessian, randomLayer, slowLoss, slowOutputError } from "./layer.helpers.ts";

test("Gram: batches of unequal size sum to the moments of all inputs", () => {
  const { X, H } = randomLayer(1, 7, 50, 1);
  const accumulator = new GramAccumulator(2, 7);
  for (const [start, end] of [
    [0, 20],
    [20, 21],
    [21, 50],
  ] as const) {
    const part = X.subarray(start * 7, end * 7);
    const one = gramOf(part, 7);
    const products = [...one.H, ...one.H].map((value) => (value * one.count) / 2);
    const sums = [...one.mean, ...one.mean].map((value) => value * one.count);
    accumulator.add(Float32Array.from(products), Float32Array.from(sums), one.count);
  }
  const gram = accumulator.finish();
  assert.equal(gram.count, 50);
  for (const [i, expected] of [...H, ...H].entries()) {
    assert.ok(Math.abs(gram.H[i]! - expected) < 1e-4 * Math.max(1, Math.abs(expected)));
  }
  for (let j = 0; j < 7; j++) {
    const mean = X.filter((_, i) => i % 7 === j).reduce((a, b) => a + b, 0) / 50;
    assert.ok(Math.abs(gram.mean[7 + j]! - mean) < 1e-5);
  }
});

test("Gram: goes through a checkpoint, damaged ones are refused", () => {
  const accumulator = new GramAccumulator(1, 2);
  accumulator.add(Float32Array.of(1, 2, 2, 5), Float32Array.of(3, 4), 2);
  const bytes = accumulator.toBytes();
  const again = GramAccumulator.fromBytes(bytes.subarray());
  assert.deepEqual(again.finish(), accumulator.finish());
  again.add(Float32Array.of(1, 0, 0, 1), Float32Array.of(1, 1), 1);
  assert.equal(again.count, 3);
  assert.equal(accumulator.count, 2);
  assert.throws(() => GramAccumulator.fromBytes(bytes.subarray(0, 40)), /got 40 others: remove/);
  assert.throws(() => GramAccumulator.fromBytes(new Uint8Array(80)), /Gram accumulator/);
  assert.throws(() => GramAccumulator.fromBytes(new Uint8Array(3)), /Gram accumulator/);
});

test("Gram: refuses nothing, wrong sizes and inputs that are not finite", () => {
  const accumulator = new GramAccumulator(1, 2);
  assert.throws(() => accumulator.finish(), /at least one batch/);
  assert.throws(() => accumulator.add(new Float32Array(3), new Float32Array(2), 1), /got 3/);
  assert.throws(() => accumulator.add(new Float32Array(4), new Float32Array(2), 0), /count/);
  accumulator.add(Float32Array.of(1, 0, 0, Number.NaN), Float32Array.of(1, 0), 1);
  assert.throws(() => accumulator.finish(), /got NaN in the Gram of column 1/);
  assert.throws(() => new GramAccumulator(0, 2), /groups: expected a positive integer, got 0/);
});

test("centered Hessian: is the quadratic of the layer with its best bias", () => {
  const { W, X, rows, cols } = randomLayer(3, 6, 40, 2);
  const { mean } = gramOf(X, cols);
  const after = W.map((w, i) => (i % 3 === 0 ? 0 : 1.1 * w));
  const bias = biasCorrection(W, after, mean);
  const best = slowOutputError(
    X,
    cols,
    { weights: after, bias },
    { weights: W, bias: new Float64Array(rows) },
  );
  const quadratic = slowLoss(after, W, centeredHessian(hessian(X, cols), mean));
  assert.ok(Math.abs(best - quadratic) < 1e-5 * best);
  for (const shift of [-0.1, 0.1]) {
    const other = { weights: after, bias: bias.map((b) => b + shift) };
    const error = slowOutputError(X, cols, other, { weights: W, bias: new Float64Array(rows) });
    assert.ok(error > best);
  }
});

test("centered Hessian: an input that is constant but for rounding counts as dead", async () => {
  const { X, cols } = randomLayer(1, 5, 60, 3);
  for (let s = 0; s < 60; s++) X[s * cols + 2] = 1000.001;
  const gram = gramOf(X, cols);
  const centered = centeredHessian(gram.H, gram.mean);
  const { dead, damping } = await factorHessian(centered, cols, 0.01);
  assert.deepEqual([...dead], [0, 0, 1, 0, 0]);
  assert.equal(damping, 0.01);
});

test("damping: gives U of H + λI with λ a share of the mean diagonal", async () => {
  const { H, cols } = randomLayer(1, 9, 30, 4);
  const result = await factorHessian(H, cols, 0.05);
  let trace = 0;
  for (let j = 0; j < cols; j++) trace += H[j * (cols + 1)]!;
  assert.ok(Math.abs(result.lambda - (0.05 * trace) / cols) < 1e-12);
  const expected = upperFactorOfInverse(H, cols, result.lambda);
  assert.ok(expected?.every((value, i) => Math.abs(value - result.U[i]!) < 1e-9));
});

test("damping: is raised tenfold where the inputs do not span, and the result says so", async () => {
  const { H, cols } = randomLayer(1, 20, 6, 5);
  const result = await factorHessian(H, cols, 0);
  assert.ok(result.damping >= 1e-8 && result.damping < 1e-2);
  assert.ok(result.U.every(Number.isFinite));
  assert.equal((await factorHessian(H, cols, 0.01)).damping, 0.01);
});

test("damping: dead inputs, huge activations, one sample: finite factors", async () => {
  const one = hessian(Float64Array.of(1, 0, 2e18, -3e-12), 4);
  const nothing = new Float64Array(16);
  for (const H of [one, nothing]) {
    const { U, damped, damping } = await factorHessian(H, 4, 0.01);
    assert.equal(damping, 0.01);
    assert.ok(U.every(Number.isFinite));
    assert.ok(damped.every(Number.isFinite));
  }
});

test("damping: refuses what no damping can mend", async () => {
  const wrong = Float64Array.of(1, 99, 99, 1);
  await assert.rejects(factorHessian(wrong, 2, 0.01), /positive semidefinite matrix/);
  await assert.rejects(factorHessian(Float64Array.of(Number.NaN), 1, 0.01), /NaN in column 0/);
  await assert.rejects(factorHessian(wrong, 2, -1), /damping: expected 0 or more, got -1/);
});
