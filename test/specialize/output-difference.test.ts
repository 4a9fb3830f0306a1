import assert from "node:assert/strict";
import { test } from "node:test";
import { compareOutputs } from "../../agent/specialize/output-difference.ts";

const outputs = (rows: number[][]) => ({
  data: Float32Array.from(rows.flat()),
  rows: rows.length,
  width: rows[0]!.length,
});

test("output difference: error, divergence and agreement as written down by hand", () => {
  const dense = outputs([
    [3, 0],
    [0, 4],
  ]);
  const other = outputs([
    [3, 1],
    [2, 1],
  ]);
  const { relativeError, divergence, agreement } = compareOutputs(dense, other);
  assert.ok(Math.abs(relativeError - (1 + 4 + 9) / 25) < 1e-9);
  assert.equal(agreement, 0.5);
  const softmax = ([a, b]: number[]) => [1 / (1 + Math.exp(b! - a!)), 1 / (1 + Math.exp(a! - b!))];
  const kl = (p: number[], q: number[]) => p.reduce((s, v, i) => s + v * Math.log(v / q[i]!), 0);
  const first = kl(softmax([3, 0]), softmax([3, 1]));
  const second = kl(softmax([0, 4]), softmax([2, 1]));
  assert.ok(Math.abs(divergence - (first + second) / 2) < 1e-9);
});

test("output difference: nothing between equals, a shift of all logits is no divergence", () => {
  const dense = outputs([[100, -100, 3]]);
  const none = compareOutputs(dense, dense);
  assert.deepEqual(none, { relativeError: 0, divergence: 0, agreement: 1 });
  const shifted = compareOutputs(dense, outputs([[105, -95, 8]]));
  assert.ok(Math.abs(shifted.divergence) < 1e-9);
  assert.ok(shifted.relativeError > 0);
  assert.throws(() => compareOutputs(dense, outputs([[1, 2]])), /1×3 and 1×2/);
});
