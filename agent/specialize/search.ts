import { type Aim, type Measure, measureOf } from "../aim.ts";
import { chooseFromFront, type FrontLimit, type Lever, paretoFront } from "../compress/budget.ts";
import { formatPattern } from "../method.ts";
import type { ChannelGroup } from "../onnx/channel-groups.ts";
import type { Graph } from "../onnx/graph.ts";
import { keepUnits } from "../onnx/keep-units.ts";
import { findPrunableLayers } from "../onnx/prunable-layers.ts";
import {
  type Coarse,
  coarseSettings,
  LEAST_LEFT,
  planOfSetting,
  type SettingOptions,
} from "./coarse-settings.ts";
import { type CompressionPlan, NO_CHANGE } from "./compression-plan.ts";
import type { Refusal } from "./environment.ts";
import { frontLimit } from "./front.ts";
import { type GroupTable, type GroupTables, measureGroups, stitch } from "./group-tables.ts";
import { reasonNotToTry } from "./layer-patterns.ts";
import { weighLevers, withWeights } from "./lever-weights.ts";
import { widthOf } from "./pipeline.ts";
import {
  exploreSpace,
  type Judgment,
  type SearchedPlan,
  type SearchSpace,
} from "./search-space.ts";
import { measureSparsity, type SparsityTables, stitchSparsity } from "./sparsity-tables.ts";

/** What {@link searchPlans} works with. */
export interface SearchOptions extends SettingOptions {
  readonly aim: Aim;
  /** Parameters of the generalist, which reductions are counted from. */
  readonly parameters: number;
  readonly maxSeconds: number;
  /** Plans to build at most. */
  readonly maxPlans: number;
  readonly seed: number;
  /** Share done, in [0, 1]. */
  readonly onProgress: (share: number) => void;
  readonly signal: AbortSignal;
}

/** What a search found. */
export interface SearchResult {
  /** Plans that no other one beats, by ascending cost. */
  readonly front: readonly SearchedPlan[];
  /** Those worth building for the aim, the best one first; at most `maxPlans`. */
  readonly chosen: readonly SearchedPlan[];
  /** Levers that could not be used. */
  readonly refused: readonly Refusal[];
}

/** Shares of a group's units that are tried. */
const WIDTHS = [1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125];
/** Shares of a layer's weights that are tried to be left, each 1/√2 of the one before. */
const DENSITIES = Array.from({ length: 11 }, (_, level) => 2 ** (-(level + 1) / 2));
/** Where it is known how much is to be left on the whole, a layer's share is within this factor. */
const NEAR_DENSITY = 3;
/** Levels that are tried where it is not known: each costs a pass of solving. */
const WITHOUT_LIMIT = 8;
/** Share that is left where that is not known, about. */
const USUAL_DENSITY = 0.25;
const USUAL_WIDTH = 0.5;
/** From one target to the next, where the aim is the least cost. */
const TARGET_STEP = 0.8;
const EVALUATIONS = 40;
/** Settings that lose more than this share of what is allowed come last. */
const ROOM = 0.75;
/** Bytes of one weight. */
const FLOAT_BYTES = 4;
/** Bytes of one value and its index in a sparse initializer. */
const SPARSE_BYTES = 12;
/** Plans that may lose or cost a little more than allowed are built too: both are estimates. */
const DROP_MARGIN_POINTS = 1;
const COST_MARGIN = 1.15;

/**
 * Searches plans for an aim over all levers that bear on it: picture size, channels and heads, and
 * integers for latency; zeros for non-zero weights; channels, integers and zeros for bytes. Coarse
 * levers are gone through one by one, the fine ones by dynamic programming over measured losses and
 * costs with searched coefficients.
 *
 * Time is bounded, not the same from run to run where it runs out.
 */
export async function searchPlans(options: SearchOptions): Promise<SearchResult> {
  const search = new Search(options);
  try {
    await search.run();
    return search.result();
  } finally {
    await search.close();
  }
}

class Search {
  readonly #options: SearchOptions;
  readonly #measure: Measure;
  readonly #limit: FrontLimit;
  readonly #start = performance.now();
  readonly #points: SearchedPlan[] = [];
  readonly #refused: Refusal[] = [];
  readonly #groups = new Map<Graph, GroupTables>();
  /** Weights of the levers of widths: a graph's float and integer settings have them in common. */
  readonly #widthWeights = new WeakMap<Graph, readonly number[]>();
  #sparsity: SparsityTables | undefined;

  constructor(options: SearchOptions) {
    this.#options = options;
    this.#measure = measureOf(options.aim);
    this.#limit = frontLimit(options.aim, options.parameters);
  }

  async run(): Promise<void> {
    const settings = await coarseSettings(this.#measure, this.#options, {
      limit: this.#limit,
      timeLeft: () => this.#timeLeft(),
      refuse: (refusal) => this.#refused.push(refusal),
    });
    for (const each of settings) {
      const { cost, judgment } = each;
      const latencyRatio = this.#timed ? cost : null;
      this.#points.push({ plan: planOfSetting(each), cost, ...judgment, latencyRatio });
    }
    settings.sort((a, b) => a.cost - b.cost);
    // Settings that are slower and lose more than another one have the same fine levers as it.
    const coarse = this.#timed
      ? paretoFront(settings.map((c) => ({ ...c, drop: c.judgment.dropPoints })))
      : settings;
    for (const setting of this.#inOrder(coarse)) {
      if (this.#timeLeft() <= 0) break;
      await this.#explore(setting);
      this.#options.onProgress(this.#share());
    }
  }

  result(): SearchResult {
    const front = paretoFront(this.#points.map((p) => ({ ...p, drop: p.dropPoints })));
    return { front, chosen: this.#choose(front), refused: this.#refused };
  }

  async close(): Promise<void> {
    for (const tables of this.#groups.values()) await tables.dispose();
    await this.#sparsity?.dispose();
  }

  /** Those within the limit, the best first, then the nearest beyond it. */
  #choose(front: readonly (SearchedPlan & { readonly drop: number })[]): SearchedPlan[] {
    const { maxPlans } = this.#options;
    const limit = this.#limit;
    const changed = front.filter(({ plan }) => plan !== NO_CHANGE);
    const chosen: SearchedPlan[] = [];
    const rest = [...changed];
    while (chosen.length < maxPlans) {
      const best = chooseFromFront(rest, limit);
      if (best === undefined) break;
      chosen.push(best);
      rest.splice(rest.indexOf(best), 1);
    }
    if (chosen.length >= maxPlans) return chosen;
    const near = ({ drop, cost }: (typeof rest)[0]) =>
      "maxDrop" in limit
        ? drop <= limit.maxDrop + DROP_MARGIN_POINTS
        : cost <= COST_MARGIN * limit.maxCost;
    rest.sort((a, b) => ("maxCost" in limit ? a.cost - b.cost : a.drop - b.drop));
    if (chosen.length > 0) return [...chosen, ...rest.filter(near)].slice(0, maxPlans);
    return rest.filter((plan) => "maxCost" in limit || near(plan)).slice(0, 1);
  }

  get #timed(): boolean {
    return this.#measure === "latency";
  }

  #timeLeft(): number {
    return 1000 * this.#options.maxSeconds - (performance.now() - this.#start);
  }

  #share(): number {
    return Math.min(1, 1 - this.#timeLeft() / (1000 * this.#options.maxSeconds));
  }

  /**
   * Those first that leave fine levers room, the cheapest first: what is found early tells what
   * need not be looked at. For a limit on cost, those that keep it, the dearest first.
   */
  #inOrder(coarse: readonly Coarse[]): Coarse[] {
    const limit = this.#limit;
    if ("maxDrop" in limit) {
      const roomy = ({ judgment }: Coarse) => judgment.dropPoints <= ROOM * limit.maxDrop;
      return [...coarse.filter(roomy), ...coarse.filter((setting) => !roomy(setting))];
    }
    const enough = coarse.filter(({ cost }) => cost <= limit.maxCost);
    return [...enough.reverse(), ...coarse.filter(({ cost }) => cost > limit.maxCost)];
  }

  /** Goes through the fine levers of one setting, target by target. */
  async #explore(setting: Coarse): Promise<void> {
    const limit = this.#limit;
    if ("maxCost" in limit) {
      if (setting.cost <= limit.maxCost) return;
      // Taking more away cannot make up for what the setting loses by itself.
      const best = chooseFromFront(
        this.#points.map((p) => ({ ...p, drop: p.dropPoints })),
        limit,
      );
      if (best && best.dropPoints <= setting.judgment.dropPoints) return;
      await this.#exploreTarget(await this.#space(setting), limit.maxCost);
      return;
    }
    if (setting.judgment.dropPoints > limit.maxDrop) return;
    // Fine levers will not make up for so much.
    if (LEAST_LEFT * setting.cost > this.#cheapestGood()) return;
    const space = await this.#space(setting);
    let good = setting.cost;
    let bad: number | undefined;
    let target = Math.min(setting.cost, this.#cheapestGood()) * TARGET_STEP;
    while (this.#timeLeft() > 0 && good / (bad ?? 0) > 1.08) {
      const found = await this.#exploreTarget(space, target);
      if (found === undefined || found.dropPoints > limit.maxDrop) bad = target;
      else good = Math.min(good, found.cost);
      if (bad === undefined) target = good * TARGET_STEP;
      else if (bad >= good) break;
      else target = Math.sqrt(good * bad);
    }
  }

  /** The least cost so far of what keeps the limit on the drop. */
  #cheapestGood(): number {
    const best = chooseFromFront(
      this.#points.map((p) => ({ ...p, drop: p.dropPoints })),
      this.#limit,
    );
    return best?.cost ?? Number.POSITIVE_INFINITY;
  }

  async #exploreTarget(space: SearchSpace, target: number): Promise<SearchedPlan | undefined> {
    const { seed, signal } = this.#options;
    // A third of what is left, so that other targets and settings have their turn.
    const until = performance.now() + this.#timeLeft() / 3;
    const found = await exploreSpace(space, target, {
      seed,
      maxEvaluations: EVALUATIONS,
      stop: () => performance.now() > until,
      signal,
    });
    if (found) this.#points.push(found);
    this.#options.onProgress(this.#share());
    return found;
  }

  #space(setting: Coarse): Promise<SearchSpace> {
    return setting.zeros ? this.#zerosSpace(setting) : this.#widthSpace(setting);
  }

  async #widthSpace(setting: Coarse): Promise<SearchSpace> {
    const { graph } = setting;
    const tables = await this.#groupTables(setting);
    const counts = tables.groups.map(({ group }) => widthsOf(group));
    const { levers, fixedCost } = await widthLevers(tables.groups, counts, setting);
    const keepOf = (choice: readonly number[]) =>
      new Map(
        choice.flatMap((level, i) =>
          level === 0 ? [] : [[tables.groups[i]!.group.id, counts[i]![level]!] as const],
        ),
      );
    const build = (choice: readonly number[]) => stitch(graph, tables, keepOf(choice));
    const { environment } = tables;
    const weights =
      this.#widthWeights.get(graph) ??
      (await weighLevers(levers, { build, origin: graph, share: USUAL_WIDTH, environment }));
    this.#widthWeights.set(graph, weights);
    return {
      levers: withWeights(levers, weights),
      fixedCost,
      timed: this.#timed,
      build,
      costOf: async (other) => (await setting.costOf([other]))[0]!,
      judge: (other) => this.#judge(other, setting),
      planOf: (choice) => {
        const widths = keepOf(choice);
        const plan = planOfSetting(setting);
        return widths.size === 0 ? plan : { ...plan, widths: Object.fromEntries(widths) };
      },
    };
  }

  async #judge(graph: Graph, { graph: origin, size, roundingDrop }: Coarse): Promise<Judgment> {
    const judgment = await this.#options.judge(graph, size, { graph: origin, fitted: true });
    return { ...judgment, dropPoints: judgment.dropPoints + roundingDrop };
  }

  async #groupTables({ graph, size }: Coarse): Promise<GroupTables> {
    // Float and integers share the graph, and its tables.
    const known = this.#groups.get(graph);
    if (known) return known;
    // The tables of a size are large, and the next setting may be of another.
    for (const [other, tables] of this.#groups) {
      this.#groups.delete(other);
      await tables.dispose();
    }
    const tables = await measureGroups(graph, await this.#options.environmentAt(size));
    this.#groups.set(graph, tables);
    this.#refused.push(...tables.refused);
    return tables;
  }

  /** Share of the prunable weights that a limit on non-zero ones leaves; null where none is stated. */
  #wantedDensity({ graph, cost }: Coarse): number | null {
    const limit = this.#limit;
    if (this.#measure !== "nonzero" || !("maxCost" in limit)) return null;
    const prunable = findPrunableLayers(graph)
      .filter((layer) => reasonNotToTry(layer) === null)
      .reduce((sum, { weightName }) => sum + graph.initializers.get(weightName)!.data.length, 0);
    const left = 1 - (cost - limit.maxCost) / Math.max(1, prunable);
    return Math.min(DENSITIES[0]!, Math.max(DENSITIES.at(-1)!, left));
  }

  async #zerosSpace(setting: Coarse): Promise<SearchSpace> {
    const { graph } = setting;
    const environment = await this.#options.environmentAt(null);
    const wanted = this.#wantedDensity(setting);
    const levels = densitiesFor(wanted).map((density) => ({
      kind: "unstructured" as const,
      sparsity: Math.round(1000 * (1 - density)) / 1000,
    }));
    this.#sparsity ??= await measureSparsity(graph, { ...environment, levels });
    const tables = this.#sparsity;
    this.#refused.push(...tables.refused);
    const costOf = this.#measure === "nonzero" ? (left: number) => left : bytesOf;
    const levers = tables.layers.map(({ name, weights, levels: solved }): Lever => {
      const dense = { cost: costOf(weights, weights), loss: 0 };
      const others = solved.map(({ zeros, relativeLoss }) => ({
        cost: costOf(weights - zeros, weights),
        loss: relativeLoss,
      }));
      return { name, levels: [dense, ...others] };
    });
    const levelsOf = (choice: readonly number[]) =>
      choice.flatMap((level, i) =>
        level === 0 ? [] : [[tables.layers[i]!.name, level - 1] as const],
      );
    const build = (choice: readonly number[]) =>
      stitchSparsity(graph, tables, new Map(levelsOf(choice)));
    const share = wanted ?? USUAL_DENSITY;
    const weights = await weighLevers(levers, { build, origin: graph, share, environment });
    return {
      levers: withWeights(levers, weights),
      timed: false,
      fixedCost: setting.cost - levers.reduce((sum, lever) => sum + lever.levels[0]!.cost, 0),
      build,
      costOf: async (other) => (await setting.costOf([other]))[0]!,
      judge: (other) => this.#judge(other, setting),
      planOf: (choice): CompressionPlan => {
        const pruned = levelsOf(choice);
        if (pruned.length === 0) return NO_CHANGE;
        const patterns = pruned.map(([name, level]) => [name, formatPattern(levels[level]!)]);
        return { ...NO_CHANGE, sparsity: Object.fromEntries(patterns) };
      },
    };
  }
}

/** The shares of a layer's weights to try, descending. @param wanted see `NEAR_DENSITY`. */
function densitiesFor(wanted: number | null): number[] {
  if (wanted === null) return DENSITIES.slice(0, WITHOUT_LIMIT);
  return DENSITIES.filter((d) => d <= wanted * NEAR_DENSITY && d >= wanted / NEAR_DENSITY);
}

/** Bytes of a float layer with some weights left, stored as is shorter. */
function bytesOf(left: number, weights: number): number {
  return Math.min(FLOAT_BYTES * weights, SPARSE_BYTES * left);
}

/** Numbers of units to keep that are tried, descending, all of them first. */
function widthsOf({ units }: ChannelGroup): number[] {
  return [...new Set(WIDTHS.map((share) => widthOf(share * units, units)))];
}

/**
 * A lever for each group: its loss at each width from the tables, and its cost by what the network
 * with only this group narrowed saves.
 */
async function widthLevers(
  tables: readonly GroupTable[],
  counts: readonly (readonly number[])[],
  { graph, cost, costOf }: Pick<Coarse, "graph" | "cost" | "costOf">,
): Promise<Pick<SearchSpace, "levers" | "fixedCost">> {
  const narrowed = tables.map(({ group }, i) =>
    counts[i]!.slice(1).map((count) =>
      keepUnits(
        graph,
        group,
        Array.from({ length: count }, (_, unit) => unit),
      ),
    ),
  );
  const costs = await costOf(narrowed.flat());
  let at = 0;
  let fixedCost = cost;
  const levers = tables.map(({ group, losses }, i): Lever => {
    const saved = counts[i]!.map((_, level) =>
      level === 0 ? 0 : Math.max(0, cost - costs[at++]!),
    );
    // Noise of the measurement must not make a narrower one dearer.
    for (let level = 1; level < saved.length; level++) {
      saved[level] = Math.max(saved[level]!, saved[level - 1]!);
    }
    const most = saved.at(-1)!;
    fixedCost -= most;
    const levels = counts[i]!.map((count, level) => ({
      cost: most - saved[level]!,
      loss: Math.max(0, losses[group.units - count]!),
    }));
    return { name: group.id, levels };
  });
  return { levers, fixedCost };
}
