import assert from "node:assert/strict";
import { test } from "node:test";
import { quantizeLayer } from "../../agent/compress/quantize-layer.ts";
import { fitQuantizer } from "../../agent/compress/quantizer.ts";
import { storeLayer } from "../../agent/compress/store-layer.ts";
import { gramOf, randomLayer } from "./layer.helpers.ts";

const [ROWS, COLS] = [10, 96];
const layer = randomLayer(ROWS, COLS, 600, 5);
const gram = gramOf(layer.X, COLS);
const common = { rows: ROWS, cols: COLS, gram };

/** Weights of which one block of 32 in each row is much larger than the others. */
function unevenWeights(): Float32Array {
  return Float32Array.from(layer.W, (w, i) => {
    const [r, block] = [Math.floor(i / COLS), Math.floor((i % COLS) / 32)];
    return block === r % 3 ? 12 * w : w;
  });
}

test("quantizer: blocks of a row are rows to it, with the importance of their columns", () => {
  const importance = Float64Array.from({ length: COLS }, (_, j) => 1 + (j % 7));
  const one = fitQuantizer(layer.W, ROWS, COLS, { bits: 3, importance, gridSize: 32 });
  for (let block = 0; block < 3; block++) {
    const part = Float64Array.from({ length: ROWS * 32 }, (_, i) => {
      return layer.W[Math.floor(i / 32) * COLS + block * 32 + (i % 32)]!;
    });
    const weighed = importance.subarray(block * 32, (block + 1) * 32);
    const other = fitQuantizer(part, ROWS, 32, { bits: 3, importance: weighed });
    for (let r = 0; r < ROWS; r++) assert.equal(one.scale[r * 3 + block], other.scale[r]);
  }
  assert.throws(
    () => fitQuantizer(layer.W, ROWS, COLS, { bits: 3, gridSize: 36 }),
    /divisor of 96/,
  );
});

test("quantize layer: codes on blocks say what the weights are, and lose less than rounding", async () => {
  const weights = unevenWeights().map((w, i) => (i % 4 === 0 ? 0 : w));
  for (const symmetric of [true, false]) {
    const quantizer = { bits: 4, symmetric, narrow: false, gridSize: 32 };
    const solved = await quantizeLayer({ ...common, weights, quantizer });
    for (const [i, w] of solved.weights.entries()) {
      const block = Math.floor(i / 32);
      const value = solved.scale[block]! * (solved.codes[i]! - solved.zero[block]!);
      assert.ok(Math.abs(w - value) < 1e-6 * Math.max(1, Math.abs(value)));
      if (weights[i] === 0) assert.equal(solved.codes[i], solved.zero[block]);
    }
    assert.ok(solved.loss < solved.roundingLoss);
  }
});

test("store layer: more scales where the weights of a row differ, one where they do not", async () => {
  const even = await storeLayer({ ...common, weights: Float32Array.from(layer.W), bits: 4 });
  const uneven = await storeLayer({ ...common, weights: unevenWeights(), bits: 4 });
  assert.equal(even.gridSize, COLS);
  assert.equal(uneven.gridSize, 32);
  const row = { bits: 4, narrow: false };
  const byRow = await quantizeLayer({ ...common, weights: unevenWeights(), quantizer: row });
  assert.ok(uneven.loss < byRow.loss / 4, `${uneven.loss}, ${byRow.loss}`);
});

test("store layer: weights mostly of one sign get a zero of their own, many zeros a common one", async () => {
  const positive = Float32Array.from(layer.W, (w) => Math.abs(w));
  const asymmetric = await storeLayer({ ...common, weights: positive, bits: 3 });
  assert.ok(asymmetric.zero.every((zero) => zero < 0));
  const sparse = positive.map((w, i) => (i % 2 === 0 ? 0 : w));
  const { zero, codes } = await storeLayer({ ...common, weights: sparse, bits: 3 });
  assert.ok(zero.every((code) => code === 0));
  assert.ok(sparse.every((w, i) => w !== 0 || codes[i] === 0));
});
