import { GramAccumulator, type LayerGram } from "../../agent/compress/hessian.ts";
import { createRandom } from "../../agent/math/random.ts";

/** A layer, its inputs and their second moments. */
export interface RandomLayer {
  /** `rows × cols`. */
  readonly W: Float64Array<ArrayBuffer>;
  /** `samples × cols`. */
  readonly X: Float64Array;
  readonly rows: number;
  readonly cols: number;
  readonly samples: number;
  /** 2/samples·Σ x·xᵀ. */
  readonly H: Float64Array;
}

/** A random layer and inputs that are correlated, not negative and of different scales. */
export function randomLayer(
  rows: number,
  cols: number,
  samples: number,
  seed: number,
): RandomLayer {
  const random = createRandom(seed);
  const W = new Float64Array(rows * cols).map(() => random.normal());
  const hidden = Math.max(1, Math.ceil(cols / 3));
  const mix = new Float64Array(cols * hidden).map(() => random.normal());
  const scales = new Float64Array(cols).map(() => Math.exp(random.normal()));
  const X = new Float64Array(samples * cols);
  for (let s = 0; s < samples; s++) {
    const z = new Float64Array(hidden).map(() => random.normal());
    for (let j = 0; j < cols; j++) {
      let x = 0.3 * random.normal() + 0.2;
      for (let k = 0; k < hidden; k++) x += (mix[j * hidden + k]! * z[k]!) / Math.sqrt(hidden);
      X[s * cols + j] = Math.max(0, x) * scales[j]!;
    }
  }
  return { W, X, rows, cols, samples, H: hessian(X, cols) };
}

/** 2/n·Σ x·xᵀ by three loops. @param X `samples × cols`. */
export function hessian(X: Float64Array, cols: number): Float64Array {
  const samples = X.length / cols;
  const H = new Float64Array(cols * cols);
  for (let s = 0; s < samples; s++) {
    for (let i = 0; i < cols; i++) {
      for (let j = 0; j < cols; j++) {
        H[i * cols + j]! += (2 / samples) * X[s * cols + i]! * X[s * cols + j]!;
      }
    }
  }
  return H;
}

/** The statistics of inputs as the pipeline would collect them, one group. */
export function gramOf(X: Float64Array, cols: number): LayerGram {
  const samples = X.length / cols;
  const accumulator = new GramAccumulator(1, cols);
  const products = Float32Array.from(hessian(X, cols), (value) => (value * samples) / 2);
  const sums = new Float32Array(cols);
  for (let i = 0; i < X.length; i++) sums[i % cols]! += X[i]!;
  accumulator.add(products, sums, samples);
  return accumulator.finish();
}

/** ½tr(δHδᵀ), δ = A − B, by three loops. */
export function slowLoss(A: ArrayLike<number>, B: ArrayLike<number>, H: Float64Array): number {
  const cols = Math.sqrt(H.length);
  let loss = 0;
  for (let r = 0; r < A.length; r += cols) {
    for (let i = 0; i < cols; i++) {
      for (let j = 0; j < cols; j++) {
        loss += 0.5 * (A[r + i]! - B[r + i]!) * H[i * cols + j]! * (A[r + j]! - B[r + j]!);
      }
    }
  }
  return loss;
}

/** Mean over inputs of the squared difference of two affine layers' outputs, summed over rows. */
export function slowOutputError(
  X: Float64Array,
  cols: number,
  a: { readonly weights: ArrayLike<number>; readonly bias: ArrayLike<number> },
  b: { readonly weights: ArrayLike<number>; readonly bias: ArrayLike<number> },
): number {
  const samples = X.length / cols;
  let error = 0;
  for (let s = 0; s < samples; s++) {
    for (let r = 0; r < a.bias.length; r++) {
      let difference = a.bias[r]! - b.bias[r]!;
      for (let j = 0; j < cols; j++) {
        difference += (a.weights[r * cols + j]! - b.weights[r * cols + j]!) * X[s * cols + j]!;
      }
      error += difference ** 2 / samples;
    }
  }
  return error;
}

/** Count of zeros. */
export function zerosIn(values: ArrayLike<number>): number {
  return Array.from(values).filter((value) => value === 0).length;
}

/** Fails unless two numbers agree to `relative` of the larger. */
export function closeTo(actual: number, expected: number, relative: number): boolean {
  return Math.abs(actual - expected) <= relative * Math.max(Math.abs(actual), Math.abs(expected));
}
