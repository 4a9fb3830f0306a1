import type { Gemm, Matrix } from "./gemm.ts";
import { checkLength, dot, subtractProduct } from "./products.ts";

/** Columns factored at once; wide enough for the product kernel, narrow enough for L1. */
const PANEL = 48;
/** Up to this size, the recursion over a supplied product ends in plain loops. */
const LEAF = 160;

/**
 * Cholesky factor of a symmetric positive definite matrix, in place: A = L·Lᵀ. Blocked,
 * left-looking, double precision: n = 1152 in 0.25 s on one x64 core.
 *
 * @param A `n × n`, row-major; only the lower triangle is read. Overwritten by L, its upper
 *   triangle by zeros. What it holds after `false` is of no use.
 * @returns false where A is not positive definite to working precision: a pivot at or below
 *   n·2⁻⁵²·A_jj, or NaN.
 * @throws {RangeError} if the size does not fit.
 */
export function cholesky(A: Float64Array, n: number): boolean {
  checkLength("A", A, n * n);
  return factor(A, 0, n, n, pivotFloors(A, n));
}

/** What a pivot must exceed, n·2⁻⁵²·A_jj. */
function pivotFloors(A: Float64Array, n: number): Float64Array {
  return Float64Array.from({ length: n }, (_, j) => n * Number.EPSILON * A[j * (n + 1)]!);
}

/** {@link cholesky} of the `n × n` block at `offset` of an array with rows of `stride`. */
function factor(
  A: Float64Array,
  offset: number,
  n: number,
  stride: number,
  floor: Float64Array,
): boolean {
  for (let c = 0; c < n; c += PANEL) {
    const width = Math.min(PANEL, n - c);
    const below = { data: A, offset: offset + c * stride, stride };
    const target = { data: A, offset: below.offset + c, stride };
    subtractProduct(target, below, below, n - c, width, c);
    for (let i = c; i < n; i++) {
      const row = offset + i * stride;
      for (let j = c; j < Math.min(i, c + width); j++) {
        const other = offset + j * stride;
        const rest = A[row + j]! - dot(A, row + c, A, other + c, j - c);
        A[row + j] = rest / A[other + j]!;
      }
      if (i < c + width) {
        const pivot = A[row + i]! - dot(A, row + c, A, row + c, i - c);
        if (!(pivot > floor[i]!)) return false;
        A[row + i] = Math.sqrt(pivot);
      }
    }
  }
  for (let i = 0; i < n; i++) A.fill(0, offset + i * stride + i + 1, offset + i * stride + n);
  return true;
}

/**
 * Inverse of a lower triangular matrix, returned transposed (so upper triangular): (L⁻¹)ᵀ.
 * Transposed, because then both operands of every inner product lie along rows.
 *
 * @param L `n × n`, row-major, lower triangular with a non-zero diagonal.
 */
export function invertLowerTransposed(L: Float64Array, n: number): Float64Array {
  checkLength("L", L, n * n);
  const T = new Float64Array(n * n);
  for (let c = 0; c < n; c += PANEL) {
    const width = Math.min(PANEL, n - c);
    for (let r = 0; r < c; r += PANEL) {
      const target = { data: T, offset: r * n + c, stride: n };
      const known = { data: T, offset: r * n + r, stride: n };
      const factorRows = { data: L, offset: c * n + r, stride: n };
      subtractProduct(target, known, factorRows, Math.min(PANEL, n - r), width, c - r);
    }
    for (let j = 0; j < c + width; j++) {
      const row = j * n;
      for (let i = Math.max(j, c); i < c + width; i++) {
        const from = Math.max(j, c);
        const rest = (i === j ? 1 : T[row + i]!) - dot(T, row + from, L, i * n + from, i - from);
        T[row + i] = rest / L[i * n + i]!;
      }
    }
  }
  return T;
}

/**
 * Solves L·Lᵀ·x = b for every row of `B`, in place.
 *
 * @param L factor from {@link cholesky}, `n × n`. @param B `count × n`, row-major; overwritten.
 */
export function solveCholesky(L: Float64Array, n: number, B: Float64Array): void {
  checkLength("L", L, n * n);
  for (let row = 0; row + n <= B.length; row += n) {
    for (let i = 0; i < n; i++) {
      B[row + i] = (B[row + i]! - dot(L, i * n, B, row, i)) / L[i * n + i]!;
    }
    for (let i = n - 1; i >= 0; i--) {
      const x = B[row + i]! / L[i * n + i]!;
      B[row + i] = x;
      for (let j = 0; j < i; j++) B[row + j]! -= L[i * n + j]! * x;
    }
  }
}

/**
 * Inverse of a symmetric positive definite matrix.
 *
 * @param A `n × n`, row-major; read only.
 * @returns A⁻¹, `n × n`, exactly symmetric; undefined where A is not positive definite.
 */
export function choleskyInverse(A: Float64Array, n: number): Float64Array | undefined {
  const L = A.slice();
  if (!cholesky(L, n)) return undefined;
  const T = invertLowerTransposed(L, n);
  const inverse = new Float64Array(n * n);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j <= i; j++) {
      const value = dot(T, i * n + i, T, j * n + i, n - i);
      inverse[i * n + j] = value;
      inverse[j * n + i] = value;
    }
  }
  return inverse;
}

/**
 * U upper triangular with (H + λI)⁻¹ = Uᵀ·U, without forming the inverse: with J the reversal of
 * rows and columns and J(H+λI)J = L·Lᵀ, U = J·L⁻¹·J. Double precision throughout; n = 1152 takes
 * 0.5 s and n = 3072 about 8 s on one x64 core.
 *
 * @param H `n × n`, row-major, symmetric; read only. @param lambda λ, added to the diagonal.
 * @returns U, `n × n`, row-major; undefined where H + λI is not positive definite.
 * @throws {RangeError} if the size does not fit.
 */
export function upperFactorOfInverse(
  H: Float64Array,
  n: number,
  lambda: number,
): Float64Array | undefined {
  const L = reversedWithRidge(H, n, lambda);
  if (!cholesky(L, n)) return undefined;
  const U = invertLowerTransposed(L, n);
  antiTranspose(U, n);
  return U;
}

/**
 * {@link upperFactorOfInverse} with the large products done by `gemm`, in double precision as
 * well: the recursion factors the first half, solves for the block below it, updates and factors
 * the second half, ending in plain loops. n = 1152 takes a tenth of what plain loops take.
 *
 * @returns U; undefined where H + λI is not positive definite.
 */
export async function upperFactorOfInverseByGemm(
  H: Float64Array,
  n: number,
  lambda: number,
  gemm: Gemm,
): Promise<Float64Array | undefined> {
  const A = reversedWithRidge(H, n, lambda);
  const T = new Float64Array(n * n);
  const floor = pivotFloors(A, n);
  if (!(await factorAndInvert({ A, T, n, gemm, floor }, 0, n))) return undefined;
  antiTranspose(T, n);
  return T;
}

interface Recursion {
  /** Overwritten by L, block by block. */
  readonly A: Float64Array;
  /** Receives (L⁻¹)ᵀ. */
  readonly T: Float64Array;
  readonly n: number;
  readonly gemm: Gemm;
  /** What each pivot must exceed. */
  readonly floor: Float64Array;
}

/**
 * ```
 *        h    k                      h            k
 *   h [ A11   ·  ]             h [ X11ᵀ    (−X22·L21·X11)ᵀ ]
 *   k [ A21  A22 ]   →  T =    k [  0          X22ᵀ        ]
 * ```
 */
async function factorAndInvert(work: Recursion, at: number, size: number): Promise<boolean> {
  const { A, T, n, gemm, floor } = work;
  if (size <= LEAF) {
    const L = block(A, n, at, at, size, size);
    if (!factor(L, 0, size, size, floor.subarray(at, at + size))) return false;
    place(A, n, at, at, L, size);
    place(T, n, at, at, invertLowerTransposed(L, size), size);
    return true;
  }
  const h = size >> 1;
  const k = size - h;
  const mid = at + h;
  if (!(await factorAndInvert(work, at, h))) return false;
  const X11t = view(block(T, n, at, at, h, h), h, h);
  const L21 = view(await gemm(view(block(A, n, mid, at, k, h), k, h), X11t), k, h);
  place(A, n, mid, at, L21.data, h);
  const update = await gemm(L21, L21, { transB: true });
  for (let i = 0; i < k; i++) {
    for (let j = 0; j <= i; j++) A[(mid + i) * n + mid + j]! -= update[i * k + j]!;
  }
  if (!(await factorAndInvert(work, mid, k))) return false;
  const X22t = view(block(T, n, mid, mid, k, k), k, k);
  const right = await gemm(view(await gemm(X11t, L21, { transB: true }), h, k), X22t);
  for (let i = 0; i < right.length; i++) right[i] = -right[i]!;
  place(T, n, at, mid, right, k);
  return true;
}

function view(data: Float64Array, rows: number, cols: number): Matrix<Float64Array> {
  return { data, rows, cols };
}

function block(
  A: Float64Array,
  n: number,
  row: number,
  col: number,
  rows: number,
  cols: number,
): Float64Array {
  const out = new Float64Array(rows * cols);
  for (let i = 0; i < rows; i++) {
    const from = (row + i) * n + col;
    out.set(A.subarray(from, from + cols), i * cols);
  }
  return out;
}

function place(
  A: Float64Array,
  n: number,
  row: number,
  col: number,
  data: Float64Array,
  cols: number,
): void {
  for (let i = 0; i * cols < data.length; i++) {
    A.set(data.subarray(i * cols, (i + 1) * cols), (row + i) * n + col);
  }
}

function reversedWithRidge(H: Float64Array, n: number, lambda: number): Float64Array {
  checkLength("H", H, n * n);
  const A = new Float64Array(n * n);
  const last = n * n - 1;
  for (let i = 0; i <= last; i++) A[i] = H[last - i]!;
  for (let i = 0; i < n; i++) A[i * (n + 1)]! += lambda;
  return A;
}

/** Mirrors a square matrix at its anti-diagonal, in place: A_ij ↔ A_{n−1−j, n−1−i}. */
function antiTranspose(A: Float64Array, n: number): void {
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < n - 1 - i; j++) {
      const mirror = (n - 1 - j) * n + (n - 1 - i);
      const value = A[i * n + j]!;
      A[i * n + j] = A[mirror]!;
      A[mirror] = value;
    }
  }
}
