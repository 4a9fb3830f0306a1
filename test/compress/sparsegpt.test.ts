import assert from "node:assert/strict";
import { test } from "node:test";
import { factorHessian } from "../../agent/compress/damping.ts";
import type { Pattern } from "../../agent/compress/pattern.ts";
import { sparseGpt } from "../../agent/compress/sparsegpt.ts";
import { choleskyInverse } from "../../agent/math/cholesky.ts";
import { type Gemm, referenceGemm } from "../../agent/math/gemm.ts";
import { createRandom } from "../../agent/math/random.ts";
import { closeTo, type RandomLayer, randomLayer, slowLoss, zerosIn } from "./layer.helpers.ts";

const HALF: Pattern = { kind: "unstructured", sparsity: 0.5 };

function factored(layer: RandomLayer, damping = 0.01) {
  return factorHessian(layer.H, layer.cols, damping);
}

/**
 * The slow oracle: optimal brain surgeon, one weight after the other from the left, the inverse of
 * the Hessian of what is left recomputed from scratch each time. δ = −w_p/[H⁻¹]_pp · H⁻¹_:p, and the
 * step costs ½·w_p²/[H⁻¹]_pp. Columns already decided on, kept or not, stay as they are.
 */
function slowSurgeon(W: Float64Array, H: Float64Array, cols: number, kept: Uint8Array) {
  const weights = W.slice();
  let loss = 0;
  for (let p = 0; p < cols; p++) {
    const left = cols - p;
    const rest = new Float64Array(left * left);
    for (let i = 0; i < left; i++) {
      for (let j = 0; j < left; j++) rest[i * left + j] = H[(p + i) * cols + p + j]!;
    }
    const inverse = choleskyInverse(rest, left);
    assert.ok(inverse);
    for (let r = 0; r < W.length; r += cols) {
      if (kept[r + p] === 1) continue;
      const factor = weights[r + p]! / inverse[0]!;
      loss += 0.5 * weights[r + p]! * factor;
      for (let j = 0; j < left; j++) weights[r + p + j]! -= factor * inverse[j]!;
      weights[r + p] = 0;
    }
  }
  return { weights, loss };
}

for (const blockSize of [1, 7, 16, 40]) {
  test(`SparseGPT: block ${blockSize} equals the optimal brain surgeon step by step`, async () => {
    const layer = randomLayer(5, 40, 100, 3);
    const { U, damped } = await factored(layer);
    const random = createRandom(9);
    const kept = new Uint8Array(200).map(() => random.integer(2));
    const weights = layer.W.slice();
    const pattern = { kind: "mask", kept } as const;
    const result = await sparseGpt({ ...layer, weights, U, pattern, blockSize });
    const slow = slowSurgeon(layer.W, damped, 40, kept);
    assert.ok(weights.every((w, i) => Math.abs(w - slow.weights[i]!) < 1e-9));
    assert.ok(closeTo(result.loss, slow.loss, 1e-10));
    assert.deepEqual(result.kept, kept);
  });
}

for (const seed of [1, 2, 3, 4, 5]) {
  test(`SparseGPT: the losses of all steps sum to the true increase (seed ${seed})`, async () => {
    const random = createRandom(seed);
    const rows = 1 + random.integer(8);
    const cols = 3 + random.integer(40);
    const layer = randomLayer(rows, cols, 2 + random.integer(80), seed);
    const { U, damped } = await factored(layer);
    const m = 1 + random.integer(6);
    const patterns: Pattern[] = [
      { kind: "unstructured", sparsity: random.uniform() },
      { kind: "n:m", n: random.integer(m + 1), m },
    ];
    for (const pattern of patterns) {
      const weights = layer.W.slice();
      const blockSize = 1 + random.integer(cols);
      const { loss } = await sparseGpt({ ...layer, weights, U, pattern, blockSize });
      assert.ok(closeTo(loss, slowLoss(weights, layer.W, damped), 1e-9) || loss < 1e-15);
    }
  });
}

test("SparseGPT: exactly ⌊sparsity·count⌋ zeros in every block", async () => {
  const layer = randomLayer(7, 29, 60, 5);
  const { U } = await factored(layer);
  for (const sparsity of [0, 0.29, 0.5, 0.731, 0.99, 1]) {
    const weights = layer.W.slice();
    const pattern: Pattern = { kind: "unstructured", sparsity };
    const { kept } = await sparseGpt({ ...layer, weights, U, pattern, blockSize: 10 });
    for (const [start, end] of [
      [0, 10],
      [10, 20],
      [20, 29],
    ] as const) {
      const inBlock = weights.filter((_, i) => i % 29 >= start && i % 29 < end);
      assert.equal(zerosIn(inBlock), Math.floor(sparsity * 7 * (end - start) + 1e-9));
    }
    assert.ok(kept.every((k, i) => (k === 0) === (weights[i] === 0)));
  }
});

test("SparseGPT: equal scores still give the exact count", async () => {
  const weights = new Float64Array(4 * 8).fill(1);
  const U = new Float64Array(64);
  for (let j = 0; j < 8; j++) U[j * 9] = 1;
  await sparseGpt({ weights, rows: 4, cols: 8, U, pattern: HALF });
  assert.equal(zerosIn(weights), 16);
});

test("SparseGPT: zero sparsity changes nothing", async () => {
  const layer = randomLayer(4, 20, 50, 6);
  for (let i = 0; i < 20; i++) {
    layer.H[i * 20 + 3] = 0;
    layer.H[3 * 20 + i] = 0;
  }
  const { U, dead } = await factored(layer);
  assert.equal(dead[3], 1, "not even the weights of a dead input");
  for (const pattern of [
    { kind: "unstructured", sparsity: 0 },
    { kind: "n:m", n: 0, m: 4 },
  ] as const) {
    const weights = layer.W.slice();
    const { loss } = await sparseGpt({ ...layer, weights, U, dead, pattern });
    assert.deepEqual(weights, layer.W);
    assert.equal(loss, 0);
  }
});

test("SparseGPT: N zeros in every M, ⌊N·r/M⌋ in the r that remain, none across taps", async () => {
  const layer = randomLayer(6, 33, 80, 7);
  const { U } = await factored(layer);
  const weights = layer.W.slice();
  const pattern: Pattern = { kind: "n:m", n: 2, m: 4 };
  await sparseGpt({ ...layer, weights, U, pattern, span: 11, blockSize: 5 });
  for (let row = 0; row < weights.length; row += 33) {
    for (let tap = 0; tap < 33; tap += 11) {
      const zeros = [0, 4, 8].map((at) => {
        const end = Math.min(11, at + 4);
        return zerosIn(weights.subarray(row + tap + at, row + tap + end));
      });
      assert.deepEqual(zeros, [2, 2, 1]);
    }
  }
});

test("SparseGPT: dead inputs go first wherever they lie, at no cost", async () => {
  const layer = randomLayer(5, 24, 60, 8);
  const deadColumns = [0, 11, 23];
  for (const j of deadColumns) {
    for (let i = 0; i < 24; i++) {
      layer.H[i * 24 + j] = 0;
      layer.H[j * 24 + i] = 0;
    }
  }
  const { U, dead, damping } = await factored(layer);
  assert.equal(damping, 0.01);
  assert.deepEqual(
    Array.from(dead.keys()).filter((j) => dead[j] === 1),
    deadColumns,
  );
  const weights = layer.W.slice();
  const pattern: Pattern = { kind: "unstructured", sparsity: 3 / 24 };
  const { loss } = await sparseGpt({ ...layer, weights, U, dead, pattern });
  assert.equal(loss, 0);
  for (const j of deadColumns) for (let r = 0; r < 5; r++) assert.equal(weights[r * 24 + j], 0);
  assert.equal(zerosIn(weights), 15);
});

test("SparseGPT: the lazy update through a supplied product gives the same", async () => {
  const layer = randomLayer(12, 400, 300, 9);
  const { U } = await factored(layer);
  const [plain, supplied] = [layer.W.slice(), layer.W.slice()];
  let calls = 0;
  const gemm: Gemm = (a, b, options) => {
    calls++;
    return referenceGemm(a, b, options);
  };
  const alone = await sparseGpt({ ...layer, weights: plain, U, pattern: HALF, blockSize: 256 });
  const { kept } = alone;
  const pattern = { kind: "mask", kept } as const;
  await sparseGpt({ ...layer, weights: supplied, U, pattern, blockSize: 256, gemm });
  assert.equal(calls, 0, "too small to be worth a call");
  const wide = randomLayer(400, 400, 300, 9);
  const wideU = (await factored(wide)).U;
  const first = wide.W.slice();
  const second = wide.W.slice();
  const one = await sparseGpt({ ...wide, weights: first, U: wideU, pattern: HALF });
  const mask = { kind: "mask", kept: one.kept } as const;
  await sparseGpt({ ...wide, weights: second, U: wideU, pattern: mask, gemm });
  assert.ok(calls > 0);
  assert.ok(first.every((w, i) => Math.abs(w - second[i]!) < 1e-4));
  assert.deepEqual(plain, supplied);
});

test("SparseGPT: gives way to the event loop and stops at an aborted signal", async () => {
  const layer = randomLayer(4, 40, 60, 10);
  const { U } = await factored(layer);
  const stop = new AbortController();
  let blocks = 0;
  const timer = setInterval(() => {
    blocks++;
  }, 0);
  const weights = layer.W.slice();
  setImmediate(() => setImmediate(() => stop.abort(new Error("enough"))));
  const run = sparseGpt({ ...layer, weights, U, pattern: HALF, blockSize: 1, signal: stop.signal });
  await assert.rejects(run, /enough/);
  clearInterval(timer);
  assert.ok(blocks < 40);
});

test("SparseGPT: refuses what does not fit", async () => {
  const layer = randomLayer(2, 4, 10, 11);
  const { U } = await factored(layer);
  const problem = { ...layer, weights: layer.W, U, pattern: HALF };
  await assert.rejects(sparseGpt({ ...problem, rows: 3 }), /weights: expected 12 elements, got 8/);
  await assert.rejects(sparseGpt({ ...problem, U: new Float64Array(16) }), /positive diagonal/);
  await assert.rejects(sparseGpt({ ...problem, blockSize: 0 }), /blockSize: .* got 0/);
  const wrong: Pattern = { kind: "unstructured", sparsity: 1.5 };
  await assert.rejects(sparseGpt({ ...problem, pattern: wrong }), /\[0, 1\], got 1.5/);
  const odd: Pattern = { kind: "n:m", n: 5, m: 4 };
  await assert.rejects(sparseGpt({ ...problem, pattern: odd }), /got 5:4/);
});
