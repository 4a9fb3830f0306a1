import assert from "node:assert/strict";
import { test } from "node:test";
import {
  cholesky,
  choleskyInverse,
  invertLowerTransposed,
  solveCholesky,
  upperFactorOfInverse,
  upperFactorOfInverseByGemm,
} from "../../agent/math/cholesky.ts";
import { referenceGemm } from "../../agent/math/gemm.ts";
import { productOfRows, transposed } from "../../agent/math/products.ts";
import { createRandom } from "../../agent/math/random.ts";

function identity(n: number): Float64Array {
  const I = new Float64Array(n * n);
  for (let i = 0; i < n; i++) I[i * (n + 1)] = 1;
  return I;
}

function gram(n: number, samples: number, seed: number): Float64Array {
  const random = createRandom(seed);
  const X = new Float64Array(n * samples).map(() => random.normal());
  return productOfRows(X, X, n, n, samples).map((value) => value / samples);
}

function largestDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  assert.equal(a.length, b.length);
  let worst = 0;
  for (let i = 0; i < a.length; i++) worst = Math.max(worst, Math.abs(a[i]! - b[i]!));
  return worst;
}

/** Plain Gauss–Jordan elimination with pivoting: the slow oracle. */
function slowInverse(A: Float64Array, n: number): Float64Array {
  const left = A.slice();
  const right = identity(n);
  for (let c = 0; c < n; c++) {
    let pivot = c;
    for (let r = c; r < n; r++) {
      if (Math.abs(left[r * n + c]!) > Math.abs(left[pivot * n + c]!)) pivot = r;
    }
    for (const M of [left, right]) {
      const row = M.slice(c * n, (c + 1) * n);
      M.copyWithin(c * n, pivot * n, (pivot + 1) * n);
      M.set(row, pivot * n);
    }
    const value = left[c * n + c]!;
    for (let j = 0; j < n; j++) {
      left[c * n + j]! /= value;
      right[c * n + j]! /= value;
    }
    for (let r = 0; r < n; r++) {
      const factor = r === c ? 0 : left[r * n + c]!;
      for (let j = 0; j < n; j++) {
        left[r * n + j]! -= factor * left[c * n + j]!;
        right[r * n + j]! -= factor * right[c * n + j]!;
      }
    }
  }
  return right;
}

for (const n of [1, 2, 5, 47, 48, 49, 97, 130]) {
  test(`cholesky: factors ${n} × ${n} and leaves zeros above the diagonal`, () => {
    const A = gram(n, n + 20, n);
    const L = A.slice();
    assert.equal(cholesky(L, n), true);
    assert.ok(largestDifference(productOfRows(L, L, n, n, n), A) < 1e-13);
    for (let i = 0; i < n; i++) for (let j = i + 1; j < n; j++) assert.equal(L[i * n + j], 0);
  });

  test(`triangular inverse: ${n} × ${n} times its factor is the identity`, () => {
    const L = gram(n, n + 20, n);
    assert.equal(cholesky(L, n), true);
    const T = invertLowerTransposed(L, n);
    assert.ok(largestDifference(productOfRows(L, T, n, n, n), identity(n)) < 1e-12);
  });

  test(`inverse: ${n} × ${n} agrees with Gauss–Jordan and is exactly symmetric`, () => {
    const A = gram(n, 2 * n + 20, n);
    const inverse = choleskyInverse(A, n);
    assert.ok(inverse);
    assert.ok(largestDifference(inverse, slowInverse(A, n)) < 1e-11);
    assert.deepEqual(inverse, transposed(inverse, n, n));
  });

  test(`upper factor of the inverse: ${n} × ${n} is upper and UᵀU = (H + λI)⁻¹`, () => {
    const H = gram(n, n + 20, n);
    const before = H.slice();
    const U = upperFactorOfInverse(H, n, 0.1);
    assert.ok(U);
    assert.deepEqual(H, before);
    for (let i = 0; i < n; i++) for (let j = 0; j < i; j++) assert.equal(U[i * n + j], 0);
    for (let i = 0; i < n; i++) H[i * (n + 1)]! += 0.1;
    const Ut = transposed(U, n, n);
    assert.ok(largestDifference(productOfRows(Ut, Ut, n, n, n), slowInverse(H, n)) < 1e-11);
  });
}

test("cholesky: refuses what is not positive definite", () => {
  assert.equal(cholesky(Float64Array.of(1, 2, 2, 1), 2), false);
  assert.equal(cholesky(Float64Array.of(0), 1), false);
  assert.equal(cholesky(Float64Array.of(Number.NaN), 1), false);
  assert.equal(cholesky(gram(60, 20, 1), 60), false, "fewer samples than columns");
  assert.equal(upperFactorOfInverse(gram(60, 20, 1), 60, 0), undefined);
  assert.ok(upperFactorOfInverse(gram(60, 20, 1), 60, 1e-3));
  assert.throws(() => cholesky(new Float64Array(5), 2), /A: expected 4 elements, got 5/);
});

test("cholesky: solves for several right-hand sides in place", () => {
  const n = 23;
  const A = gram(n, 60, 4);
  const L = A.slice();
  cholesky(L, n);
  const X = gram(n, 30, 5).subarray(0, 3 * n);
  const B = productOfRows(X, A, 3, n, n);
  solveCholesky(L, n, B);
  assert.ok(largestDifference(B, X) < 1e-12);
});

test("upper factor through a supplied product: the same as the plain one", async () => {
  for (const n of [200, 601]) {
    const H = gram(n, 400, 6);
    const plain = upperFactorOfInverse(H, n, 0.01);
    const supplied = await upperFactorOfInverseByGemm(H, n, 0.01, referenceGemm);
    assert.ok(plain && supplied);
    for (let i = 0; i < n; i++) {
      const row = (U: Float64Array) => U.subarray(i * n, (i + 1) * n);
      assert.ok(largestDifference(row(supplied), row(plain)) < 1e-9 * plain[i * (n + 1)]!);
    }
  }
  const singular = gram(200, 100, 6);
  assert.equal(await upperFactorOfInverseByGemm(singular, 200, -1, referenceGemm), undefined);
  assert.equal(await upperFactorOfInverseByGemm(singular, 200, 0, referenceGemm), undefined);
});
