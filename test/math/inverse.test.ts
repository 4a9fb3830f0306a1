import assert from "node:assert/strict";
import { test } from "node:test";
import { choleskyInverse } from "../../agent/math/cholesky.ts";
import { referenceGemm } from "../../agent/math/gemm.ts";
import { invertInPlace } from "../../agent/math/inverse.ts";
import { createRandom } from "../../agent/math/random.ts";
import { squareOf } from "../../agent/math/square.ts";

/** A correlation matrix of few samples with a ridge, as the penalties of ADMM make it. */
function ridged(n: number, samples: number, ridge: number): Float32Array {
  const random = createRandom(n);
  const X = Float64Array.from({ length: samples * n }, () => random.normal() + 1);
  const A = new Float32Array(n * n);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < n; j++) {
      for (let s = 0; s < samples; s++) A[i * n + j]! += (X[s * n + i]! * X[s * n + j]!) / samples;
    }
  }
  const scale = Float64Array.from({ length: n }, (_, i) => 1 / Math.sqrt(A[i * (n + 1)]!));
  return A.map((a, at) => {
    const [i, j] = [Math.floor(at / n), at % n];
    return a * scale[i]! * scale[j]! + (i === j ? ridge : 0);
  });
}

test("inverse: in single precision it is the one of double precision to four digits", async () => {
  for (const n of [1, 7, 97, 230]) {
    const A = ridged(n, 20, 0.3);
    const exact = choleskyInverse(new Float64Array(A), n);
    assert.ok(exact);
    assert.equal(await invertInPlace(A, n, referenceGemm), true);
    const largest = exact.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    assert.ok(A.every((value, i) => Math.abs(value - exact[i]!) < 1e-4 * largest));
  }
});

test("inverse: says where a matrix is not positive definite, in any of its halves", async () => {
  for (const at of [0, 60, 119]) {
    const A = ridged(120, 20, 0.3);
    A[at * 121] = -1;
    assert.equal(await invertInPlace(A, 120, referenceGemm), false);
  }
  await assert.rejects(invertInPlace(new Float32Array(3), 2, referenceGemm), /4 elements, got 3/);
});

test("square: by panels it is what one product makes", async () => {
  for (const cols of [5, 2050]) {
    const random = createRandom(cols);
    const data = Float32Array.from({ length: 3 * cols }, () => random.normal());
    const X = { data, rows: 3, cols };
    const whole = await referenceGemm(X, X, { transA: true });
    assert.deepEqual(await squareOf(X, referenceGemm), whole);
  }
});
