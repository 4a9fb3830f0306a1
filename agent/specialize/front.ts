import * as v from "valibot";
import { type Aim, measureOf, printAim } from "../aim.ts";
import { chooseFromFront, type FrontLimit } from "../compress/budget.ts";
import { compressionPlanSchema } from "./compression-plan.ts";
import { dropToCountOn } from "./score.ts";

const count = v.pipe(v.number(), v.integer());

/** A linear head as it lies in a file. */
export const headSchema = v.object({
  kind: v.picklist(["sliced", "adapted", "fitted", "trained"]),
  l2: v.number(),
  weights: v.array(v.number()),
  bias: v.array(v.number()),
});

/** A network that was built for one plan, before it has a head. */
export const builtSchema = v.strictObject({
  plan: compressionPlanSchema,
  /** Latency over the dense network's, as the search predicted it; null without a search. */
  predictedLatencyRatio: v.nullable(v.number()),
  /** Points that the search counted on being lost; null without a search, and in older runs. */
  searchedDropPoints: v.optional(v.nullable(v.number()), null),
  reports: v.array(
    v.strictObject({
      name: v.string(),
      method: v.string(),
      sparsity: v.number(),
      relativeLoss: v.nullable(v.number()),
    }),
  ),
  refused: v.array(v.strictObject({ name: v.string(), reason: v.string() })),
});

/** See {@link builtSchema}. */
export type Built = v.InferOutput<typeof builtSchema>;

/** How one round of training went. */
export const roundReportSchema = v.strictObject({
  steps: count,
  seconds: v.number(),
  /** Cross entropy on training bursts that were kept back, before (where known) and at the best. */
  validationLoss: v.nullable(v.strictObject({ before: v.nullable(v.number()), after: v.number() })),
  /** Why it ended before its limits; null where it did not. */
  ended: v.nullable(v.string()),
});

/** A specialist that could be chosen, and what it costs. */
export const frontPointSchema = v.strictObject({
  /** Its network is `front/<index>.onnx`; point 0 is the dense network. */
  index: count,
  plan: compressionPlanSchema,
  /** Median latency of one picture over the dense network's; null where there was no choice. */
  latencyRatio: v.nullable(v.number()),
  predictedLatencyRatio: v.nullable(v.number()),
  /** Parameters other than zero, head included. */
  nonzero: count,
  bytes: count,
  /**
   * Points of accuracy that it is expected to lose against the dense specialist, by
   * cross-validation on training pictures; null where no class has two bursts.
   */
  expectedDropPoints: v.nullable(v.number()),
  /**
   * Standard error of those points; null where there are none, in fronts of older runs, and where
   * the search judged what it had not fitted, and has its own margin in them.
   */
  dropStandardError: v.optional(v.nullable(v.number()), null),
  /** The point whose network was trained to become this one; null where nothing was trained. */
  trainedFrom: v.optional(v.nullable(count), null),
  /** How its training went, round by round; empty where there was none. */
  training: v.optional(v.array(roundReportSchema), []),
});

/** See {@link frontPointSchema}. */
export type FrontPoint = v.InferOutput<typeof frontPointSchema>;

/** What was chosen from a front, and why it is not what was asked for, if so. */
export interface Chosen {
  readonly point: FrontPoint;
  readonly problem: string | null;
}

/**
 * Chooses from measured points for an aim. Where no point is within its limit the nearest one is
 * taken: the cheapest for a limit on cost, the dense one for a limit on accuracy.
 *
 * @param points at least one, the dense network first.
 * @param generalistParameters all parameters of the generalist, which reductions are counted from.
 */
export function chooseForAim(
  points: readonly FrontPoint[],
  aim: Aim,
  generalistParameters: number,
): Chosen {
  const measure = measureOf(aim);
  const tradeoffs = points.map((point) => ({
    point,
    cost: measure === "latency" ? (point.latencyRatio ?? 1) : point[measure],
    drop: dropOf(point),
  }));
  const limit = frontLimit(aim, generalistParameters);
  const found = chooseFromFront(tradeoffs, limit);
  if (found) return { point: found.point, problem: null };
  const key = "maxCost" in limit ? "cost" : "drop";
  const nearest = tradeoffs.reduce((a, b) => (b[key] < a[key] ? b : a));
  return {
    point: nearest.point,
    problem: `nothing that was built reaches the aim (${printAim(aim)}); the nearest was taken`,
  };
}

function dropOf(point: FrontPoint): number {
  const { index, expectedDropPoints, dropStandardError, trainedFrom } = point;
  // A drop that nobody could judge is none that a limit on it may allow.
  if (expectedDropPoints === null) return index === 0 ? 0 : Number.POSITIVE_INFINITY;
  // It was the only one to be trained: there was no choosing, so it looks no better than it is.
  if (trainedFrom !== null) return expectedDropPoints;
  return dropToCountOn({ points: expectedDropPoints, standardError: dropStandardError ?? 0 });
}

/** What an aim allows, on latency over the dense network's, non-zero weights or bytes. */
export function frontLimit(aim: Aim, parameters: number): FrontLimit {
  if ("aim" in aim) return { maxDrop: aim.maxDropPoints };
  if ("speedup" in aim) return { maxCost: 1 / aim.speedup };
  if ("nonzeroReduction" in aim) return { maxCost: parameters / aim.nonzeroReduction };
  return { maxCost: aim.maxBytes };
}
