import type { Gemm, Matrix } from "./gemm.ts";
import { columnsOf } from "./products.ts";

/** From so many columns on, what is left out is worth the copy. */
const MANY_COLUMNS = 2048;
const PANELS = 4;

/**
 * XᵀX in single precision. Of many columns, only the half that the other mirrors, by panels of
 * columns: ten of sixteen products, for a copy of X. At 2304 columns it takes ¾ of the time; at
 * 1152 it would take longer.
 *
 * @param X only read. @returns `cols × cols`, a new array.
 */
export async function squareOf(X: Matrix<Float32Array>, gemm: Gemm): Promise<Float32Array> {
  const { rows, cols } = X;
  if (cols < MANY_COLUMNS) return gemm(X, X, { transA: true });
  const width = Math.ceil(cols / PANELS);
  const panels = Array.from({ length: PANELS }, (_, p): Matrix<Float32Array> => {
    const own = Math.min(width, cols - p * width);
    return { data: columnsOf(X.data, cols, p * width, own), rows, cols: own };
  });
  const out = new Float32Array(cols * cols);
  for (const [p, left] of panels.entries()) {
    for (const [q, right] of panels.slice(0, p + 1).entries()) {
      const block = await gemm(left, right, { transA: true });
      placeTwice(out, cols, p * width, q * width, block, right.cols);
    }
  }
  return out;
}

/** A block of a symmetric matrix and its mirror image. */
function placeTwice(
  out: Float32Array,
  cols: number,
  top: number,
  left: number,
  block: Float32Array,
  width: number,
): void {
  for (let i = 0; i * width < block.length; i++) {
    for (let j = 0; j < width; j++) {
      const value = block[i * width + j]!;
      out[(top + i) * cols + left + j] = value;
      out[(left + j) * cols + top + i] = value;
    }
  }
}
