import { createRandom, type Random } from "../math/random.ts";

/** One setting of a lever. */
interface Level {
  /** In whatever is limited: milliseconds, non-zero weights or bytes; at least 0. */
  readonly cost: number;
  /** What it costs in quality, at least 0; losses of different levers are added. */
  readonly loss: number;
}

/** One thing to decide: a layer, a group of channels or a block, with the levels it can take. */
export interface Lever {
  readonly name: string;
  readonly levels: readonly Level[];
}

/** What there is to decide, and the limit on Σ cost. */
export interface Budget {
  readonly levers: readonly Lever[];
  readonly limit: number;
  /** Cells of the table between 0 and the limit; 10 000 by default, as in SPDY. */
  readonly buckets?: number;
}

/** A level for each lever, or word that none is cheap enough. */
export type Allocation =
  | {
      readonly feasible: true;
      /** Index of the level of each lever, in the order of the levers. */
      readonly choice: readonly number[];
      readonly cost: number;
      readonly loss: number;
    }
  | {
      readonly feasible: false;
      /** Σ of each lever's cheapest level: the least limit that can be kept. */
      readonly leastCost: number;
    };

const DEFAULT_BUCKETS = 10_000;
/** Sums of the same numbers in another order differ by this much of their size. */
const ROUNDING = 1e-12;

/**
 * Chooses the level of each lever with the least Σ loss within Σ cost ≤ limit, by dynamic
 * programming over discretized cost (SPDY, Frantar & Alistarh 2022, arXiv:2202.01306, eq. 4; OBC,
 * 2022, arXiv:2208.11580, section 5).
 *
 * Unlike there, a cell keeps the true cost of its best state instead of a rounded one, so rounding
 * does not add up and the limit is kept exactly. What is lost against the exact optimum is at most
 * what a limit smaller by `levers / buckets` of it would lose.
 *
 * @throws {RangeError} for a lever without levels, or a number that makes no sense.
 */
export function chooseLevels(budget: Budget): Allocation {
  checkBudget(budget);
  return allocate(budget, null);
}

/** @param weights factor on the losses of each lever; null for ones. */
function allocate(budget: Budget, weights: readonly number[] | null): Allocation {
  const { levers, limit, buckets = DEFAULT_BUCKETS } = budget;
  const rest = leastCostFrom(levers);
  const leastCost = rest[0]!;
  const ceiling = limit + ROUNDING * Math.max(limit, leastCost);
  if (leastCost > ceiling) return { feasible: false, leastCost };
  const width = limit > 0 ? limit / buckets : 1;
  const cellOf = (cost: number) => Math.min(buckets, Math.floor(cost / width));
  let loss = new Float64Array(buckets + 1).fill(Number.POSITIVE_INFINITY);
  let cost = new Float64Array(buckets + 1);
  loss[0] = 0;
  /** Level and cell before, by lever and cell. */
  const steps: { level: Int32Array; from: Int32Array }[] = [];
  levers.forEach(({ levels }, i) => {
    const nextLoss = new Float64Array(buckets + 1).fill(Number.POSITIVE_INFINITY);
    const nextCost = new Float64Array(buckets + 1);
    const level = new Int32Array(buckets + 1);
    const from = new Int32Array(buckets + 1);
    // A state stays only if the cheapest levels of what follows still fit: so one always arrives.
    const room = ceiling - rest[i + 1]!;
    const weight = weights?.[i] ?? 1;
    for (const at of usefulLevels(levels)) {
      const own = levels[at]!;
      const ownLoss = weight * own.loss;
      for (let cell = 0; cell <= buckets; cell++) {
        if (loss[cell] === Number.POSITIVE_INFINITY) continue;
        const total = cost[cell]! + own.cost;
        if (total > room) continue;
        const to = cellOf(total);
        const sum = loss[cell]! + ownLoss;
        if (sum > nextLoss[to]! || (sum === nextLoss[to] && total >= nextCost[to]!)) continue;
        nextLoss[to] = sum;
        nextCost[to] = total;
        level[to] = at;
        from[to] = cell;
      }
    }
    loss = nextLoss;
    cost = nextCost;
    steps.push({ level, from });
  });
  return traceBack(levers, loss, steps);
}

/** Σ of the cheapest levels from each lever on; one entry more than levers, the last is 0. */
function leastCostFrom(levers: readonly Lever[]): Float64Array {
  const rest = new Float64Array(levers.length + 1);
  for (let i = levers.length - 1; i >= 0; i--) {
    rest[i] = rest[i + 1]! + Math.min(...levers[i]!.levels.map((level) => level.cost));
  }
  return rest;
}

/** Levels that no other one beats in both cost and loss. */
function usefulLevels(levels: readonly Level[]): number[] {
  const order = levels.map((_, index) => index);
  order.sort((a, b) => {
    const [first, second] = [levels[a]!, levels[b]!];
    return first.cost - second.cost || first.loss - second.loss || a - b;
  });
  let best = Number.POSITIVE_INFINITY;
  return order.filter((index) => {
    if (levels[index]!.loss >= best) return false;
    best = levels[index]!.loss;
    return true;
  });
}

function traceBack(
  levers: readonly Lever[],
  loss: Float64Array,
  steps: readonly { level: Int32Array; from: Int32Array }[],
): Allocation {
  let cell = 0;
  for (let i = 1; i < loss.length; i++) if (loss[i]! < loss[cell]!) cell = i;
  const choice = new Array<number>(levers.length).fill(0);
  for (let i = levers.length - 1; i >= 0; i--) {
    choice[i] = steps[i]!.level[cell]!;
    cell = steps[i]!.from[cell]!;
  }
  return { feasible: true, choice, ...totalOf(levers, choice) };
}

function totalOf(levers: readonly Lever[], choice: readonly number[]): Level {
  let cost = 0;
  let loss = 0;
  levers.forEach(({ levels }, i) => {
    cost += levels[choice[i]!]!.cost;
    loss += levels[choice[i]!]!.loss;
  });
  return { cost, loss };
}

function checkBudget({ levers, limit, buckets = DEFAULT_BUCKETS }: Budget): void {
  if (!(limit >= 0 && limit < Number.POSITIVE_INFINITY)) {
    throw new RangeError(`limit: expected a finite number of at least 0, got ${limit}`);
  }
  if (!(Number.isInteger(buckets) && buckets >= 1)) {
    throw new RangeError(`buckets: expected a whole number of at least 1, got ${buckets}`);
  }
  for (const { name, levels } of levers) {
    if (levels.length === 0) throw new RangeError(`lever "${name}": expected levels, got none`);
    for (const { cost, loss } of levels) {
      if (cost >= 0 && cost < Number.POSITIVE_INFINITY && loss >= 0 && Number.isFinite(loss)) {
        continue;
      }
      throw new RangeError(
        `lever "${name}": expected finite cost and loss of at least 0, got ${cost} and ${loss}`,
      );
    }
  }
}

/** How {@link searchCoefficients} searches. */
export interface CoefficientSearch extends Budget {
  /** Judges an allocation, less is better; asked once for each different one. */
  readonly score: (choice: readonly number[]) => Promise<number>;
  readonly seed: number;
  /** Calls of `score` at most, at least 1. */
  readonly maxEvaluations: number;
  /** Random coefficients before the local search; SPDY: 100. */
  readonly randomStarts: number;
  /** Resamplings in a row without a gain before fewer coefficients are resampled; SPDY: 100. */
  readonly maxFailures: number;
  /** Asked before each evaluation but the first: true ends the search with the best so far. */
  readonly stop?: () => boolean;
  readonly onProgress?: (evaluations: number, best: number) => void;
  readonly signal: AbortSignal;
}

/** The best allocation of a search, or word that none is cheap enough. */
export type SearchedAllocation =
  | (Extract<Allocation, { feasible: true }> & {
      readonly score: number;
      /** Factor on the losses of each lever that led there, in [0, 1]. */
      readonly coefficients: readonly number[];
      readonly evaluations: number;
    })
  | Extract<Allocation, { feasible: false }>;

/**
 * Searches a factor in [0, 1] on the losses of each lever, so that what the tables cannot know
 * (how much an error in one layer matters for the task) is learned from the score of whole
 * allocations: first all ones (plain dynamic programming), then random factors, then resampling
 * round(0.1·levers), …, 1 of the best ones (SPDY, arXiv:2202.01306, algorithm 1).
 *
 * @throws {RangeError} as {@link chooseLevels}; the signal's reason where it is aborted.
 */
export async function searchCoefficients(search: CoefficientSearch): Promise<SearchedAllocation> {
  checkBudget(search);
  const { levers, signal, maxEvaluations } = search;
  const random = createRandom(search.seed);
  const scores = new Map<string, number>();
  let best: Extract<SearchedAllocation, { feasible: true }> | undefined;
  const over = () => scores.size >= maxEvaluations || (search.stop?.() ?? false);
  /** Whether the coefficients led to something better than the best so far. */
  const attempt = async (coefficients: readonly number[]): Promise<boolean> => {
    signal.throwIfAborted();
    const found = allocate(search, coefficients);
    if (!found.feasible) throw new RangeError("an allocation exists for every coefficient or none");
    const key = found.choice.join(",");
    if (scores.has(key)) return false;
    const score = await search.score(found.choice);
    scores.set(key, score);
    const better = best === undefined || score < best.score;
    // Moves along a plateau are taken too: from there something better may be one step away.
    if (better || score === best?.score) {
      best = { ...found, score, coefficients: [...coefficients], evaluations: 0 };
    }
    search.onProgress?.(scores.size, best!.score);
    return better;
  };
  const plain = allocate(search, null);
  if (!plain.feasible) return plain;
  await attempt(levers.map(() => 1));
  for (let start = 0; start < search.randomStarts && !over(); start++) {
    await attempt(levers.map(() => random.uniform()));
  }
  for (let count = Math.max(1, Math.round(0.1 * levers.length)); count >= 1; count--) {
    for (let failures = 0; failures < search.maxFailures && !over(); ) {
      const better = await attempt(resampled(best!.coefficients, count, random));
      failures = better ? 0 : failures + 1;
    }
  }
  return { ...best!, evaluations: scores.size };
}

function resampled(coefficients: readonly number[], count: number, random: Random): number[] {
  const places = random.sample([...coefficients.keys()], count);
  const result = [...coefficients];
  for (const place of places) result[place] = random.uniform();
  return result;
}

/** A result as two numbers, less of both is better. */
export interface Tradeoff {
  /** In whatever is limited: milliseconds, non-zero weights or bytes. */
  readonly cost: number;
  /** Loss in quality against the dense network. */
  readonly drop: number;
}

/** The points that no other one beats, by ascending cost and so by descending drop. */
export function paretoFront<T extends Tradeoff>(points: readonly T[]): T[] {
  const sorted = [...points].sort((a, b) => a.cost - b.cost || a.drop - b.drop);
  let best = Number.POSITIVE_INFINITY;
  return sorted.filter(({ drop }) => {
    if (!(drop < best)) return false;
    best = drop;
    return true;
  });
}

/** What a choice from a front must keep; the other of the two is made as small as it can be. */
export type FrontLimit = { readonly maxCost: number } | { readonly maxDrop: number };

/**
 * The best point of a front within a limit.
 *
 * @returns undefined where no point is within it.
 */
export function chooseFromFront<T extends Tradeoff>(
  front: readonly T[],
  limit: FrontLimit,
): T | undefined {
  const within = front.filter(({ cost, drop }) =>
    "maxCost" in limit ? cost <= limit.maxCost : drop <= limit.maxDrop,
  );
  const key = "maxCost" in limit ? "drop" : "cost";
  return within.reduce<T | undefined>(
    (best, point) => (best === undefined || point[key] < best[key] ? point : best),
    undefined,
  );
}
