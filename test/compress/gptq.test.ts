import assert from "node:assert/strict";
import { test } from "node:test";
import { factorHessian } from "../../agent/compress/damping.ts";
import { gptq } from "../../agent/compress/gptq.ts";
import { fitQuantizer } from "../../agent/compress/quantizer.ts";
import { createRandom } from "../../agent/math/random.ts";
import { closeTo, hessian, randomLayer, slowLoss } from "./layer.helpers.ts";

/** Of the given row alone. */
function rowLoss(A: Float64Array, B: Float64Array, row: number, H: Float64Array): number {
  const cols = Math.sqrt(H.length);
  const [from, to] = [row * cols, (row + 1) * cols];
  return slowLoss(A.subarray(from, to), B.subarray(from, to), H);
}

for (const seed of [1, 2, 3]) {
  test(`gptq: no row is worse than rounded, at any bits and in any order (seed ${seed})`, async () => {
    const random = createRandom(seed);
    const [rows, cols] = [2 + random.integer(6), 4 + random.integer(30)];
    const { W, H } = randomLayer(rows, cols, 2 + random.integer(100), 30 + seed);
    const hessianOfLayer = await factorHessian(H, cols, 0.01);
    const { damped } = hessianOfLayer;
    for (const bits of [2, 3, 4, 8]) {
      for (const symmetric of [true, false]) {
        const quantizer = fitQuantizer(W, rows, cols, { bits, symmetric });
        const rounded = W.map((w, i) => {
          const r = Math.floor(i / cols);
          const [scale, zero] = [quantizer.scale[r]!, quantizer.zero[r]!];
          const code = Math.round(w / scale) + zero;
          const { lowest, highest } = quantizer;
          return scale * (Math.max(lowest, Math.min(highest, code)) - zero);
        });
        for (const activationOrder of [true, false]) {
          for (const descents of [0, 2]) {
            const common = { weights: W, rows, cols, hessian: hessianOfLayer, quantizer };
            const solved = await gptq({ ...common, activationOrder, descents });
            for (let r = 0; r < rows; r++) {
              const [ours, plain] = [solved.weights, rounded].map((A) => rowLoss(A, W, r, damped));
              assert.ok(ours! <= plain! * (1 + 1e-9), `row ${r}: ${ours} against ${plain}`);
            }
            assert.ok(closeTo(solved.loss, slowLoss(solved.weights, W, damped), 1e-9));
            assert.ok(closeTo(solved.roundingLoss, slowLoss(rounded, W, damped), 1e-9));
          }
        }
      }
    }
  });
}

test("gptq: awkward statistics and weights give finite codes within the grid", async () => {
  const [rows, cols] = [3, 12];
  const { W, X } = randomLayer(rows, cols, 40, 9);
  const inputs: Record<string, Float64Array> = {
    "one sample": X.subarray(0, cols),
    "fewer samples than columns": X.subarray(0, 5 * cols),
    "dead inputs": X.map((x, i) => (i % cols < 3 ? 0 : x)),
    "constant inputs": X.map((x, i) => (i % cols === 5 ? 7 : x)),
    "huge activations": X.map((x, i) => (i % cols === 4 ? 1e12 * x : x)),
    "nothing at all": new Float64Array(X.length),
  };
  const weights = { usual: W, "a row of zeros": W.map((w, i) => (i < cols ? 0 : w)) };
  for (const [name, samples] of Object.entries(inputs)) {
    const factored = await factorHessian(hessian(samples, cols), cols, 0.01);
    for (const [kind, target] of Object.entries(weights)) {
      for (const activationOrder of [true, false]) {
        const quantizer = fitQuantizer(target, rows, cols, { bits: 4 });
        const problem = { weights: target, rows, cols, hessian: factored, quantizer };
        const solved = await gptq({ ...problem, activationOrder, fitScale: true });
        const what = `${name}, ${kind}`;
        assert.ok(solved.weights.every(Number.isFinite) && Number.isFinite(solved.loss), what);
        assert.ok(
          solved.quantizer.scale.every((s) => s > 0 && Number.isFinite(s)),
          what,
        );
        assert.ok(
          solved.codes.every((c) => c >= quantizer.lowest && c <= quantizer.highest),
          what,
        );
        assert.ok(solved.loss <= solved.roundingLoss * (1 + 1e-9), what);
      }
    }
  }
});
