import { checkLength } from "../math/products.ts";

/** Second moments and means of a layer's inputs, one set for each group of the layer. */
export interface LayerGram {
  readonly groups: number;
  /** Inputs of one group; for a convolution `Cin/groups · kh · kw`, in that order. */
  readonly cols: number;
  /** Input vectors seen (pictures times output positions). */
  readonly count: number;
  /** H = 2/count · Σ x·xᵀ, `groups × cols × cols`; ½δᵀHδ is the mean squared output error. */
  readonly H: Float64Array;
  /** Mean input, `groups × cols`. */
  readonly mean: Float64Array;
}

const MAGIC = 0x6772616d;
const HEADER_BYTES = 32;

/**
 * Running sums of a layer's inputs. Batches arrive in single precision and are added in double,
 * as the authors of OBC do; memory is `groups · cols · (cols + 1)` doubles however many come.
 *
 * For the cross moments that {@link retarget} needs, feed Σ x·x′ᵀ and the sums of the dense x.
 */
export class GramAccumulator {
  readonly groups: number;
  readonly cols: number;
  #count = 0;
  readonly #products: Float64Array;
  readonly #sums: Float64Array;

  constructor(groups: number, cols: number) {
    for (const [name, value] of Object.entries({ groups, cols })) {
      if (!(Number.isInteger(value) && value >= 1)) {
        throw new RangeError(`${name}: expected a positive integer, got ${value}`);
      }
    }
    this.groups = groups;
    this.cols = cols;
    this.#products = new Float64Array(groups * cols * cols);
    this.#sums = new Float64Array(groups * cols);
  }

  /** Input vectors added so far. */
  get count(): number {
    return this.#count;
  }

  /**
   * Adds one batch.
   *
   * @param products Σ x·xᵀ of the batch, `groups × cols × cols`.
   * @param sums Σ x of the batch, `groups × cols`.
   * @param count input vectors in the batch.
   * @throws {RangeError} if a size does not fit or the count is no positive integer.
   */
  add(products: Float32Array, sums: Float32Array, count: number): void {
    checkLength("products", products, this.#products.length);
    checkLength("sums", sums, this.#sums.length);
    if (!(Number.isInteger(count) && count >= 1)) {
      throw new RangeError(`count: expected a positive integer, got ${count}`);
    }
    for (let i = 0; i < products.length; i++) this.#products[i]! += products[i]!;
    for (let i = 0; i < sums.length; i++) this.#sums[i]! += sums[i]!;
    this.#count += count;
  }

  /**
   * The statistics of all that was added.
   *
   * @throws {RangeError} if nothing was added, or something that is not finite.
   */
  finish(): LayerGram {
    if (this.#count === 0) throw new RangeError("expected at least one batch, got none");
    const H = new Float64Array(this.#products.length);
    const factor = 2 / this.#count;
    // What is not finite makes every later sum NaN.
    let check = 0;
    for (let i = 0; i < H.length; i++) {
      H[i] = this.#products[i]! * factor;
      check += H[i]! * 0;
    }
    const mean = this.#sums.map((value) => value / this.#count);
    if (check !== 0) {
      const broken = H.findIndex((value) => !Number.isFinite(value));
      throw new RangeError(
        `expected finite inputs, got ${H[broken]} in the Gram of column ${broken % this.cols}`,
      );
    }
    return { groups: this.groups, cols: this.cols, count: this.#count, H, mean };
  }

  /** All state, for a checkpoint; numbers are in the byte order of the machine. */
  toBytes(): Uint8Array {
    const bytes = new Uint8Array(HEADER_BYTES + this.#products.byteLength + this.#sums.byteLength);
    const header = new Float64Array(bytes.buffer, 0, HEADER_BYTES / 8);
    header.set([MAGIC, this.groups, this.cols, this.#count]);
    const body = new Float64Array(bytes.buffer, HEADER_BYTES);
    body.set(this.#products);
    body.set(this.#sums, this.#products.length);
    return bytes;
  }

  /**
   * The accumulator that {@link toBytes} wrote.
   *
   * @throws {RangeError} if the bytes are not one, or not all of one.
   */
  static fromBytes(bytes: Uint8Array): GramAccumulator {
    const numbers = new Float64Array(bytes.slice().buffer, 0, Math.floor(bytes.length / 8));
    const [magic, groups = 0, cols = 0, count = 0] = numbers;
    const expected = HEADER_BYTES / 8 + groups * cols * (cols + 1);
    if (magic !== MAGIC || bytes.length !== 8 * expected) {
      throw new RangeError(
        `expected the bytes of a Gram accumulator, got ${bytes.length} others: remove the ` +
          "checkpoint and collect the statistics again",
      );
    }
    const accumulator = new GramAccumulator(groups, cols);
    const body = numbers.subarray(HEADER_BYTES / 8);
    accumulator.#products.set(body.subarray(0, groups * cols * cols));
    accumulator.#sums.set(body.subarray(groups * cols * cols));
    accumulator.#count = count;
    return accumulator;
  }
}

/**
 * A variance below this share of the second moment cannot be told from the rounding of
 * single-precision sums: the input is taken as constant.
 */
const CONSTANT = 1e-6;

/**
 * H of the inputs with their mean taken off: H − 2·x̄·x̄ᵀ. Where the bias follows by
 * {@link biasCorrection}, this is the exact quadratic of the layer with its best bias: the same as
 * a constant input 1 that is never pruned. Constant inputs get rows and columns of zeros.
 *
 * @param H `cols × cols`. @param mean `cols`. @returns a new `cols × cols` array.
 */
export function centeredHessian(H: Float64Array, mean: Float64Array): Float64Array {
  const cols = mean.length;
  checkLength("H", H, cols * cols);
  const out = new Float64Array(cols * cols);
  for (let i = 0; i < cols; i++) {
    const row = i * cols;
    const twice = 2 * mean[i]!;
    for (let j = 0; j < cols; j++) out[row + j] = H[row + j]! - twice * mean[j]!;
  }
  for (let i = 0; i < cols; i++) {
    const moment = H[i * (cols + 1)]!;
    if (moment - 2 * mean[i]! * mean[i]! > CONSTANT * moment) continue;
    out.fill(0, i * cols, (i + 1) * cols);
    for (let j = 0; j < cols; j++) out[j * cols + i] = 0;
  }
  return out;
}

/**
 * What to add to the bias so that the mean output stays: (W − Ŵ)·x̄.
 *
 * @param before W, `rows × cols`. @param after Ŵ, `rows × cols`. @param mean x̄, `cols`.
 */
export function biasCorrection(
  before: Float64Array,
  after: Float64Array,
  mean: Float64Array,
): Float64Array {
  const cols = mean.length;
  const out = new Float64Array(before.length / cols);
  for (let i = 0; i < before.length; i++) {
    out[Math.floor(i / cols)]! += (before[i]! - after[i]!) * mean[i % cols]!;
  }
  return out;
}
