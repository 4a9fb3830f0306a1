import { type Aim, type Measure, measureOf } from "../aim.ts";
import { chooseFromFront, type FrontLimit, type Lever, paretoFront } from "../compress/budget.ts";
import { messageOf } from "../errors.ts";
import { formatPattern } from "../method.ts";
import type { ChannelGroup } from "../onnx/channel-groups.ts";
import { type Graph, writeGraph } from "../onnx/graph.ts";
import { countParameters } from "../onnx/initializers.ts";
import { keepUnits } from "../onnx/keep-units.ts";
import { toSparseInitializers } from "../onnx/sparse-initializer.ts";
import type { LatencyTable } from "../runtime/latency-table.ts";
import { type CompressionPlan, NO_CHANGE } from "./compression-plan.ts";
import type { CompressEnvironment, Refusal } from "./environment.ts";
import { frontLimit } from "./front.ts";
import { type GroupTable, type GroupTables, measureGroups, stitch } from "./group-tables.ts";
import { integerForm } from "./integer-form.ts";
import { type LatencyModel, openLatencyModel, type PictureSize } from "./latency-model.ts";
import { atInputSize, type InputSize, widthOf } from "./pipeline.ts";
import { quantizeNetwork } from "./quantize-network.ts";
import {
  exploreSpace,
  type Judgment,
  type SearchedPlan,
  type SearchSpace,
} from "./search-space.ts";
import { measureSparsity, type SparsityTables, stitchSparsity } from "./sparsity-tables.ts";

/** What {@link searchPlans} works with. */
export interface SearchOptions {
  /** Normalized network from the picture to its features or logits, for `size`. */
  readonly dense: Graph;
  readonly size: PictureSize;
  readonly aim: Aim;
  /** The environment with the calibration pictures at a size; null: the network's own. */
  readonly environmentAt: (size: InputSize) => Promise<CompressEnvironment>;
  /** Judges a network that takes pictures of a size, on pictures that no pass is fitted to. */
  readonly judge: (graph: Graph, size: InputSize) => Promise<Judgment>;
  readonly table: LatencyTable;
  /** Parameters of the generalist, which reductions are counted from. */
  readonly parameters: number;
  /** Parameters that the result has beside those of `dense`: its new head. */
  readonly restParameters: number;
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
/** Shares of zeros that are tried. */
const SPARSITIES = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9];
/** Picture sizes are multiples of this: what five halvings or patches of 16 and 32 divide. */
const SIZE_STEP = 32;
/** Smaller pictures than this share of the own size are not tried, nor any below MIN_SIZE. */
const LEAST_SIZE = 0.5;
const MIN_SIZE = 96;
/** From one target to the next, where the aim is the least cost. */
const TARGET_STEP = 0.8;
/** Integers must make the network at least this much faster to be tried. */
const LEAST_GAIN = 1.1;
const EVALUATIONS = 40;
/** Bytes of one weight. */
const FLOAT_BYTES = 4;
/** Bytes of one value and its index in a sparse initializer. */
const SPARSE_BYTES = 12;
/** Plans that may lose a little more than allowed are built too: what was measured is an estimate. */
const DROP_MARGIN_POINTS = 1;

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

/** A setting of the coarse levers, and what it costs and loses by itself. */
interface Coarse {
  readonly size: InputSize;
  readonly int8: boolean;
  readonly graph: Graph;
  readonly zeros: boolean;
  readonly cost: number;
  readonly judgment: Judgment;
  /** Points that integers cost beside all else. */
  readonly int8Drop: number;
  readonly costOf: (graphs: readonly Graph[]) => Promise<number[]>;
}

class Search {
  readonly #options: SearchOptions;
  readonly #measure: Measure;
  readonly #limit: FrontLimit;
  readonly #start = performance.now();
  readonly #points: SearchedPlan[] = [];
  readonly #refused: Refusal[] = [];
  readonly #groups = new Map<string, GroupTables>();
  #sparsity: SparsityTables | undefined;

  constructor(options: SearchOptions) {
    this.#options = options;
    this.#measure = measureOf(options.aim);
    this.#limit = frontLimit(options.aim, options.parameters);
  }

  async run(): Promise<void> {
    const coarse = await this.#coarseSettings();
    // Cheapest first: what is found early tells what need not be looked at.
    coarse.sort((a, b) => a.cost - b.cost);
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
    const beyond = rest
      .filter(({ drop }) => !("maxDrop" in limit) || drop <= limit.maxDrop + DROP_MARGIN_POINTS)
      .sort((a, b) => ("maxCost" in limit ? a.cost - b.cost : a.drop - b.drop));
    return [...chosen, ...beyond.slice(0, chosen.length === 0 ? 1 : maxPlans - chosen.length)];
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

  /** Cheap enough by themselves first, the dearest of them first; then the others. */
  #inOrder(coarse: readonly Coarse[]): Coarse[] {
    const limit = this.#limit;
    if ("maxDrop" in limit) return [...coarse];
    const enough = coarse.filter(({ cost }) => cost <= limit.maxCost);
    return [...enough.reverse(), ...coarse.filter(({ cost }) => cost > limit.maxCost)];
  }

  #coarseSettings(): Promise<Coarse[]> {
    switch (this.#measure) {
      case "latency":
        return this.#latencySettings();
      case "nonzero":
        return this.#nonzeroSettings();
      case "bytes":
        return this.#bytesSettings();
    }
  }

  async #latencySettings(): Promise<Coarse[]> {
    const { dense, size: own } = this.#options;
    const settings: Coarse[] = [];
    let denseMs: number | undefined;
    for (const size of [null, ...smallerSizes(own)]) {
      const graph = this.#resized(dense, size);
      if (graph === undefined) continue;
      const environment = await this.#options.environmentAt(size);
      const judgment = await this.#options.judge(graph, size);
      const model = await this.#model(graph, size, environment);
      denseMs ??= model.denseMs;
      const whole = denseMs;
      const costOf = async (graphs: readonly Graph[]) =>
        (await model.predict(graphs)).map((ms) => ms / whole);
      const cost = model.denseMs / whole;
      settings.push(this.#setting({ size, graph, judgment, cost, costOf }));
      const integers = await this.#integers(graph, size, environment, judgment, model.denseMs);
      if (integers) settings.push(this.#setting({ size, graph, ...integers(whole) }));
      // Smaller pictures only lose more.
      if ("maxDrop" in this.#limit && judgment.dropPoints > this.#limit.maxDrop) break;
      if (this.#timeLeft() <= 0) break;
    }
    return settings;
  }

  #setting(
    parts: Pick<Coarse, "size" | "graph" | "judgment" | "cost" | "costOf"> & Partial<Coarse>,
  ): Coarse {
    const setting = { int8: false, zeros: false, int8Drop: 0, ...parts };
    const { size, int8, cost, judgment } = setting;
    const plan = size === null && !int8 ? NO_CHANGE : { ...NO_CHANGE, inputSize: size, int8 };
    this.#points.push({ plan, cost, ...judgment, latencyRatio: this.#timed ? cost : null });
    return setting;
  }

  #model(
    graph: Graph,
    size: InputSize,
    { engine, signal }: CompressEnvironment,
    variant?: { readonly name: string; readonly of: (graph: Graph) => Graph },
  ): Promise<LatencyModel> {
    const { table } = this.#options;
    const shared = { engine, table, signal };
    return openLatencyModel(
      graph,
      size ?? this.#options.size,
      variant ? { ...shared, variant } : shared,
    );
  }

  /** The network at another size; undefined where it cannot take it. */
  #resized(dense: Graph, size: InputSize): Graph | undefined {
    try {
      return atInputSize(dense, size);
    } catch (error) {
      this.#refused.push({ name: `${size?.width}×${size?.height}`, reason: messageOf(error) });
      return undefined;
    }
  }

  /** What integers gain and cost on the network that is otherwise left as it is. */
  async #integers(
    graph: Graph,
    size: InputSize,
    environment: CompressEnvironment,
    float: Judgment,
    floatMs: number,
  ) {
    try {
      const model = await this.#model(graph, size, environment, { name: "int8", of: integerForm });
      if (floatMs / model.denseMs < LEAST_GAIN) {
        const reason = `integers make it ${(floatMs / model.denseMs).toFixed(2)} times as fast`;
        this.#refused.push({ name: "int8", reason });
        return undefined;
      }
      const judgment = await this.#options.judge(
        (await quantizeNetwork(graph, environment)).graph,
        size,
      );
      return (whole: number) => ({
        int8: true,
        judgment,
        int8Drop: Math.max(0, judgment.dropPoints - float.dropPoints),
        cost: model.denseMs / whole,
        costOf: async (graphs: readonly Graph[]) =>
          (await model.predict(graphs)).map((ms) => ms / whole),
      });
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      this.#refused.push({ name: "int8", reason: error.message });
      return undefined;
    }
  }

  async #nonzeroSettings(): Promise<Coarse[]> {
    const { dense, restParameters } = this.#options;
    const costOf = (graphs: readonly Graph[]) =>
      Promise.resolve(graphs.map((graph) => countParameters(graph).nonzero + restParameters));
    const [cost] = await costOf([dense]);
    const judgment = await this.#options.judge(dense, null);
    return [
      this.#setting({ size: null, graph: dense, zeros: true, judgment, cost: cost!, costOf }),
    ];
  }

  async #bytesSettings(): Promise<Coarse[]> {
    const { dense, restParameters } = this.#options;
    const rest = FLOAT_BYTES * restParameters;
    const environment = await this.#options.environmentAt(null);
    const judgment = await this.#options.judge(dense, null);
    const inFloat = (graphs: readonly Graph[]) =>
      Promise.resolve(graphs.map((graph) => writeGraph(toSparseInitializers(graph)).length + rest));
    const [cost] = await inFloat([dense]);
    const shared = { size: null, graph: dense };
    const settings = [
      this.#setting({ ...shared, judgment, cost: cost!, costOf: inFloat }),
      this.#setting({ ...shared, zeros: true, judgment, cost: cost!, costOf: inFloat }),
    ];
    try {
      const quantized = (await quantizeNetwork(dense, environment)).graph;
      const after = await this.#options.judge(quantized, null);
      const saved = cost! - writeGraph(quantized).length - rest;
      const share = saved / (FLOAT_BYTES * countParameters(dense).parameters);
      const inInt8 = async (graphs: readonly Graph[]) =>
        (await inFloat(graphs)).map(
          (bytes, i) => bytes - share * FLOAT_BYTES * countParameters(graphs[i]!).parameters,
        );
      settings.push(
        this.#setting({
          ...shared,
          int8: true,
          judgment: after,
          int8Drop: Math.max(0, after.dropPoints - judgment.dropPoints),
          cost: cost! - saved,
          costOf: inInt8,
        }),
      );
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      this.#refused.push({ name: "int8", reason: error.message });
    }
    return settings;
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
    const { size, graph, int8 } = setting;
    const tables = await this.#groupTables(graph, size);
    const counts = tables.groups.map(({ group }) => widthsOf(group));
    const levers = await widthLevers(tables.groups, counts, setting);
    const keepOf = (choice: readonly number[]) =>
      new Map(
        choice.flatMap((level, i) =>
          level === 0 ? [] : [[tables.groups[i]!.group.id, counts[i]![level]!] as const],
        ),
      );
    return {
      ...levers,
      timed: this.#timed,
      build: (choice) => stitch(graph, tables, keepOf(choice)),
      costOf: async (other) => (await setting.costOf([other]))[0]!,
      judge: (other) => this.#judge(other, setting),
      planOf: (choice) => ({
        ...NO_CHANGE,
        inputSize: size,
        int8,
        widths: Object.fromEntries(keepOf(choice)),
      }),
    };
  }

  async #judge(graph: Graph, { size, int8Drop }: Coarse): Promise<Judgment> {
    const judgment = await this.#options.judge(graph, size);
    return { ...judgment, dropPoints: judgment.dropPoints + int8Drop };
  }

  async #groupTables(graph: Graph, size: InputSize): Promise<GroupTables> {
    const key = size === null ? "own" : `${size.height}×${size.width}`;
    const known = this.#groups.get(key);
    if (known) return known;
    // The tables of a size are large, and the next setting may be of another.
    for (const [other, tables] of this.#groups) {
      await tables.dispose();
      this.#groups.delete(other);
    }
    const tables = await measureGroups(graph, await this.#options.environmentAt(size));
    this.#groups.set(key, tables);
    this.#refused.push(...tables.refused);
    return tables;
  }

  async #zerosSpace(setting: Coarse): Promise<SearchSpace> {
    const { graph } = setting;
    const environment = await this.#options.environmentAt(null);
    const levels = SPARSITIES.map((sparsity) => ({ kind: "unstructured" as const, sparsity }));
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
    return {
      levers,
      timed: false,
      fixedCost: setting.cost - levers.reduce((sum, lever) => sum + lever.levels[0]!.cost, 0),
      build: (choice) => stitchSparsity(graph, tables, new Map(levelsOf(choice))),
      costOf: async (other) => (await setting.costOf([other]))[0]!,
      judge: (other) => this.#judge(other, setting),
      planOf: (choice): CompressionPlan => ({
        ...NO_CHANGE,
        sparsity: Object.fromEntries(
          levelsOf(choice).map(([name, level]) => [name, formatPattern(levels[level]!)]),
        ),
      }),
    };
  }
}

/** Bytes of a float layer with some weights left, stored as is shorter. */
function bytesOf(left: number, weights: number): number {
  return Math.min(FLOAT_BYTES * weights, SPARSE_BYTES * left);
}

/** Square and other sizes of the same shape, largest first. */
export function smallerSizes({ height, width }: PictureSize): PictureSize[] {
  const sizes: PictureSize[] = [];
  const short = Math.min(height, width);
  const least = Math.max(MIN_SIZE, LEAST_SIZE * short);
  const largest = SIZE_STEP * (Math.ceil(short / SIZE_STEP) - 1);
  for (let side = largest; side >= least; side -= SIZE_STEP) {
    const scaled = (length: number) => SIZE_STEP * Math.round((length * side) / short / SIZE_STEP);
    sizes.push({ height: scaled(height), width: scaled(width) });
  }
  return sizes;
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
