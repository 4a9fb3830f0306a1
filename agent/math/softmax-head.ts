import { invertLowerTransposed } from "./cholesky.ts";
import { type Gemm, multiplyPrepared, prepareOperand } from "./gemm.ts";
import { productOfRows, transposed } from "./products.ts";
import { classWeights, fitSoftmax } from "./softmax.ts";
import {
  factorKernel,
  type HeadData,
  type HeadWeights,
  type StandardizedSpace,
  standardizedSpace,
} from "./standardized-space.ts";

/** Settings of {@link fitSoftmaxHead}. */
export interface HeadOptions {
  /** λ of λ/2·‖W − prior‖² on standardized features; the loss is a weighted mean. */
  readonly l2: number;
  /** Whether every class counts the same however many samples it has. Default true. */
  readonly balanced?: boolean;
  /** Default 300. */
  readonly maxIterations?: number;
  /** Of the gradient, relative to the first one. Default 1e-6. */
  readonly tolerance?: number;
  readonly gemm?: Gemm | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** A fitted head. */
export interface FittedHead extends HeadWeights {
  /** Mean (class-balanced) negative log likelihood plus penalty, in nats. */
  readonly loss: number;
  readonly iterations: number;
  readonly converged: boolean;
}

/**
 * Multinomial logistic regression by L-BFGS on standardized features, the standardization folded
 * back into the returned weights. With fewer samples than features the search runs in the span of
 * the samples: Z·Zᵀ = L·Lᵀ, so Z = L·Q with orthonormal Q, and the same penalty on V = W·Qᵀ gives
 * the same optimum in `samples` instead of `inputs` unknowns a class.
 *
 * @throws {RangeError} if sizes do not fit, a label is no class, or a feature is not finite.
 */
export async function fitSoftmaxHead(data: HeadData, options: HeadOptions): Promise<FittedHead> {
  const { samples, inputs, labels, classes } = data;
  const { l2, balanced = true, maxIterations = 300, tolerance = 1e-6, gemm, signal } = options;
  if (!(l2 > 0)) throw new RangeError(`l2: expected more than 0, got ${l2}`);
  const space = await standardizedSpace(data, gemm);
  const R = space.kernel ? factorKernel(space.kernel, samples) : space.Z;
  const width = space.kernel ? samples : inputs;
  const problem = {
    R,
    samples,
    inputs: width,
    classes,
    labels,
    sampleWeights: classWeights(labels, classes, balanced),
    offset: space.offset,
    l2,
  };
  const minimum = await fitSoftmax(problem, {
    maxIterations,
    tolerance,
    gemm,
    ...(signal ? { signal } : {}),
  });
  const V = minimum.x.subarray(0, classes * width);
  const change = space.kernel ? await toFeatureSpace(V, R, space.Z, data, gemm) : V;
  const head = unstandardize(data, space, change, minimum.x.subarray(classes * width));
  const { value: loss, iterations, converged } = minimum;
  return { ...head, loss, iterations, converged };
}

/** V·L⁻¹·Z: the weights on standardized features. */
function toFeatureSpace(
  V: Float64Array,
  L: Float64Array,
  Z: Float64Array,
  data: HeadData,
  gemm?: Gemm,
): Promise<Float64Array> {
  const { samples, inputs, classes } = data;
  const T = invertLowerTransposed(L, samples);
  const alpha = productOfRows(V, T, classes, samples, samples);
  const Zt = prepareOperand(transposed(Z, samples, inputs), inputs, samples, classes, gemm);
  return multiplyPrepared(alpha, classes, Zt, gemm);
}

/** W = prior + change/spread and b = prior + β − (change/spread)·mean. */
function unstandardize(
  data: HeadData,
  space: StandardizedSpace,
  change: Float64Array,
  beta: Float64Array,
): HeadWeights {
  const { inputs, classes, prior } = data;
  const weights = new Float32Array(classes * inputs);
  const bias = new Float32Array(classes);
  for (let c = 0; c < classes; c++) {
    let shift = 0;
    for (let j = 0; j < inputs; j++) {
      const delta = change[c * inputs + j]! / space.spread[j]!;
      shift += delta * space.mean[j]!;
      weights[c * inputs + j] = (prior ? prior.weights[c * inputs + j]! : 0) + delta;
    }
    bias[c] = (prior ? prior.bias[c]! : 0) + beta[c]! - shift;
  }
  return { weights, bias };
}
