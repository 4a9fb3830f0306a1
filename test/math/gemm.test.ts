import assert from "node:assert/strict";
import { test } from "node:test";
import {
  type Gemm,
  multiplyPrepared,
  prepareOperand,
  referenceGemm,
} from "../../agent/math/gemm.ts";
import { createRandom } from "../../agent/math/random.ts";

function matrix(rows: number, cols: number, seed: number) {
  const random = createRandom(seed);
  return { data: new Float32Array(rows * cols).map(() => random.normal()), rows, cols };
}

for (const transA of [false, true]) {
  for (const transB of [false, true]) {
    test(`reference product: transA ${transA}, transB ${transB} agrees with three loops`, async () => {
      for (const [m, n, depth] of [
        [1, 1, 1],
        [7, 5, 3],
        [66, 131, 300],
      ] as const) {
        const a = transA ? matrix(depth, m, 1) : matrix(m, depth, 1);
        const b = transB ? matrix(n, depth, 2) : matrix(depth, n, 2);
        const out = await referenceGemm(a, b, { transA, transB });
        for (let i = 0; i < m; i++) {
          for (let j = 0; j < n; j++) {
            let sum = 0;
            for (let k = 0; k < depth; k++) {
              const left = transA ? a.data[k * m + i]! : a.data[i * depth + k]!;
              sum += left * (transB ? b.data[j * depth + k]! : b.data[k * n + j]!);
            }
            assert.ok(Math.abs(out[i * n + j]! - sum) < 1e-5);
          }
        }
      }
    });
  }
}

test("reference product: refuses sizes that do not fit", () => {
  assert.throws(() => referenceGemm(matrix(2, 3, 1), matrix(2, 3, 1)), /inner sizes, got 2×3/);
  const short = { data: new Float32Array(5), rows: 2, cols: 3 };
  assert.throws(() => referenceGemm(short, matrix(3, 2, 1)), /a: expected 6 elements, got 5/);
});

test("prepared product: the supplied engine gives what plain doubles give", async () => {
  const random = createRandom(3);
  const A = new Float64Array(220 * 210).map(() => random.normal());
  const B = new Float64Array(200 * 210).map(() => random.normal());
  let served = 0;
  const gemm: Gemm = (a, b, options) => {
    served += a.rows * b.rows;
    return referenceGemm(a, b, options);
  };
  const exact = await multiplyPrepared(A, 220, prepareOperand(B, 200, 210, 220));
  const rough = await multiplyPrepared(A, 220, prepareOperand(B, 200, 210, 220, gemm), gemm);
  assert.equal(served, 220 * 200);
  assert.ok(exact.every((value, i) => Math.abs(value - rough[i]!) < 1e-4));
});
