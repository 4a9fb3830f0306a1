import { checkLength, productOfRows, transposed } from "./products.ts";

/** A matrix in single precision, row-major. */
export interface MatrixF32 {
  /** `rows × cols` elements. */
  readonly data: Float32Array;
  readonly rows: number;
  readonly cols: number;
}

/** Which operands of a {@link Gemm} are taken transposed; neither by default. */
interface GemmOptions {
  readonly transA?: boolean;
  readonly transB?: boolean;
}

/**
 * The heavy matrix product, supplied from outside so that whatever engine the machine has can do
 * it: `op(a)·op(b)` in single precision, row-major, as a new array that the caller owns. The
 * operands are only read, and may be reused as soon as the promise settles.
 */
export type Gemm = (a: MatrixF32, b: MatrixF32, options?: GemmOptions) => Promise<Float32Array>;

/**
 * A {@link Gemm} in plain loops, accumulating in double precision: what is used where no engine
 * is supplied, and the yardstick for those that are.
 *
 * @throws {RangeError} if the sizes do not fit.
 */
export const referenceGemm: Gemm = (a, b, options = {}) =>
  Promise.resolve(Float32Array.from(product(a, b, options)));

function product(a: MatrixF32, b: MatrixF32, options: GemmOptions): Float64Array {
  checkLength("a", a.data, a.rows * a.cols);
  checkLength("b", b.data, b.rows * b.cols);
  const [m, depth] = options.transA ? [a.cols, a.rows] : [a.rows, a.cols];
  const [n, depthOfB] = options.transB ? [b.rows, b.cols] : [b.cols, b.rows];
  if (depth !== depthOfB) {
    throw new RangeError(`expected equal inner sizes, got ${m}×${depth} times ${depthOfB}×${n}`);
  }
  const left = options.transA ? transposed(a.data, a.rows, a.cols) : Float64Array.from(a.data);
  const right = options.transB ? Float64Array.from(b.data) : transposed(b.data, b.rows, b.cols);
  return productOfRows(left, right, m, n, depth);
}

/**
 * From this many multiplications on, a product in double precision may be handed to a supplied
 * single-precision {@link Gemm}: below it, plain loops (about 1.5 GMAC/s) cost less than the
 * copies and the call.
 */
const WORTH_A_CALL = 1 << 23;

/**
 * A matrix that takes part in many products as their second factor, made ready once: doubles for
 * plain loops, or singles for the supplied engine where the products are large enough for it.
 */
export interface Operand {
  /** Which precision, and with it which engine, products with it use. */
  readonly data: Float64Array | Float32Array;
  readonly rows: number;
  readonly cols: number;
}

/**
 * Makes B ready for products `A·Bᵀ` with left factors of about `leftRows` rows.
 *
 * @param B `rows × cols`, row-major; kept, not copied, where plain loops will be used.
 */
export function prepareOperand(
  B: Float64Array,
  rows: number,
  cols: number,
  leftRows: number,
  gemm?: Gemm,
): Operand {
  checkLength("B", B, rows * cols);
  const large = gemm !== undefined && leftRows * rows * cols >= WORTH_A_CALL;
  return { data: large ? Float32Array.from(B) : B, rows, cols };
}

/**
 * `A·Bᵀ` with a prepared B: in double precision, or by `gemm` in single precision (error about
 * 1e-7·Σ|a||b|) as {@link prepareOperand} decided.
 *
 * @param A `m × B.cols`, row-major. @returns `m × B.rows`, row-major.
 */
export async function multiplyPrepared(
  A: Float64Array,
  m: number,
  B: Operand,
  gemm: Gemm = referenceGemm,
): Promise<Float64Array> {
  if (B.data instanceof Float64Array) return productOfRows(A, B.data, m, B.rows, B.cols);
  const left = { data: Float32Array.from(A), rows: m, cols: B.cols };
  const right = { data: B.data, rows: B.rows, cols: B.cols };
  return Float64Array.from(await gemm(left, right, { transB: true }));
}
