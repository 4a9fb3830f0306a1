import {
  type Gemm,
  multiplyPrepared,
  type Operand,
  prepareOperand,
  referenceGemm,
} from "../math/gemm.ts";
import { pause } from "../math/pause.ts";
import { checkLength, dot, productOfRows } from "../math/products.ts";

/** A mask whose surviving weights are to be fitted. */
export interface RefitProblem {
  /** The weights to come close to, W, `rows × cols`, row-major; read only. */
  readonly target: Float64Array;
  /** Where to start, zero wherever the mask is; overwritten by the result. */
  readonly weights: Float64Array;
  /** 1 where a weight may be other than zero, `rows × cols`. */
  readonly kept: Uint8Array;
  readonly rows: number;
  readonly cols: number;
  /** Symmetric positive semidefinite H (damped), `cols × cols`. */
  readonly H: Float64Array;
  /** Default 100. */
  readonly maxIterations?: number;
  /** Stop a row when its preconditioned residual fell below this share. Default 5e-3. */
  readonly tolerance?: number;
  /**
   * Stop a row, too, when two steps in turn each took less than this share of the mean loss of a
   * row off it. Default 0.
   */
  readonly gain?: number;
  /** A loss of all rows together below which `gain` is a share of this instead. Default 0. */
  readonly negligible?: number;
  readonly gemm?: Gemm | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** What {@link refit} reached. */
export interface RefitResult {
  /** ½tr(δHδᵀ) before, δ = start − W. */
  readonly lossBefore: number;
  /** ½tr(δHδᵀ) after; never above `lossBefore`, also row by row. */
  readonly loss: number;
  /** Products with H that the slowest row took. */
  readonly iterations: number;
}

/**
 * Least squares on a given mask: for every row, the surviving weights that minimize
 * ½(w − W)·H·(w − W)ᵀ, i.e. w_K = W·H_:K·(H_KK)⁻¹. All rows at once by conjugate gradients
 * (Hestenes & Stiefel 1952) preconditioned by diag H, in which every step is one product of the
 * unfinished rows with H; the residual is masked, so pruned weights never move. A row that rounding
 * made worse than its start gets its start back.
 *
 * @throws {RangeError} if a size does not fit.
 * @throws the signal's reason, when aborted between two steps.
 */
export async function refit(problem: RefitProblem): Promise<RefitResult> {
  const { target, weights, kept, rows, cols, H, maxIterations = 100, tolerance = 5e-3 } = problem;
  for (const [name, data] of Object.entries({ target, weights, kept })) {
    checkLength(name, data, rows * cols);
  }
  const operand = prepareOperand(H, cols, cols, rows, problem.gemm);
  const start = weights.slice();
  const before = await rowLosses(start, target, rows, operand, problem.gemm);
  const lossBefore = before.losses.reduce((sum, loss) => sum + loss, 0);
  const descent = openDescent(problem, before.gradient, lossBefore);
  let iterations = 0;
  for (; descent.active.length > 0 && iterations < maxIterations; iterations++) {
    await pause(problem.signal);
    const products = await descent.multiply(descent.directions, descent.active.length);
    const goal = tolerance * tolerance;
    const small = smallGain(problem, descent);
    const going = descent.active.map((row, k) => {
      const gained = step(problem, descent, row, k, products);
      descent.loss -= gained;
      row.smallSteps = gained < small ? row.smallSteps + 1 : 0;
      return gained > 0 && row.energy > goal * row.firstEnergy && row.smallSteps < 2;
    });
    dropRows(descent, going);
  }
  const after = await rowLosses(weights, target, rows, operand, problem.gemm);
  let loss = 0;
  for (let r = 0; r < rows; r++) {
    loss += Math.min(before.losses[r]!, after.losses[r]!);
    if (after.losses[r]! <= before.losses[r]!) continue;
    weights.set(start.subarray(r * cols, (r + 1) * cols), r * cols);
  }
  return { lossBefore, loss, iterations };
}

/** What a step must take off a row's loss to count. */
function smallGain({ rows, gain = 0, negligible = 0 }: RefitProblem, { loss }: Descent): number {
  return (gain * Math.max(loss, negligible)) / rows;
}

/**
 * ½tr(δHδᵀ) with δ = `weights` − `target`, both `rows × cols`: with H = 2XXᵀ/n, the squared
 * output error summed over rows and averaged over inputs.
 */
export async function quadraticLoss(
  weights: Float64Array,
  target: Float64Array,
  rows: number,
  H: Float64Array,
  gemm?: Gemm,
): Promise<number> {
  const cols = weights.length / rows;
  const operand = prepareOperand(H, cols, cols, rows, gemm);
  const { losses } = await rowLosses(weights, target, rows, operand, gemm);
  return losses.reduce((sum, loss) => sum + loss, 0);
}

/** Loss of each row and the gradient δ·H. */
async function rowLosses(
  weights: Float64Array,
  target: Float64Array,
  rows: number,
  H: Operand,
  gemm?: Gemm,
): Promise<{ losses: Float64Array; gradient: Float64Array }> {
  const delta = new Float64Array(weights.length);
  for (let i = 0; i < delta.length; i++) delta[i] = weights[i]! - target[i]!;
  const gradient = await multiplyPrepared(delta, rows, H, gemm);
  const losses = new Float64Array(rows);
  for (let r = 0; r < rows; r++) {
    losses[r] = Math.max(0, 0.5 * dot(delta, r * H.cols, gradient, r * H.cols, H.cols));
  }
  return { losses, gradient };
}

/** A row whose conjugate gradients are not finished. */
interface Row {
  readonly index: number;
  /** rᵀ·M⁻¹·r, now and at the start. */
  energy: number;
  readonly firstEnergy: number;
  /** Steps in turn, up to now, that brought little. */
  smallSteps: number;
}

/**
 * The conjugate gradients of all rows. Everything is in units in which H has a mean diagonal of 1,
 * so that single precision has room for it.
 */
interface Descent {
  active: Row[];
  /** Of all rows together, as the steps say, in units of ½tr(δHδᵀ). */
  loss: number;
  /** What H is divided by. */
  readonly unit: number;
  /** Of the active rows one after the other, `active × cols`. */
  directions: Float32Array | Float64Array;
  /** −gradient where a weight may move, zero elsewhere, `rows × cols`. */
  readonly residual: Float64Array;
  /** M⁻¹ = 1/diag H. */
  readonly inverseDiagonal: Float64Array;
  /** `count` directions times H. */
  readonly multiply: (
    directions: Float32Array | Float64Array,
    count: number,
  ) => Promise<Float32Array | Float64Array>;
}

function openDescent(problem: RefitProblem, gradient: Float64Array, loss: number): Descent {
  const { rows, cols, H, kept, gemm } = problem;
  let trace = 0;
  for (let j = 0; j < cols; j++) trace += H[j * (cols + 1)]!;
  const unit = trace > 0 ? trace / cols : 1;
  const inverseDiagonal = new Float64Array(cols);
  for (let j = 0; j < cols; j++) {
    const diagonal = H[j * (cols + 1)]!;
    inverseDiagonal[j] = diagonal > 0 ? unit / diagonal : 0;
  }
  const residual = new Float64Array(gradient.length);
  for (let i = 0; i < residual.length; i++) residual[i] = (-gradient[i]! / unit) * kept[i]!;
  const active: Row[] = [];
  for (let index = 0; index < rows; index++) {
    let energy = 0;
    for (let j = 0; j < cols; j++) energy += residual[index * cols + j]! ** 2 * inverseDiagonal[j]!;
    if (energy > 0) active.push({ index, energy, firstEnergy: energy, smallSteps: 0 });
  }
  const size = active.length * cols;
  // One type wherever an engine is supplied: loops that see both run at a third of the speed.
  const directions = gemm ? new Float32Array(size) : new Float64Array(size);
  active.forEach(({ index }, k) => {
    for (let j = 0; j < cols; j++) {
      directions[k * cols + j] = residual[index * cols + j]! * inverseDiagonal[j]!;
    }
  });
  const multiply =
    directions instanceof Float32Array
      ? singleProduct(scaledTo(H, unit), cols, gemm)
      : doubleProduct(H, unit, cols);
  return { active, loss, unit, directions, residual, inverseDiagonal, multiply };
}

/** Multiplications from which on a product is worth a call of the supplied engine. */
const WORTH_A_CALL = 1 << 17;

function singleProduct(H: Float32Array, cols: number, gemm: Gemm = referenceGemm) {
  return (directions: Float32Array | Float64Array, rows: number) => {
    const multiply = rows * cols * cols >= WORTH_A_CALL ? gemm : referenceGemm;
    const data = directions instanceof Float32Array ? directions : new Float32Array(directions);
    return multiply({ data, rows, cols }, { data: H, rows: cols, cols });
  };
}

function doubleProduct(H: Float64Array, unit: number, cols: number) {
  return (directions: Float32Array | Float64Array, rows: number) => {
    const data = directions instanceof Float64Array ? directions : new Float64Array(directions);
    const products = productOfRows(data, H, rows, cols, cols);
    for (let i = 0; i < products.length; i++) products[i]! /= unit;
    return Promise.resolve(products);
  };
}

function scaledTo(H: Float64Array, unit: number): Float32Array {
  const out = new Float32Array(H.length);
  for (let i = 0; i < H.length; i++) out[i] = H[i]! / unit;
  return out;
}

/** One step of the `k`-th active row: what it took off the loss, 0 where H has no curvature left. */
function step(
  { weights, kept, cols }: RefitProblem,
  { directions, residual, inverseDiagonal, unit }: Descent,
  row: Row,
  k: number,
  products: Float32Array | Float64Array,
): number {
  const from = row.index * cols;
  const at = k * cols;
  let curvature = 0;
  for (let j = 0; j < cols; j++) curvature += directions[at + j]! * products[at + j]!;
  if (!(curvature > 0)) return 0;
  const length = row.energy / curvature;
  const gained = 0.5 * length * row.energy * unit;
  let energy = 0;
  for (let j = 0; j < cols; j++) {
    weights[from + j]! += length * directions[at + j]!;
    const left = (residual[from + j]! - length * products[at + j]!) * kept[from + j]!;
    residual[from + j] = left;
    energy += left * left * inverseDiagonal[j]!;
  }
  const keep = energy / row.energy;
  for (let j = 0; j < cols; j++) {
    directions[at + j] = residual[from + j]! * inverseDiagonal[j]! + keep * directions[at + j]!;
  }
  row.energy = energy;
  return gained;
}

/** Closes the ranks of the rows that go on. */
function dropRows(descent: Descent, going: readonly boolean[]): void {
  const { directions, active } = descent;
  const cols = directions.length / active.length;
  const left = active.filter((_, k) => going[k]);
  if (left.length === active.length) return;
  let to = 0;
  going.forEach((goes, k) => {
    if (!goes) return;
    if (to !== k) directions.copyWithin(to * cols, k * cols, (k + 1) * cols);
    to++;
  });
  descent.active = left;
  descent.directions = directions.subarray(0, left.length * cols);
}
