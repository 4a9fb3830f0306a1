import { type Gemm, multiplyPrepared, type Operand, prepareOperand } from "../math/gemm.ts";
import { pause } from "../math/pause.ts";
import { checkLength, dot } from "../math/products.ts";

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
  /** Stop a row when its preconditioned residual fell below this share. Default 1e-3. */
  readonly tolerance?: number;
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
  const { target, weights, kept, rows, cols, H, maxIterations = 100, tolerance = 1e-3 } = problem;
  for (const [name, data] of Object.entries({ target, weights, kept })) {
    checkLength(name, data, rows * cols);
  }
  const operand = prepareOperand(H, cols, cols, rows, problem.gemm);
  const start = weights.slice();
  const before = await rowLosses(start, target, rows, operand, problem.gemm);
  const inverseDiagonal = new Float64Array(cols);
  for (let j = 0; j < cols; j++) {
    const diagonal = H[j * (cols + 1)]!;
    inverseDiagonal[j] = diagonal > 0 ? 1 / diagonal : 0;
  }
  let active: Row[] = [];
  for (let r = 0; r < rows; r++) {
    const row = openRow(problem, r, before.gradient, inverseDiagonal);
    if (row.energy > 0) active.push(row);
  }
  let iterations = 0;
  for (; active.length > 0 && iterations < maxIterations; iterations++) {
    await pause(problem.signal);
    const directions = new Float64Array(active.length * cols);
    for (const [k, row] of active.entries()) directions.set(row.direction, k * cols);
    const products = await multiplyPrepared(directions, active.length, operand, problem.gemm);
    const goal = tolerance * tolerance;
    active = active.filter((row, k) => {
      const product = products.subarray(k * cols, (k + 1) * cols);
      return advance(row, product, inverseDiagonal) && row.energy > goal * row.firstEnergy;
    });
  }
  const after = await rowLosses(weights, target, rows, operand, problem.gemm);
  let lossBefore = 0;
  let loss = 0;
  for (let r = 0; r < rows; r++) {
    lossBefore += before.losses[r]!;
    loss += Math.min(before.losses[r]!, after.losses[r]!);
    if (after.losses[r]! <= before.losses[r]!) continue;
    weights.set(start.subarray(r * cols, (r + 1) * cols), r * cols);
  }
  return { lossBefore, loss, iterations };
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
  const delta = weights.map((w, i) => w - target[i]!);
  const gradient = await multiplyPrepared(delta, rows, H, gemm);
  const losses = new Float64Array(rows);
  for (let r = 0; r < rows; r++) {
    losses[r] = Math.max(0, 0.5 * dot(delta, r * H.cols, gradient, r * H.cols, H.cols));
  }
  return { losses, gradient };
}

/** The state of one row's conjugate gradients. */
interface Row {
  /** Lies in the problem's `weights`. */
  readonly weights: Float64Array;
  readonly kept: Uint8Array;
  readonly residual: Float64Array;
  readonly direction: Float64Array;
  /** rᵀ·M⁻¹·r, now and at the start. */
  energy: number;
  readonly firstEnergy: number;
}

function openRow(
  problem: RefitProblem,
  r: number,
  gradient: Float64Array,
  inverseDiagonal: Float64Array,
): Row {
  const { cols } = problem;
  const weights = problem.weights.subarray(r * cols, (r + 1) * cols);
  const kept = problem.kept.subarray(r * cols, (r + 1) * cols);
  const residual = new Float64Array(cols);
  const direction = new Float64Array(cols);
  let energy = 0;
  for (let j = 0; j < cols; j++) {
    if (kept[j] === 0) continue;
    const value = -gradient[r * cols + j]!;
    residual[j] = value;
    direction[j] = value * inverseDiagonal[j]!;
    energy += value * direction[j]!;
  }
  return { weights, kept, residual, direction, energy, firstEnergy: energy };
}

/** One step with product = direction·H; false where H has no curvature left to use. */
function advance(row: Row, product: Float64Array, inverseDiagonal: Float64Array): boolean {
  const { weights, kept, residual, direction } = row;
  const curvature = dot(direction, 0, product, 0, direction.length);
  if (!(curvature > 0)) return false;
  const step = row.energy / curvature;
  let energy = 0;
  for (let j = 0; j < direction.length; j++) {
    if (kept[j] === 0) continue;
    weights[j]! += step * direction[j]!;
    residual[j]! -= step * product[j]!;
    energy += residual[j]! * residual[j]! * inverseDiagonal[j]!;
  }
  const keep = energy / row.energy;
  for (let j = 0; j < direction.length; j++) {
    direction[j] = residual[j]! * inverseDiagonal[j]! + keep * direction[j]!;
  }
  row.energy = energy;
  return true;
}
