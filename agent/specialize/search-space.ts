import {
  type Allocation,
  chooseLevels,
  type Lever,
  searchCoefficients,
} from "../compress/budget.ts";
import type { Graph } from "../onnx/graph.ts";
import type { CompressionPlan } from "./compression-plan.ts";

/** What a network is worth; less of both is better. */
export interface Judgment {
  /** What the search makes small: smooth, so that small steps show. */
  readonly loss: number;
  /** Accuracy lost against the dense network, in percentage points. */
  readonly dropPoints: number;
}

/** Networks that differ in the levels of some levers and have all else in common. */
export interface SearchSpace {
  /** Level 0 of each lever leaves the network as it is. Costs are those of {@link costOf}. */
  readonly levers: readonly Lever[];
  /** Cost of what no lever changes; it may be negative where their savings overlap. */
  readonly fixedCost: number;
  build(choice: readonly number[]): Promise<Graph>;
  /** What a network of this space costs once all is done to it, which the levers only estimate. */
  costOf(graph: Graph): Promise<number>;
  judge(graph: Graph): Promise<Judgment>;
  planOf(choice: readonly number[]): CompressionPlan;
  /** Whether costs are latencies over the dense network's. */
  readonly timed: boolean;
}

/** A plan, what it is expected to cost and to lose. */
export interface SearchedPlan extends Judgment {
  readonly plan: CompressionPlan;
  /** Latency over the dense network's, non-zero weights, or bytes. */
  readonly cost: number;
  /** Latency over the dense network's as predicted; null where latency is not what is searched for. */
  readonly latencyRatio: number | null;
}

/** How {@link exploreSpace} goes about it. */
export interface ExploreOptions {
  readonly seed: number;
  /** Networks judged at most. */
  readonly maxEvaluations: number;
  /** True once there is no time left; what was found by then is the answer. */
  readonly stop: () => boolean;
  readonly signal: AbortSignal;
}

const BUCKETS = 2000;
/** A network within this share below the target is as near as the levers' levels allow. */
const NEAR = 0.03;
/** Tries to find the limit on estimated cost at which the real cost meets the target. */
const MAX_TRIES = 6;

/**
 * The best network of a space that costs no more than a target: the limit on the estimated cost is
 * moved until the real cost of the chosen network meets the target, then the coefficients of the
 * levers are searched (SPDY).
 *
 * @returns undefined where not even the cheapest levels are cheap enough.
 */
export async function exploreSpace(
  space: SearchSpace,
  target: number,
  options: ExploreOptions,
): Promise<SearchedPlan | undefined> {
  const limit = await fittingLimit(space, target, options.signal);
  if (limit === undefined) return undefined;
  const judged = new Map<string, Judgment & { readonly cost: number }>();
  const found = await searchCoefficients({
    levers: space.levers,
    limit,
    buckets: BUCKETS,
    seed: options.seed,
    maxEvaluations: options.maxEvaluations,
    randomStarts: Math.ceil(options.maxEvaluations / 4),
    maxFailures: Math.ceil(options.maxEvaluations / 3),
    stop: options.stop,
    signal: options.signal,
    score: async (choice) => {
      const graph = await space.build(choice);
      const cost = await space.costOf(graph);
      const judgment = await space.judge(graph);
      judged.set(choice.join(), { ...judgment, cost });
      // Estimates that overlap can let something too dear through.
      return cost > target * (1 + NEAR) ? Number.MAX_VALUE : judgment.loss;
    },
  });
  if (!found.feasible) return undefined;
  const best = judged.get(found.choice.join())!;
  const latencyRatio = space.timed ? best.cost : null;
  return { plan: space.planOf(found.choice), ...best, latencyRatio };
}

/** The largest limit found at which plain dynamic programming meets the target. */
async function fittingLimit(
  space: SearchSpace,
  target: number,
  signal: AbortSignal,
): Promise<number | undefined> {
  const { levers, fixedCost } = space;
  const allocate = (at: number): Allocation =>
    at < 0
      ? { feasible: false, leastCost: 0 }
      : chooseLevels({ levers, limit: at, buckets: BUCKETS });
  const least = levers.reduce((sum, l) => sum + Math.min(...l.levels.map(({ cost }) => cost)), 0);
  const most = levers.reduce((sum, l) => sum + Math.max(...l.levels.map(({ cost }) => cost)), 0);
  let best: number | undefined;
  let dearest = most;
  let limit = Math.min(most, Math.max(least, target - fixedCost));
  for (let tries = 0; tries < MAX_TRIES; tries++) {
    signal.throwIfAborted();
    const allocation = allocate(limit);
    if (!allocation.feasible) break;
    const real = await space.costOf(await space.build(allocation.choice));
    if (real <= target) {
      best = Math.max(best ?? 0, limit);
      if (real >= target * (1 - NEAR) || limit >= most) break;
    } else {
      dearest = Math.min(dearest, limit);
      if (limit <= least) break;
    }
    const step = Math.min(most, Math.max(least, limit + (target - real)));
    // Once there is a limit on either side, the answer lies between them.
    limit = best !== undefined && (step >= dearest || step <= best) ? (best + dearest) / 2 : step;
  }
  return best;
}
