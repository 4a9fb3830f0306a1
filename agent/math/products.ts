/** Inner-dimension and column block of {@link subtractProduct}: 64 × 256 doubles stay in L2. */
const DEPTH = 256;
const WIDTH = 64;

/** A rectangle inside a larger row-major array: element (i, j) lies at `offset + i·stride + j`. */
export interface View {
  readonly data: Float64Array;
  readonly offset: number;
  readonly stride: number;
}

/**
 * `C −= A·Bᵀ` in double precision; only C is changed, and it may share the array of A and B as
 * long as the rectangles do not overlap. Both operands are read along their rows, which is what
 * every algorithm here is arranged for. 4 × 2 results are held in registers: 1.5 GMAC/s on one
 * x64 core of Node 20; 4 × 4 and 3 × 3 tiles measured the same.
 *
 * @param C `m × n`. @param A `m × depth`. @param B `n × depth`.
 */
export function subtractProduct(C: View, A: View, B: View, m: number, n: number, depth: number) {
  for (let d = 0; d < depth; d += DEPTH) {
    const k = Math.min(DEPTH, depth - d);
    for (let j = 0; j < n; j += WIDTH) {
      const width = Math.min(WIDTH, n - j);
      const a = { data: A.data, offset: A.offset + d, stride: A.stride };
      const b = { data: B.data, offset: B.offset + j * B.stride + d, stride: B.stride };
      const c = { data: C.data, offset: C.offset + j, stride: C.stride };
      subtractBlock(c, a, b, m, width, k);
    }
  }
}

function subtractBlock(C: View, A: View, B: View, m: number, n: number, k: number): void {
  const mTiled = m - (m % 4);
  const nTiled = n - (n % 2);
  const a = A.data;
  const b = B.data;
  const c = C.data;
  for (let i = 0; i < mTiled; i += 4) {
    const a0 = A.offset + i * A.stride;
    const a1 = a0 + A.stride;
    const a2 = a1 + A.stride;
    const a3 = a2 + A.stride;
    for (let j = 0; j < nTiled; j += 2) {
      const b0 = B.offset + j * B.stride;
      const b1 = b0 + B.stride;
      let s00 = 0;
      let s01 = 0;
      let s10 = 0;
      let s11 = 0;
      let s20 = 0;
      let s21 = 0;
      let s30 = 0;
      let s31 = 0;
      for (let p = 0; p < k; p++) {
        const x0 = a[a0 + p]!;
        const x1 = a[a1 + p]!;
        const x2 = a[a2 + p]!;
        const x3 = a[a3 + p]!;
        const y0 = b[b0 + p]!;
        const y1 = b[b1 + p]!;
        s00 += x0 * y0;
        s01 += x0 * y1;
        s10 += x1 * y0;
        s11 += x1 * y1;
        s20 += x2 * y0;
        s21 += x2 * y1;
        s30 += x3 * y0;
        s31 += x3 * y1;
      }
      let o = C.offset + i * C.stride + j;
      c[o]! -= s00;
      c[o + 1]! -= s01;
      o += C.stride;
      c[o]! -= s10;
      c[o + 1]! -= s11;
      o += C.stride;
      c[o]! -= s20;
      c[o + 1]! -= s21;
      o += C.stride;
      c[o]! -= s30;
      c[o + 1]! -= s31;
    }
  }
  subtractEdge(C, A, B, [0, mTiled], [nTiled, n], k);
  subtractEdge(C, A, B, [mTiled, m], [0, n], k);
}

function subtractEdge(
  C: View,
  A: View,
  B: View,
  rows: readonly [number, number],
  cols: readonly [number, number],
  k: number,
): void {
  for (let i = rows[0]; i < rows[1]; i++) {
    for (let j = cols[0]; j < cols[1]; j++) {
      const sum = dot(A.data, A.offset + i * A.stride, B.data, B.offset + j * B.stride, k);
      C.data[C.offset + i * C.stride + j]! -= sum;
    }
  }
}

/** Inner product of two runs of `count` numbers. */
export function dot(
  a: Float64Array,
  aOffset: number,
  b: Float64Array,
  bOffset: number,
  count: number,
): number {
  let even = 0;
  let odd = 0;
  let i = 0;
  for (; i + 1 < count; i += 2) {
    even += a[aOffset + i]! * b[bOffset + i]!;
    odd += a[aOffset + i + 1]! * b[bOffset + i + 1]!;
  }
  if (i < count) even += a[aOffset + i]! * b[bOffset + i]!;
  return even + odd;
}

/**
 * All inner products of the rows of two matrices: `A·Bᵀ`.
 *
 * @param A `m × depth`. @param B `n × depth`. @returns `m × n`, row-major.
 */
export function productOfRows(
  A: Float64Array,
  B: Float64Array,
  m: number,
  n: number,
  depth: number,
): Float64Array {
  const out = new Float64Array(m * n);
  subtractProduct(
    { data: out, offset: 0, stride: n },
    { data: A, offset: 0, stride: depth },
    { data: B, offset: 0, stride: depth },
    m,
    n,
    depth,
  );
  for (let i = 0; i < out.length; i++) out[i] = -out[i]!;
  return out;
}

/** `Aᵀ` as a new array. @param A `rows × cols`, row-major. */
export function transposed(
  A: Float32Array | Float64Array,
  rows: number,
  cols: number,
): Float64Array {
  const out = new Float64Array(rows * cols);
  for (let i0 = 0; i0 < rows; i0 += 32) {
    const i1 = Math.min(rows, i0 + 32);
    for (let j = 0; j < cols; j++) {
      for (let i = i0; i < i1; i++) out[j * rows + i] = A[i * cols + j]!;
    }
  }
  return out;
}

/** @throws {RangeError} where `data` has not the `rows × cols` elements that it should have. */
export function checkLength(name: string, data: ArrayLike<unknown>, expected: number): void {
  if (data.length !== expected) {
    throw new RangeError(`${name}: expected ${expected} elements, got ${data.length}`);
  }
}

/**
 * Neighboring columns of a row-major matrix with rows of `width`: `rows × cols` from column `from`
 * on; the matrix itself where that is all of it, else a new array.
 */
export function columnsOf(
  data: Float32Array,
  width: number,
  from: number,
  cols: number,
): Float32Array {
  if (cols === width) return data;
  const out = new Float32Array((data.length / width) * cols);
  for (let at = from, to = 0; to < out.length; at += width, to += cols) {
    out.set(data.subarray(at, at + cols), to);
  }
  return out;
}
