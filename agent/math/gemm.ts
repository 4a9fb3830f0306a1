import { checkLength, productOfRows, transposed } from "./products.ts";

/** A matrix, row-major, in single or double precision. */
export interface Matrix<T extends Float32Array | Float64Array> {
  /** `rows × cols` elements. */
  readonly data: T;
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
 * it: `op(a)·op(b)` in the precision of the operands, row-major, as a new array that the caller
 * owns. The operands are only read, and may be reused as soon as the promise settles.
 */
export type Gemm = <T extends Float32Array | Float64Array>(
  a: Matrix<T>,
  b: Matrix<T>,
  options?: GemmOptions,
) => Promise<T>;

/**
 * A {@link Gemm} in plain loops, accumulating in double precision: what is used where no engine
 * is supplied, and the yardstick for those that are.
 *
 * @throws {RangeError} if the sizes do not fit.
 */
export const referenceGemm: Gemm = <T extends Float32Array | Float64Array>(
  a: Matrix<T>,
  b: Matrix<T>,
  options: GemmOptions = {},
) => {
  const result = product(a, b, options);
  return Promise.resolve(
    (a.data instanceof Float64Array ? result : Float32Array.from(result)) as T,
  );
};

function product(
  a: Matrix<Float32Array | Float64Array>,
  b: Matrix<Float32Array | Float64Array>,
  options: GemmOptions,
): Float64Array {
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
 * From this many multiplications on, a product is handed to a supplied {@link Gemm}: below it,
 * plain loops (about 1.5 GMAC/s) cost less than the call.
 */
const WORTH_A_CALL = 1 << 19;

/** A matrix that takes part in products as their second factor. */
export interface Operand {
  readonly data: Float64Array;
  readonly rows: number;
  readonly cols: number;
  /** Whether products with it are worth a call of the supplied engine. */
  readonly large: boolean;
}

/**
 * B for products `A·Bᵀ` with left factors of about `leftRows` rows.
 *
 * @param B `rows × cols`, row-major; kept, not copied.
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
  return { data: B, rows, cols, large };
}

/**
 * `A·Bᵀ` in double precision, by `gemm` or in plain loops as {@link prepareOperand} decided.
 *
 * @param A `m × B.cols`, row-major. @returns `m × B.rows`, row-major.
 */
export function multiplyPrepared(
  A: Float64Array,
  m: number,
  B: Operand,
  gemm: Gemm = referenceGemm,
): Promise<Float64Array> {
  if (!B.large) return Promise.resolve(productOfRows(A, B.data, m, B.rows, B.cols));
  return gemm({ data: A, rows: m, cols: B.cols }, B, { transB: true });
}
