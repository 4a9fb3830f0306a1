import { invertLowerTransposed } from "./cholesky.ts";
import type { Gemm } from "./gemm.ts";
import { checkLength, productOfRows, transposed } from "./products.ts";
import { createRandom } from "./random.ts";
import {
  classWeights,
  fitSoftmax,
  negativeLogLikelihoods,
  type SoftmaxProblem,
} from "./softmax.ts";
import {
  factorKernel,
  type HeadData,
  type StandardizedSpace,
  standardizedSpace,
} from "./standardized-space.ts";

/** Settings of {@link chooseL2}. */
export interface ChooseL2Options {
  /** Group (burst) of each sample: a group is trained on or judged on, never both. */
  readonly groups: ArrayLike<string | number>;
  /** Seed of the folds. */
  readonly seed: number;
  /** Default 5. */
  readonly folds?: number;
  /** Candidates. Default 1e-4 … 10 in six steps. */
  readonly grid?: readonly number[];
  /** What to return where nothing can be held out. Default 0.1. */
  readonly fallback?: number;
  readonly balanced?: boolean;
  readonly gemm?: Gemm | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** The penalty chosen, and why. */
export interface ChosenL2 {
  readonly l2: number;
  /** Class-balanced negative log likelihood of held-out samples for each candidate, in nats. */
  readonly scores: readonly { readonly l2: number; readonly score: number }[];
  /** Samples that were held out in some fold; 0 means that `l2` is the fallback. */
  readonly judged: number;
  /** Probability of each sample's class at `l2` while it was held out; NaN where it never was. */
  readonly likelihoods: Float64Array;
}

const GRID: readonly number[] = [10, 1, 0.1, 0.01, 0.001, 0.0001];

/**
 * Chooses the penalty of {@link fitSoftmaxHead} by cross-validation over groups: seeded folds,
 * every class's groups spread over them; each candidate warm-started from the next stronger one.
 * A group that is all a class has is always trained on, never judged on. Means and spreads for
 * standardization come from all samples, which uses no label.
 *
 * @throws {RangeError} if sizes do not fit or the grid is empty.
 */
export async function chooseL2(data: HeadData, options: ChooseL2Options): Promise<ChosenL2> {
  const { groups, seed, folds = 5, fallback = 0.1, gemm, signal } = options;
  const grid = [...(options.grid ?? GRID)].sort((a, b) => b - a);
  checkLength("groups", groups, data.samples);
  if (grid.length === 0) throw new RangeError("grid: expected at least one penalty, got none");
  const foldOf = assignFolds(data, groups, folds, seed);
  const judgedOn = Array.from(foldOf.keys()).filter((i) => foldOf[i]! >= 0);
  const likelihoods = new Float64Array(data.samples).fill(Number.NaN);
  if (judgedOn.length === 0) return { l2: fallback, scores: [], judged: 0, likelihoods };
  const space = await standardizedSpace(data, gemm);
  const losses = grid.map(() => new Float64Array(data.samples));
  for (let fold = 0; fold < folds; fold++) {
    const judged = judgedOn.filter((i) => foldOf[i] === fold);
    if (judged.length === 0) continue;
    const trained = Array.from(foldOf.keys()).filter((i) => foldOf[i] !== fold);
    const split = splitDesign(data, space, trained, judged);
    let start: Float64Array | undefined;
    for (const [g, l2] of grid.entries()) {
      signal?.throwIfAborted();
      const sampleWeights = classWeights(
        split.train.labels,
        data.classes,
        options.balanced ?? true,
      );
      const problem = { ...split.train, sampleWeights, l2 };
      const fit = await fitSoftmax(problem, {
        maxIterations: 100,
        tolerance: 1e-4,
        gemm,
        ...(start ? { start } : {}),
        ...(signal ? { signal } : {}),
      });
      start = fit.x;
      const nll = await negativeLogLikelihoods(split.judge, fit.x, gemm);
      for (const [k, i] of judged.entries()) losses[g]![i] = nll[k]!;
    }
  }
  const labels = judgedOn.map((i) => data.labels[i]!);
  const weights = classWeights(labels, data.classes, true);
  const scores = grid.map((l2, g) => {
    const score = judgedOn.reduce((sum, i, k) => sum + weights[k]! * losses[g]![i]!, 0);
    return { l2, score };
  });
  const best = scores.reduce((a, b) => (b.score < a.score ? b : a));
  const atBest = losses[scores.indexOf(best)]!;
  for (const i of judgedOn) likelihoods[i] = Math.exp(-atBest[i]!);
  return { l2: best.l2, scores, judged: judgedOn.length, likelihoods };
}

/**
 * Fold of each sample, −1 for those never judged on. The groups of each class are shuffled and
 * dealt one after the other, so that no fold takes all groups of a class.
 */
function assignFolds(
  data: HeadData,
  groups: ArrayLike<string | number>,
  folds: number,
  seed: number,
): Int32Array {
  const members = new Map<string | number, number[]>();
  const groupsOfClass = new Map<number, Set<string | number>>();
  for (let i = 0; i < data.samples; i++) {
    const group = groups[i]!;
    const own = members.get(group);
    if (own) own.push(i);
    else members.set(group, [i]);
    const set = groupsOfClass.get(data.labels[i]!) ?? new Set();
    groupsOfClass.set(data.labels[i]!, set.add(group));
  }
  const fold = new Int32Array(data.samples).fill(-1);
  const random = createRandom(seed);
  const dealt = new Set<string | number>();
  let next = 0;
  for (const [, own] of [...groupsOfClass].sort(([a], [b]) => a - b)) {
    for (const group of random.shuffle([...own])) {
      const samples = members.get(group) ?? [];
      const alone = samples.some((i) => groupsOfClass.get(data.labels[i]!)?.size === 1);
      if (alone || dealt.has(group)) continue;
      dealt.add(group);
      for (const i of samples) fold[i] = next % folds;
      next++;
    }
  }
  return fold;
}

type Design = Omit<SoftmaxProblem, "l2" | "sampleWeights">;

/** Training and judging part in the coordinates of the training samples (or the features). */
function splitDesign(
  data: HeadData,
  space: StandardizedSpace,
  trained: readonly number[],
  judged: readonly number[],
): { train: Design; judge: Design } {
  const { samples, inputs, classes } = data;
  const part = (R: Float64Array, width: number, indices: readonly number[]): Design => ({
    R,
    samples: indices.length,
    inputs: width,
    classes,
    labels: indices.map((i) => data.labels[i]!),
    offset: pick(space.offset, classes, samples, undefined, indices),
  });
  const { kernel, Z } = space;
  if (!kernel) {
    const rows = (indices: readonly number[]) => pick(Z, samples, inputs, indices, undefined);
    return {
      train: part(rows(trained), inputs, trained),
      judge: part(rows(judged), inputs, judged),
    };
  }
  const n = trained.length;
  const L = factorKernel(pick(kernel, samples, samples, trained, trained), n);
  const inverse = transposed(invertLowerTransposed(L, n), n, n);
  const across = pick(kernel, samples, samples, judged, trained);
  const R = productOfRows(across, inverse, judged.length, n, n);
  return { train: part(L, n, trained), judge: part(R, n, judged) };
}

/** The given rows and columns of a matrix; all where undefined. */
function pick(
  A: Float64Array,
  rows: number,
  cols: number,
  rowIndices: readonly number[] | undefined,
  colIndices: readonly number[] | undefined,
): Float64Array {
  const is = rowIndices ?? Array.from({ length: rows }, (_, i) => i);
  const js = colIndices ?? Array.from({ length: cols }, (_, j) => j);
  const out = new Float64Array(is.length * js.length);
  for (const [a, i] of is.entries()) {
    for (const [b, j] of js.entries()) out[a * js.length + b] = A[i * cols + j]!;
  }
  return out;
}
