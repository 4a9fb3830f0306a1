import assert from "node:assert/strict";
import { test } from "node:test";
import { admmMask, tryAdmmMask } from "../../agent/compress/admm.ts";
import { factorHessian } from "../../agent/compress/damping.ts";
import type { Pattern } from "../../agent/compress/pattern.ts";
import { refit } from "../../agent/compress/refit.ts";
import { sparseGpt } from "../../agent/compress/sparsegpt.ts";
import { randomLayer, zerosIn } from "./layer.helpers.ts";

const PATTERNS: readonly Pattern[] = [
  { kind: "unstructured", sparsity: 0.7 },
  { kind: "n:m", n: 2, m: 4 },
  { kind: "block", size: 4, sparsity: 0.5 },
];

test("admm: masks hold their share of zeros, and weights are zero where they say", async () => {
  const { W, H, rows, cols } = randomLayer(16, 32, 200, 7);
  for (const pattern of PATTERNS) {
    const found = await admmMask({ weights: W, rows, cols, H, pattern });
    const { kept, weights } = found;
    const share = pattern.kind === "n:m" ? pattern.n / pattern.m : pattern.sparsity;
    assert.equal(zerosIn(kept), Math.floor(share * kept.length + 1e-9), pattern.kind);
    kept.forEach((keeps, i) => {
      if (keeps === 0) assert.equal(weights[i], 0);
    });
    if (pattern.kind !== "n:m") continue;
    for (let i = 0; i < kept.length; i += 4) assert.equal(zerosIn(kept.slice(i, i + 4)), 2);
  }
});

test("admm: refitted, its masks lose less than a sweep's in the mean of many layers", async () => {
  for (const pattern of PATTERNS) {
    let [ours, sweeps] = [0, 0];
    for (let seed = 1; seed <= 8; seed++) {
      const { W, H, rows, cols } = randomLayer(24, 32, 300, seed);
      const { U, dead, damped } = await factorHessian(H, cols, 0.01);
      const fit = async (kept: Uint8Array, weights: Float64Array) =>
        (await refit({ target: W, weights, kept, rows, cols, H: damped })).loss;
      const found = await admmMask({ weights: W, rows, cols, H: damped, pattern });
      const weights = W.slice();
      const { kept } = await sparseGpt({ weights, rows, cols, U, dead, pattern });
      const sweep = await fit(kept, weights);
      ours += (await fit(found.kept, found.weights)) / sweep;
      sweeps += 1;
    }
    assert.ok(ours < 0.95 * sweeps, `${pattern.kind}: ${ours / sweeps} of the sweep's loss`);
  }
});

test("admm: dead inputs, few samples and huge activations give finite weights", async () => {
  for (const scale of [1, 1e12]) {
    const { W, X, rows, cols } = randomLayer(8, 32, 5, 9);
    const H = new Float64Array(cols * cols);
    for (let s = 0; s < X.length; s += cols) {
      for (let i = 0; i < cols; i++) {
        for (let j = 0; j < cols; j++) {
          if (i > 1 && j > 1) H[i * cols + j]! += scale * X[s + i]! * X[s + j]!;
        }
      }
    }
    const { damped } = await factorHessian(H, cols, 0.01);
    const pattern = PATTERNS[0]!;
    const found = await admmMask({ weights: W, rows, cols, H: damped, pattern });
    assert.ok(found.weights.every(Number.isFinite));
  }
});

test("admm: a Hessian that no penalty makes positive definite has no mask", async () => {
  const { W, H, rows, cols } = randomLayer(8, 32, 200, 9);
  for (let i = 0; i < cols; i++) for (let j = 0; j < cols; j++) if (i !== j) H[i * cols + j]! -= 99;
  const problem = { weights: W, rows, cols, H, pattern: PATTERNS[0]! };
  assert.equal(await tryAdmmMask(problem), undefined);
  await assert.rejects(admmMask(problem), /raise the damping/);
});
