/**
 * A smooth function to be minimized: writes the gradient at `x` into `gradient` and returns the
 * value. It may be asynchronous, so that heavy products can be done elsewhere.
 */
export type Objective = (x: Float64Array, gradient: Float64Array) => number | Promise<number>;

/** Settings of {@link minimize}. */
export interface MinimizeOptions {
  /** Default 200. */
  readonly maxIterations?: number;
  /** Stop at ‖gradient‖ ≤ tolerance · max(1, ‖first gradient‖). Default 1e-6. */
  readonly tolerance?: number;
  /** Pairs of steps remembered. Default 10. */
  readonly memory?: number;
  readonly signal?: AbortSignal;
}

/** Where {@link minimize} ended. */
export interface Minimum {
  readonly x: Float64Array;
  readonly value: number;
  readonly iterations: number;
  /** False where it stopped at the limit of iterations, or could not go lower. */
  readonly converged: boolean;
}

/** Sufficient decrease and curvature of the weak Wolfe conditions. */
const DECREASE = 1e-4;
const CURVATURE = 0.9;
const MAX_TRIALS = 30;

/**
 * L-BFGS (Nocedal & Wright 2006, algorithms 7.4 and 7.5) with a bisecting line search for the
 * weak Wolfe conditions (Lewis & Overton 2013, algorithm 4.6). Never returns a value above the
 * first one.
 *
 * @param start where to begin; not changed.
 * @throws the signal's reason, when aborted.
 */
export async function minimize(
  objective: Objective,
  start: Float64Array,
  options: MinimizeOptions = {},
): Promise<Minimum> {
  const { maxIterations = 200, tolerance = 1e-6, memory = 10, signal } = options;
  let x = start.slice();
  let gradient = new Float64Array(x.length);
  let value = await objective(x, gradient);
  const goal = tolerance * Math.max(1, norm(gradient));
  const pairs: Pair[] = [];
  for (let iteration = 0; ; iteration++) {
    signal?.throwIfAborted();
    if (norm(gradient) <= goal) return { x, value, iterations: iteration, converged: true };
    if (iteration === maxIterations) break;
    const direction = descentDirection(gradient, pairs);
    const first = pairs.length === 0 ? Math.min(1, 1 / norm(gradient)) : 1;
    const next = await lineSearch(objective, { x, value, gradient }, direction, first);
    if (next === undefined) {
      if (pairs.length === 0) return { x, value, iterations: iteration, converged: false };
      pairs.length = 0;
      continue;
    }
    remember(pairs, memory, difference(next.x, x), difference(next.gradient, gradient));
    x = next.x;
    value = next.value;
    gradient = next.gradient;
  }
  return { x, value, iterations: maxIterations, converged: false };
}

interface Point {
  readonly x: Float64Array<ArrayBuffer>;
  readonly value: number;
  readonly gradient: Float64Array<ArrayBuffer>;
}

interface Pair {
  readonly s: Float64Array;
  readonly y: Float64Array;
  /** 1 / sᵀy. */
  readonly rho: number;
}

/** Two-loop recursion; steepest descent while nothing is remembered. */
function descentDirection(gradient: Float64Array, pairs: readonly Pair[]): Float64Array {
  const q = gradient.slice();
  const alphas: number[] = [];
  for (const { s, y, rho } of pairs.toReversed()) {
    const alpha = rho * inner(s, q);
    alphas.push(alpha);
    addScaled(q, y, -alpha);
  }
  const last = pairs.at(-1);
  if (last) scale(q, 1 / (last.rho * inner(last.y, last.y)));
  for (const { s, y, rho } of pairs) {
    addScaled(q, s, (alphas.pop() ?? 0) - rho * inner(y, q));
  }
  scale(q, -1);
  return q;
}

/** The best trial that lowers the value enough, or undefined where none does. */
async function lineSearch(
  objective: Objective,
  from: Point,
  direction: Float64Array,
  first: number,
): Promise<Point | undefined> {
  const slope = inner(from.gradient, direction);
  if (!(slope < 0)) return undefined;
  let low = 0;
  let high = Number.POSITIVE_INFINITY;
  let step = first;
  let accepted: Point | undefined;
  for (let trial = 0; trial < MAX_TRIALS; trial++) {
    const x = from.x.slice();
    addScaled(x, direction, step);
    const gradient = new Float64Array(x.length);
    const value = await objective(x, gradient);
    if (!(value <= from.value + DECREASE * step * slope)) {
      high = step;
    } else {
      accepted = { x, value, gradient };
      if (inner(gradient, direction) >= CURVATURE * slope) return accepted;
      low = step;
    }
    step = high < Number.POSITIVE_INFINITY ? (low + high) / 2 : 2 * low;
  }
  return accepted;
}

/** Keeps the newest pairs; one without positive curvature would spoil the recursion. */
function remember(pairs: Pair[], memory: number, s: Float64Array, y: Float64Array): void {
  const curvature = inner(s, y);
  if (!(curvature > Number.EPSILON * inner(y, y))) return;
  pairs.push({ s, y, rho: 1 / curvature });
  if (pairs.length > memory) pairs.shift();
}

function difference(a: Float64Array, b: Float64Array): Float64Array {
  return a.map((value, i) => value - b[i]!);
}

function addScaled(a: Float64Array, b: Float64Array, factor: number): void {
  for (let i = 0; i < a.length; i++) a[i]! += factor * b[i]!;
}

function scale(a: Float64Array, factor: number): void {
  for (let i = 0; i < a.length; i++) a[i]! *= factor;
}

function inner(a: Float64Array, b: Float64Array): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i]! * b[i]!;
  return sum;
}

function norm(a: Float64Array): number {
  return Math.sqrt(inner(a, a));
}
