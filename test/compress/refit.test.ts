import assert from "node:assert/strict";
import { test } from "node:test";
import { magnitudeMask, wandaMask } from "../../agent/compress/baselines.ts";
import { factorHessian } from "../../agent/compress/damping.ts";
import type { Pattern } from "../../agent/compress/pattern.ts";
import { quadraticLoss, refit } from "../../agent/compress/refit.ts";
import { sparseGpt } from "../../agent/compress/sparsegpt.ts";
import { choleskyInverse } from "../../agent/math/cholesky.ts";
import { type Gemm, referenceGemm } from "../../agent/math/gemm.ts";
import { closeTo, randomLayer, slowLoss, zerosIn } from "./layer.helpers.ts";

/** w_K = W·H_:K·(H_KK)⁻¹ for one row, by the normal equations. */
function slowRow(W: Float64Array, H: Float64Array, kept: Uint8Array): Float64Array {
  const cols = W.length;
  const K = Array.from(kept.keys()).filter((j) => kept[j] === 1);
  const HKK = Float64Array.from(K.flatMap((i) => K.map((j) => H[i * cols + j]!)));
  const inverse = choleskyInverse(HKK, K.length);
  assert.ok(inverse);
  const right = K.map((k) => W.reduce((sum, w, j) => sum + w * H[j * cols + k]!, 0));
  const out = new Float64Array(cols);
  for (const [a, k] of K.entries()) {
    out[k] = right.reduce((sum, value, b) => sum + value * inverse[b * K.length + a]!, 0);
  }
  return out;
}

test("refit: reaches the normal equations of every row from any start", async () => {
  const { W, H, rows, cols } = randomLayer(6, 30, 90, 1);
  const kept = magnitudeMask(W, rows, cols, { kind: "unstructured", sparsity: 0.6 });
  const weights = W.map((w, i) => w * kept[i]!);
  const { damped } = await factorHessian(H, cols, 0.01);
  const problem = { target: W, weights, kept, rows, cols, H: damped };
  const result = await refit({ ...problem, tolerance: 1e-10, maxIterations: 500 });
  let direct = 0;
  for (let r = 0; r < rows; r++) {
    const own = W.subarray(r * cols, (r + 1) * cols);
    const expected = slowRow(own, damped, kept.subarray(r * cols, (r + 1) * cols));
    const actual = weights.subarray(r * cols, (r + 1) * cols);
    assert.ok(actual.every((w, j) => Math.abs(w - expected[j]!) < 1e-6));
    direct += slowLoss(expected, own, damped);
  }
  assert.ok(closeTo(result.loss, direct, 1e-9));
  const byDefault = W.map((w, i) => w * kept[i]!);
  const { loss } = await refit({ ...problem, weights: byDefault });
  assert.ok(closeTo(loss, direct, 1e-4), "the default tolerance is enough");
});

for (const seed of [1, 2, 3, 4, 5, 6]) {
  test(`refit: SparseGPT's mask with least squares is never worse (seed ${seed})`, async () => {
    const { W, H, rows, cols } = randomLayer(3 + seed, 10 * seed, 5 + 20 * seed, seed);
    const { U, dead, damped } = await factorHessian(H, cols, seed % 2 ? 0.01 : 1e-4);
    const patterns: Pattern[] = [
      { kind: "unstructured", sparsity: 0.1 + 0.14 * seed },
      { kind: "n:m", n: 2, m: 4 },
    ];
    for (const pattern of patterns) {
      const weights = W.slice();
      const solved = await sparseGpt({ weights, rows, cols, U, dead, pattern, blockSize: 8 });
      const zeros = zerosIn(weights);
      const { kept } = solved;
      const result = await refit({ target: W, weights, kept, rows, cols, H: damped });
      assert.ok(closeTo(result.lossBefore, solved.loss, 1e-8));
      assert.ok(result.loss <= result.lossBefore);
      assert.ok(closeTo(result.loss, slowLoss(weights, W, damped), 1e-8));
      assert.equal(zerosIn(weights), zeros);
    }
  });
}

test("refit: SparseGPT's mask loses less than Wanda's, and that less than magnitude's", async () => {
  const { W, H, rows, cols } = randomLayer(24, 64, 300, 12);
  const { U, damped } = await factorHessian(H, cols, 0.01);
  const pattern: Pattern = { kind: "unstructured", sparsity: 0.6 };
  const loss = async (kept: Uint8Array) => {
    const weights = W.map((w, i) => w * kept[i]!);
    return (await refit({ target: W, weights, kept, rows, cols, H: damped })).loss;
  };
  const { kept } = await sparseGpt({ weights: W.slice(), rows, cols, U, pattern });
  const wanda = await loss(wandaMask(W, rows, cols, H, pattern));
  const magnitude = await loss(magnitudeMask(W, rows, cols, pattern));
  assert.ok((await loss(kept)) < wanda);
  assert.ok(wanda < magnitude);
});

test("refit: a rough product never makes a row worse", async () => {
  const { W, H, rows, cols } = randomLayer(300, 180, 260, 13);
  const { U, damped } = await factorHessian(H, cols, 0.01);
  const weights = W.slice();
  const pattern: Pattern = { kind: "unstructured", sparsity: 0.5 };
  const { kept } = await sparseGpt({ weights, rows, cols, U, pattern });
  // An engine that keeps three digits.
  const rough: Gemm = async (a, b, options) => {
    const out = await referenceGemm(a, b, options);
    return out.map((value) => Number(value.toPrecision(3))) as typeof out;
  };
  const before = slowLoss(weights, W, damped);
  const result = await refit({ target: W, weights, kept, rows, cols, H: damped, gemm: rough });
  assert.ok(slowLoss(weights, W, damped) <= before);
  assert.ok(result.loss <= result.lossBefore);
});

test("refit: empty masks, full masks and a Hessian of zeros are left alone", async () => {
  const { W, H, rows, cols } = randomLayer(3, 8, 30, 14);
  const nothing = new Float64Array(24);
  const problem = { target: W, rows, cols, H };
  await refit({ ...problem, weights: nothing, kept: new Uint8Array(24) });
  assert.deepEqual(nothing, new Float64Array(24));
  const all = W.slice();
  await refit({ ...problem, weights: all, kept: new Uint8Array(24).fill(1) });
  assert.deepEqual(all, W);
  const half = W.map((w, i) => w * (i % 2));
  const flat = { ...problem, H: new Float64Array(64) };
  await refit({ ...flat, weights: half, kept: new Uint8Array(24).map((_, i) => i % 2) });
  assert.ok(half.every((w, i) => w === W[i]! * (i % 2)));
  assert.equal(await quadraticLoss(W, W, rows, H), 0);
});

test("refit: an aborted signal ends it", async () => {
  const { W, H, rows, cols } = randomLayer(3, 8, 30, 15);
  const kept = magnitudeMask(W, rows, cols, { kind: "unstructured", sparsity: 0.5 });
  const weights = W.map((w, i) => w * kept[i]!);
  const signal = AbortSignal.abort(new Error("stop"));
  await assert.rejects(refit({ target: W, weights, kept, rows, cols, H, signal }), /stop/);
});
