import { pause } from "../math/pause.ts";
import { admmMask, tryAdmmMask } from "./admm.ts";
import type { DampedHessian } from "./damping.ts";
import { maskOfTraces, type RemovalTraces, traceRemovals } from "./exact-obs.ts";
import type { LayerGram } from "./hessian.ts";
import {
  type ColumnOrder,
  checkLayer,
  type GroupProblem,
  groupScale,
  judgeGroup,
  type LayerOptions,
  openGroup,
  openUnfactored,
  solverOrder,
} from "./layer-problem.ts";
import { type Pattern, zerosOf } from "./pattern.ts";
import { refit } from "./refit.ts";
import { sparseGpt } from "./sparsegpt.ts";

/** A matrix product or convolution, and what to do to it. */
export interface PruneLayerOptions extends LayerOptions {
  readonly pattern: Pattern;
  /**
   * Who finds the mask: SparseGPT's sweep; ADMM, or the sweep where it may do better; by default
   * exact traces where they can be afforded, ADMM elsewhere.
   */
  readonly solver?: "admm" | "sparsegpt";
  /** For a caller that prunes this layer at several levels. */
  readonly shared?: SharedTraces | undefined;
  /** Whether surviving weights are fitted by least squares; if not, only the sweep. Default true. */
  readonly refit?: boolean;
}

/** The exact traces of a layer, which serve every share of zeros. */
export interface SharedTraces {
  /** How many levels share them, and so how many times as much may be spent on them. */
  readonly levels: number;
  /** By group; what is missing is added. Only for the same weights, statistics and damping. */
  readonly byGroup: Map<number, RemovalTraces>;
}

/** A pruned layer. */
export interface PrunedLayer {
  /** New array, in the layout of the given weights. */
  readonly weights: Float32Array;
  /** New array; changed only where `centered` or `cross` ask for it. */
  readonly bias: Float32Array;
  /** 1 where a weight may be other than zero, in the layout of the weights. */
  readonly kept: Uint8Array;
  /** Share of weights kept by the mask. */
  readonly density: number;
  /** Squared output error summed over rows, averaged over inputs, without damping. */
  readonly loss: number;
  /**
   * ‖(Ŵ−W)X‖²/‖WX‖² (with means taken off, if `centered`); W are the retargeted weights where
   * `cross` is given.
   */
  readonly relativeLoss: number;
  /** The largest damping that a group needed. */
  readonly dampingUsed: number;
}

/**
 * Prunes one layer, group by group: statistics → damped factor → (retarget) → mask → least squares
 * on it → bias. Unstructured masks of small layers come from exact traces, all others from ADMM or
 * from SparseGPT's sweep, where that fits better. Gives way to the event loop between blocks of
 * columns.
 *
 * @throws {RangeError} if a size, the pattern or a statistic does not fit.
 * @throws the signal's reason, when aborted.
 */
export async function pruneLayer(options: PruneLayerOptions): Promise<PrunedLayer> {
  const { rows, cols, gram, pattern, kernelArea = 1 } = options;
  checkLayer(options);
  const order = solverOrder(cols, kernelArea, pattern);
  const weights = new Float32Array(rows * cols);
  const bias = options.bias?.slice() ?? new Float32Array(rows);
  const kept = new Uint8Array(rows * cols);
  const groupRows = rows / gram.groups;
  let loss = 0;
  let scale = 0;
  let dampingUsed = 0;
  for (let g = 0; g < gram.groups; g++) {
    await pause(options.signal);
    const pruned = await pruneGroup(options, g, order);
    const first = g * groupRows;
    for (let i = 0; i < groupRows * cols; i++) {
      const from = order ? i - (i % cols) + order.from[i % cols]! : i;
      weights[first * cols + i] = pruned.weights[from]!;
      kept[first * cols + i] = pruned.kept[from]!;
    }
    for (let r = 0; r < groupRows; r++) bias[first + r]! += pruned.biasChange[r]!;
    loss += pruned.loss;
    scale += pruned.scale;
    dampingUsed = Math.max(dampingUsed, pruned.damping);
  }
  const density = kept.reduce((sum, k) => sum + k, 0) / kept.length;
  const relativeLoss = scale > 0 ? loss / scale : 0;
  return { weights, bias, kept, density, loss, relativeLoss, dampingUsed };
}

interface PrunedGroup {
  /** `rows/groups × cols`, in the solver's order of columns. */
  readonly weights: Float64Array;
  readonly kept: Uint8Array;
  readonly biasChange: Float64Array;
  readonly loss: number;
  readonly scale: number;
  readonly damping: number;
}

async function pruneGroup(
  options: PruneLayerOptions,
  g: number,
  order: ColumnOrder | undefined,
): Promise<PrunedGroup> {
  const quick = admmSuffices(options) ? await pruneByAdmm(options, g, order) : undefined;
  if (quick && "kept" in quick) return quick;
  const problem = await openGroup(options, g, order);
  const { kept, weights: solved } = await solve(options, problem, g, quick);
  const weights = new Float64Array(new Float32Array(solved));
  const outcome = await judgeGroup(options, problem, weights);
  return { weights, kept, ...outcome, damping: problem.hessian.damping };
}

/**
 * From so many input vectors a column on, ADMM's mask is taken without a look at a sweep's: refitted,
 * it lost less on 149 of 160 layers and levels (50 and 70 %) of EfficientNet-B0 and MobileNetV2,
 * by 3 to 80 %. In the other eleven there were fewer vectors than columns.
 */
const VECTORS_A_COLUMN = 2;
/** With fewer vectors, too, where the mask loses less than this share of the output. */
const GOOD_ENOUGH = 1e-3;
/** What the damping must be at least so that nobody needs to look whether it is enough. */
const SAFE_DAMPING = 1e-3;

/** Whether no factor of the inverse Hessian is needed, unless ADMM's mask disappoints. */
function admmSuffices(options: PruneLayerOptions): boolean {
  const { pattern, cross, solver, damping = 0.01 } = options;
  const none = "sparsity" in pattern && pattern.sparsity === 0;
  return (
    solver !== "sparsegpt" &&
    (options.refit ?? true) &&
    !cross &&
    !none &&
    damping >= SAFE_DAMPING &&
    !traceable(options)
  );
}

/**
 * ADMM's mask with least squares on it; only the two where a sweep's might be better, nothing where
 * it takes a factorization to find the damping that is enough.
 */
async function pruneByAdmm(
  options: PruneLayerOptions,
  g: number,
  order: ColumnOrder | undefined,
): Promise<PrunedGroup | Found | undefined> {
  const { pattern, gram, gemm, signal } = options;
  const problem = openUnfactored(options, g, order);
  const { target, rows, cols, hessian, span } = problem;
  if (hessian.lambda < roundingOf(gram, g)) return undefined;
  const H = hessian.damped;
  const scale = await groupScale(problem, gemm);
  const found = await tryAdmmMask({ weights: target, rows, cols, H, pattern, span, gemm, signal });
  if (!found) return undefined;
  const loss = await fit(options, problem, found, scale);
  const enough = gram.count >= VECTORS_A_COLUMN * cols || loss <= GOOD_ENOUGH * scale;
  if (!enough) return { solution: found, loss };
  const weights = new Float64Array(new Float32Array(found.weights));
  const outcome = await judgeGroup(options, problem, weights, scale);
  return { weights, kept: found.kept, ...outcome, damping: hessian.damping };
}

/**
 * How negative rounding can make the eigenvalues of a Hessian that was summed in single precision
 * and lost its mean: some 2⁻²³·√cols of the mean second moment, with a margin of four.
 */
function roundingOf({ H, cols }: LayerGram, g: number): number {
  let trace = 0;
  for (let j = 0; j < cols; j++) trace += H[g * cols * cols + j * (cols + 1)]!;
  return (4 * 2 ** -23 * Math.sqrt(cols) * trace) / cols;
}

/** A fitted solution and its loss. */
interface Found {
  readonly solution: Solution;
  readonly loss: number;
}

/**
 * When least squares stop: at a step that takes less than this share of the mean row's loss off a
 * row, or of this share of the output where the loss is less. It leaves 0.1 % of the loss.
 */
const GAIN = 1e-3;
const NEGLIGIBLE = 1e-4;

/** Least squares on a solution's mask, in place; returns the loss. */
async function fit(
  { gemm, signal }: PruneLayerOptions,
  { target, rows, cols, hessian }: GroupProblem<DampedHessian>,
  solution: Solution,
  scale: number,
): Promise<number> {
  const problem = { target, ...solution, rows, cols, H: hessian.damped, gemm, signal };
  return (await refit({ ...problem, gain: GAIN, negligible: NEGLIGIBLE * scale })).loss;
}

/**
 * Below this share of a sweep's loss before its refit, ADMM's mask is taken without a look at what
 * the refit would make of the sweep's, which seldom takes a third off.
 */
const SURE = 0.65;

/** Multiplications that exact traces may take, about 0.05 s. */
const AFFORDABLE = 5e7;
/**
 * Up to this share of zeros traces need no comparison: of 168 layers and levels of EfficientNet-B0
 * and MobileNetV2 their masks, refitted, lost less than ADMM's in 164, by 5 % on average, and never
 * more than 2 % more. At 90 % it is 36 of 56.
 */
const ALONE = 0.7;

/** Whether exact traces are for this layer and can be afforded. */
function traceable(options: PruneLayerOptions): boolean {
  const { rows, cols, gram, pattern, solver, shared, refit: fits = true } = options;
  if (pattern.kind !== "unstructured" || solver !== undefined || !fits) return false;
  return ((rows / gram.groups) * cols ** 3) / 6 <= AFFORDABLE * (shared?.levels ?? 1);
}

/** By exact traces, before the refit; undefined where they are not for this or cost too much. */
async function trace(
  options: PruneLayerOptions,
  { target, rows, cols, hessian }: GroupProblem,
  g: number,
): Promise<Solution | undefined> {
  const { pattern, shared, signal } = options;
  if (pattern.kind !== "unstructured" || !traceable(options)) return undefined;
  const problem = { weights: target, rows, cols, hessian, signal };
  const traces = shared?.byGroup.get(g) ?? (await traceRemovals(problem));
  shared?.byGroup.set(g, traces);
  const kept = maskOfTraces(traces, rows, cols, zerosOf(pattern.sparsity, rows * cols));
  return { weights: target.map((w, i) => (kept[i] === 1 ? w : 0)), kept };
}

interface Solution {
  readonly weights: Float64Array;
  readonly kept: Uint8Array;
}

async function solve(
  options: PruneLayerOptions,
  problem: GroupProblem,
  g: number,
  known: Found | undefined,
): Promise<Solution> {
  const { pattern, gemm, signal, solver } = options;
  const { target, rows, cols, hessian, span } = problem;
  const H = hessian.damped;
  const scale = await groupScale(problem, gemm);
  const traced = await trace(options, problem, g);
  const tracedLoss = traced ? await fit(options, problem, traced, scale) : Number.POSITIVE_INFINITY;
  if (traced && "sparsity" in pattern && pattern.sparsity <= ALONE) return traced;
  const swept = await sweep(options, problem);
  if (!(options.refit ?? true)) return swept;
  if (solver === "sparsegpt" || swept.loss === 0) {
    await fit(options, problem, swept, scale);
    return swept;
  }
  const found =
    known?.solution ??
    (await admmMask({ weights: target, rows, cols, H, pattern, span, gemm, signal }));
  const loss = known?.loss ?? (await fit(options, problem, found, scale));
  if (traced) return tracedLoss <= loss ? traced : found;
  if (loss <= SURE * swept.loss) return found;
  return (await fit(options, problem, swept, scale)) < loss ? swept : found;
}

function sweep(options: PruneLayerOptions, { target, hessian, rows, cols, span }: GroupProblem) {
  const { pattern, gemm, signal, blockSize } = options;
  const weights = target.slice();
  const { U, dead } = hessian;
  const block = blockSize === undefined ? {} : { blockSize };
  const swept = { weights, rows, cols, U, dead, pattern, span, gemm, signal, ...block };
  return sparseGpt(swept).then(({ kept, loss }) => ({ weights, kept, loss }));
}
