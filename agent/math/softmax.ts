import { type Gemm, multiplyPrepared, type Operand, prepareOperand } from "./gemm.ts";
import { type MinimizeOptions, type Minimum, minimize, type Objective } from "./lbfgs.ts";
import { checkLength, transposed } from "./products.ts";

/** Penalty on the change of a bias: tiny, so that the bias of a class nobody has stays finite. */
const BIAS_L2 = 1e-4;

/** The data of a multinomial logistic regression on a design matrix R. */
export interface SoftmaxProblem {
  /** `samples × inputs`, row-major. */
  readonly R: Float64Array;
  readonly samples: number;
  readonly inputs: number;
  readonly classes: number;
  /** Class of each sample, in [0, classes). */
  readonly labels: ArrayLike<number>;
  /** Weight of each sample; they sum to 1. */
  readonly sampleWeights: Float64Array;
  /** Logits that are there before any weight, `classes × samples`; none by default. */
  readonly offset?: Float64Array;
  /** λ of the penalty λ/2·‖V‖². */
  readonly l2: number;
}

/**
 * Loss and gradient over x = [V (`classes × inputs`), β (`classes`)]:
 * Σᵢ cᵢ·(−log softmax(offsetᵢ + V·rᵢ + β)[yᵢ]) + λ/2·‖V‖² + 1e-4/2·‖β‖².
 *
 * @param gemm does the products where they are large; plain doubles without it.
 */
export function softmaxObjective(problem: SoftmaxProblem, gemm?: Gemm): Objective {
  const { R, samples, inputs, classes, labels, sampleWeights, offset, l2 } = problem;
  checkLength("labels", labels, samples);
  const rows = prepareOperand(R, samples, inputs, classes, gemm);
  const Rt = transposed(R, samples, inputs);
  const columns = prepareOperand(Rt, inputs, samples, classes, gemm);
  return async (x, gradient) => {
    const V = x.subarray(0, classes * inputs);
    const beta = x.subarray(classes * inputs);
    const P = await classLogits(V, beta, rows, classes, offset, gemm);
    let loss = residualInPlace(P, labels, sampleWeights, classes);
    gradient.set(await multiplyPrepared(P, classes, columns, gemm));
    for (let i = 0; i < V.length; i++) {
      loss += 0.5 * l2 * V[i]! * V[i]!;
      gradient[i]! += l2 * V[i]!;
    }
    for (let c = 0; c < classes; c++) {
      let sum = BIAS_L2 * beta[c]!;
      for (let i = 0; i < samples; i++) sum += P[c * samples + i]!;
      gradient[V.length + c] = sum;
      loss += 0.5 * BIAS_L2 * beta[c]! * beta[c]!;
    }
    return loss;
  };
}

/** Logits, `classes × samples`: one class after the other, as both products want them. */
async function classLogits(
  V: Float64Array,
  beta: Float64Array,
  rows: Operand,
  classes: number,
  offset: Float64Array | undefined,
  gemm?: Gemm,
): Promise<Float64Array> {
  const logits = await multiplyPrepared(V, classes, rows, gemm);
  for (let c = 0; c < classes; c++) {
    const at = c * rows.rows;
    for (let i = at; i < at + rows.rows; i++) logits[i]! += beta[c]! + (offset ? offset[i]! : 0);
  }
  return logits;
}

/** Turns logits into cᵢ·(softmax − one-hot), the gradient by logits, and returns Σ cᵢ·loss. */
function residualInPlace(
  logits: Float64Array,
  labels: ArrayLike<number>,
  sampleWeights: Float64Array,
  classes: number,
): number {
  const samples = sampleWeights.length;
  let loss = 0;
  for (let i = 0; i < samples; i++) {
    let top = Number.NEGATIVE_INFINITY;
    for (let c = 0; c < classes; c++) top = Math.max(top, logits[c * samples + i]!);
    const own = logits[labels[i]! * samples + i]! - top;
    let sum = 0;
    for (let c = 0; c < classes; c++) {
      const e = Math.exp(logits[c * samples + i]! - top);
      logits[c * samples + i] = e;
      sum += e;
    }
    const weight = sampleWeights[i]!;
    loss += weight * (Math.log(sum) - own);
    for (let c = 0; c < classes; c++) logits[c * samples + i]! *= weight / sum;
    logits[labels[i]! * samples + i]! -= weight;
  }
  return loss;
}

/** Minimizes {@link softmaxObjective} from `start` (zeros by default). */
export function fitSoftmax(
  problem: SoftmaxProblem,
  options: MinimizeOptions & { readonly gemm?: Gemm | undefined; readonly start?: Float64Array },
): Promise<Minimum> {
  const size = problem.classes * (problem.inputs + 1);
  const start = options.start ?? new Float64Array(size);
  checkLength("start", start, size);
  return minimize(softmaxObjective(problem, options.gemm), start, options);
}

/**
 * Negative log likelihood of each sample under x = [V, β].
 *
 * @returns one value a sample, in nats.
 */
export async function negativeLogLikelihoods(
  problem: Omit<SoftmaxProblem, "l2" | "sampleWeights">,
  x: Float64Array,
  gemm?: Gemm,
): Promise<Float64Array> {
  const { R, samples, inputs, classes, labels, offset } = problem;
  const rows = prepareOperand(R, samples, inputs, classes, gemm);
  const V = x.subarray(0, classes * inputs);
  const beta = x.subarray(classes * inputs);
  const logits = await classLogits(V, beta, rows, classes, offset, gemm);
  const out = new Float64Array(samples);
  for (let i = 0; i < samples; i++) {
    let top = Number.NEGATIVE_INFINITY;
    for (let c = 0; c < classes; c++) top = Math.max(top, logits[c * samples + i]!);
    let sum = 0;
    for (let c = 0; c < classes; c++) sum += Math.exp(logits[c * samples + i]! - top);
    out[i] = Math.log(sum) + top - logits[labels[i]! * samples + i]!;
  }
  return out;
}

/**
 * Sample weights that sum to 1: every sample the same, or every class that occurs the same.
 *
 * @throws {RangeError} if a label is no class, or there is no sample.
 */
export function classWeights(
  labels: ArrayLike<number>,
  classes: number,
  balanced: boolean,
): Float64Array {
  const counts = new Float64Array(classes);
  for (let i = 0; i < labels.length; i++) {
    const label = labels[i]!;
    if (!(Number.isInteger(label) && label >= 0 && label < classes)) {
      throw new RangeError(`labels[${i}]: expected a class in [0, ${classes}), got ${label}`);
    }
    counts[label]!++;
  }
  if (labels.length === 0) throw new RangeError("labels: expected at least one sample, got none");
  const present = counts.filter((count) => count > 0).length;
  const weights = new Float64Array(labels.length);
  for (let i = 0; i < weights.length; i++) {
    weights[i] = balanced ? 1 / (present * counts[labels[i]!]!) : 1 / labels.length;
  }
  return weights;
}
