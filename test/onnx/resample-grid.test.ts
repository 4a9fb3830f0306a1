import assert from "node:assert/strict";
import { test } from "node:test";
import { resampleGrid } from "../../agent/onnx/resample-grid.ts";
import { largestDifference, randomValues } from "./run-graph.helpers.ts";

const FLAT = { outer: 1, inner: 1 };

test("grid: nothing changes where the size stays", () => {
  const values = randomValues(2 * 3 * 4 * 5, 1);
  assert.deepEqual(resampleGrid(values, { outer: 2, inner: 5 }, [3, 4], [3, 4]), values);
});

test("grid: a constant stays the same constant at any size", () => {
  const flat = new Float32Array(14 * 14).fill(0.75);
  for (const to of [
    [5, 9],
    [14, 20],
    [1, 1],
  ] as const) {
    const result = resampleGrid(flat, FLAT, [14, 14], to);
    assert.ok(largestDifference(result, new Float32Array(to[0] * to[1]).fill(0.75)) < 1e-6);
  }
});

test("grid: agrees with a plain double sum over the kernel, down and up", () => {
  const [rows, columns, inner] = [7, 6, 3];
  const values = randomValues(rows * columns * inner, 2);
  for (const [tall, wide] of [
    [4, 5],
    [11, 6],
    [7, 9],
  ] as const) {
    const result = resampleGrid(values, { outer: 1, inner }, [rows, columns], [tall, wide]);
    const slow = new Float32Array(tall * wide * inner);
    for (let y = 0; y < tall; y++) {
      for (let x = 0; x < wide; x++) {
        for (let c = 0; c < inner; c++) {
          let [sum, total] = [0, 0];
          for (let sy = 0; sy < rows; sy++) {
            for (let sx = 0; sx < columns; sx++) {
              const weight = keys(y, sy, rows / tall) * keys(x, sx, columns / wide);
              sum += weight * values[(sy * columns + sx) * inner + c]!;
              total += weight;
            }
          }
          slow[(y * wide + x) * inner + c] = sum / total;
        }
      }
    }
    assert.ok(largestDifference(result, slow) < 1e-5);
  }
});

/** Weight of a source point for a new one, by Keys' kernel stretched where points are dropped. */
function keys(place: number, source: number, scale: number): number {
  const distance = Math.abs((place + 0.5) * scale - 0.5 - source) / Math.max(scale, 1);
  if (distance < 1) return 1.5 * distance ** 3 - 2.5 * distance ** 2 + 1;
  if (distance < 2) return -0.5 * distance ** 3 + 2.5 * distance ** 2 - 4 * distance + 2;
  return 0;
}

test("grid: refuses values that do not fill the grid", () => {
  assert.throws(() => resampleGrid(new Float32Array(5), FLAT, [2, 3], [1, 1]), /2 × 3/);
});
