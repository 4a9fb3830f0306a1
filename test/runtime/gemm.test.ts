import assert from "node:assert/strict";
import { test } from "node:test";
import { createLogger } from "../../agent/log.ts";
import { type Gemm, referenceGemm } from "../../agent/math/gemm.ts";
import { openGemm } from "../../agent/runtime/gemm.ts";

const config = { executionProviders: ["cpu"], intraOpThreads: 1, log: createLogger("silent") };

test("gemm: agrees with plain loops for every transpose and changing sizes", async () => {
  const engine = await openGemm(config);
  const gemm: Gemm = engine.gemm;
  for (const [m, depth, n] of [
    [1, 1, 1],
    [3, 5, 2],
    [17, 64, 33],
  ] as const) {
    for (const transA of [false, true]) {
      for (const transB of [false, true]) {
        const a = matrix(transA ? depth : m, transA ? m : depth, 1);
        const b = matrix(transB ? n : depth, transB ? depth : n, 2);
        const got = await gemm(a, b, { transA, transB });
        const want = await referenceGemm(a, b, { transA, transB });
        assert.equal(got.length, m * n);
        got.forEach((value, i) => {
          assert.ok(Math.abs(value - want[i]!) < 1e-4);
        });
      }
    }
  }
  await engine.release();
});

test("gemm: refuses sizes that do not fit", async () => {
  const engine = await openGemm(config);
  assert.throws(() => void engine.gemm(matrix(2, 3, 1), matrix(2, 3, 1)), RangeError);
  const short = { data: new Float32Array(5), rows: 2, cols: 3 };
  assert.throws(() => void engine.gemm(short, matrix(3, 1, 1)), RangeError);
  await engine.release();
});

function matrix(rows: number, cols: number, seed: number) {
  const data = Float32Array.from({ length: rows * cols }, (_, i) => ((i * 31 + seed) % 13) / 7 - 1);
  return { data, rows, cols };
}
