import { cholesky } from "./cholesky.ts";
import { type Gemm, multiplyPrepared, prepareOperand } from "./gemm.ts";
import { checkLength, transposed } from "./products.ts";

/** Labeled features a head is fitted on. */
export interface HeadData {
  /** `samples × inputs`, row-major. */
  readonly features: Float32Array;
  readonly samples: number;
  readonly inputs: number;
  /** Class of each sample, in [0, classes). */
  readonly labels: ArrayLike<number>;
  readonly classes: number;
  /** Head that the penalty pulls toward; zero by default. */
  readonly prior?: HeadWeights | undefined;
}

/** A linear classifier: logits = weights·features + bias. */
export interface HeadWeights {
  /** `classes × inputs`, row-major. */
  readonly weights: Float32Array;
  /** One a class. */
  readonly bias: Float32Array;
}

/**
 * Logits of a head. @param features `samples × inputs`, row-major.
 * @returns `samples × classes`, row-major.
 */
export async function headLogits(
  head: HeadWeights,
  features: Float32Array,
  gemm?: Gemm,
): Promise<Float64Array> {
  const classes = head.bias.length;
  const inputs = head.weights.length / classes;
  const samples = features.length / inputs;
  const W = prepareOperand(Float64Array.from(head.weights), classes, inputs, samples, gemm);
  const logits = await multiplyPrepared(Float64Array.from(features), samples, W, gemm);
  for (let i = 0; i < logits.length; i++) logits[i]! += head.bias[i % classes]!;
  return logits;
}

/** Standardized features and what belongs to them. */
export interface StandardizedSpace {
  /** `samples × inputs`, mean 0 and spread 1 (or 0 for a constant feature). */
  readonly Z: Float64Array;
  readonly mean: Float64Array;
  readonly spread: Float64Array;
  /** Z·Zᵀ, `samples × samples`, where there are fewer samples than features. */
  readonly kernel: Float64Array | undefined;
  /** The prior's logits, `classes × samples`. */
  readonly offset: Float64Array;
}

/**
 * Standardizes labeled features and takes their inner products where that is the smaller matrix.
 *
 * @throws {RangeError} if sizes do not fit or a feature is not finite.
 */
export async function standardizedSpace(data: HeadData, gemm?: Gemm): Promise<StandardizedSpace> {
  const { features, samples, inputs, classes, labels, prior } = data;
  checkLength("features", features, samples * inputs);
  checkLength("labels", labels, samples);
  const { Z, mean, spread } = standardize(features, samples, inputs);
  const offset = new Float64Array(classes * samples);
  if (prior) {
    checkLength("prior.weights", prior.weights, classes * inputs);
    checkLength("prior.bias", prior.bias, classes);
    const logits = await headLogits(prior, features, gemm);
    offset.set(transposed(logits, samples, classes));
  }
  if (samples >= inputs) return { Z, mean, spread, kernel: undefined, offset };
  const operand = prepareOperand(Z, samples, inputs, samples, gemm);
  const kernel = await multiplyPrepared(Z, samples, operand, gemm);
  return { Z, mean, spread, kernel, offset };
}

/** A feature that hardly varies gets a floor of 1e-3 of the mean spread, so it is not blown up. */
function standardize(features: Float32Array, samples: number, inputs: number) {
  const mean = new Float64Array(inputs);
  const spread = new Float64Array(inputs);
  for (let i = 0; i < features.length; i++) mean[i % inputs]! += features[i]! / samples;
  const Z = new Float64Array(features.length);
  for (let i = 0; i < features.length; i++) {
    const value = features[i]! - mean[i % inputs]!;
    Z[i] = value;
    spread[i % inputs]! += (value * value) / samples;
  }
  let total = 0;
  for (let j = 0; j < inputs; j++) {
    spread[j] = Math.sqrt(spread[j]!);
    total += spread[j]!;
  }
  if (!Number.isFinite(total)) throw new RangeError("features: expected finite numbers");
  const floor = total > 0 ? (1e-3 * total) / inputs : 1;
  for (let j = 0; j < inputs; j++) spread[j] = Math.max(spread[j]!, floor);
  for (let i = 0; i < Z.length; i++) Z[i]! /= spread[i % inputs]!;
  return { Z, mean, spread };
}

/** L with L·Lᵀ = K + 1e-9·mean(diag K)·I: centered samples are always one short of full rank. */
export function factorKernel(kernel: Float64Array, n: number): Float64Array {
  for (let jitter = 1e-9; jitter < 1; jitter *= 10) {
    const L = kernel.slice();
    let trace = 0;
    for (let i = 0; i < n; i++) trace += kernel[i * (n + 1)]!;
    const ridge = trace > 0 ? (jitter * trace) / n : 1;
    for (let i = 0; i < n; i++) L[i * (n + 1)]! += ridge;
    if (cholesky(L, n)) return L;
  }
  throw new RangeError("features: expected finite numbers whose products can be factored");
}
