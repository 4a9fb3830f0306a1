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
import type { Calibration, CompressEnvironment, Refusal } from "./environment.ts";
import { frontLimit } from "./front.ts";
import { compareLatency } from "./graph-latency.ts";
import { type GroupTable, type GroupTables, measureGroups, stitch } from "./group-tables.ts";
import { integerForm } from "./integer-form.ts";
import {
  type LatencyModel,
  openLatencyModel,
  type PictureSize,
  wholeLatencies,
} from "./latency-model.ts";
import { atInputSize, type InputSize, widthOf } from "./pipeline.ts";
import { quantizeNetwork } from "./quantize-network.ts";
import {
  exploreSpace,
  type Judgment,
  type SearchedPlan,
  type SearchSpace,
} from "./search-space.ts";
import { type Simplification, simplifies, simplifyNetwork } from "./simplify-network.ts";
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
  readonly simplification: Simplification;
  readonly cost: number;
  readonly judgment: Judgment;
  /** Points that integers cost beside all else. */
  readonly int8Drop: number;
  readonly costOf: (graphs: readonly Graph[]) => Promise<number[]>;
}

/** A network that settings of size and integers start from. */
interface Base {
  /** At the own size. */
  readonly graph: Graph;
  readonly simplification: Simplification;
  readonly judgment: Judgment;
  /** Points that integers cost, and their latency over that of a wholly integer form; or none. */
  readonly integers: { readonly drop: number; readonly slowdown: number } | null;
}

/** One base at one size. */
interface Form {
  readonly base: Base;
  readonly size: InputSize;
  readonly graph: Graph;
  readonly int8: boolean;
}

/** Timed in the place of a network that integers would be made of. */
const INTEGERS = { name: "int8", of: integerForm };
/** Cheaper functions that are tried, the cheapest first. */
const SIMPLIFICATIONS: readonly Simplification[] = [
  { activations: "relu", gates: "fold" },
  { activations: "relu", gates: "keep" },
  { activations: "keep", gates: "fold" },
];

function firstHalf({ batches, read }: Calibration): Calibration {
  return { batches: Math.ceil(batches / 2), read };
}

/** Whether every part of a simplification finds something to change. */
function changesAll(graph: Graph, { activations, gates }: Simplification): boolean {
  const swishes = simplifies(graph, { activations, gates: "keep" });
  const folds = simplifies(graph, { activations: "keep", gates });
  return (swishes || activations === "keep") && (folds || gates === "keep");
}

/** The plan of a setting, before any fine lever. */
function planOf({
  size,
  int8,
  simplification,
}: Pick<Coarse, "size" | "int8" | "simplification">): CompressionPlan {
  const { activations, gates } = simplification;
  const changed = size !== null || int8 || activations !== "keep" || gates !== "keep";
  return changed ? { ...NO_CHANGE, inputSize: size, activations, gates, int8 } : NO_CHANGE;
}

class Search {
  readonly #options: SearchOptions;
  readonly #measure: Measure;
  readonly #limit: FrontLimit;
  readonly #start = performance.now();
  readonly #points: SearchedPlan[] = [];
  readonly #refused: Refusal[] = [];
  readonly #groups = new Map<Graph, GroupTables>();
  #sparsity: SparsityTables | undefined;

  constructor(options: SearchOptions) {
    this.#options = options;
    this.#measure = measureOf(options.aim);
    this.#limit = frontLimit(options.aim, options.parameters);
  }

  async run(): Promise<void> {
    const settings = (await this.#coarseSettings()).sort((a, b) => a.cost - b.cost);
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

  /**
   * Those first that leave fine levers room, the cheapest first: what is found early tells what
   * need not be looked at. For a limit on cost, those that keep it, the dearest first.
   */
  #inOrder(coarse: readonly Coarse[]): Coarse[] {
    const limit = this.#limit;
    if ("maxDrop" in limit) {
      const roomy = ({ judgment }: Coarse) => judgment.dropPoints <= limit.maxDrop / 2;
      return [...coarse.filter(roomy), ...coarse.filter((setting) => !roomy(setting))];
    }
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

  /**
   * Every simplification at every size, in float and in integers: all are timed whole; what is
   * smaller than what already loses too much is not judged.
   */
  async #latencySettings(): Promise<Coarse[]> {
    const { size: own } = this.#options;
    const bases = await this.#bases();
    const forms = bases.flatMap((base) =>
      [null, ...smallerSizes(own)].flatMap((size): Form[] => {
        const graph = this.#resized(base.graph, size);
        if (graph === undefined) return [];
        const float: Form = { base, size, graph, int8: false };
        return base.integers ? [float, { ...float, int8: true }] : [float];
      }),
    );
    const { engine, signal } = await this.#options.environmentAt(null);
    const times = await wholeLatencies(
      forms.map(({ graph, size, int8 }) => ({
        graph,
        size: size ?? own,
        variant: int8 ? INTEGERS : undefined,
      })),
      { engine, signal, table: this.#options.table },
    );
    const whole = times[0]!;
    const settings: Coarse[] = [];
    for (const base of bases) {
      let judgment = base.judgment;
      for (const [at, form] of forms.entries()) {
        if (form.base !== base || judgment.dropPoints > this.#mostDrop()) continue;
        if (form.size !== null && !form.int8) {
          if (this.#timeLeft() <= 0) break;
          judgment = await this.#options.judge(form.graph, form.size);
        }
        settings.push(this.#timedSetting(form, judgment, times[at]! / whole, whole));
      }
    }
    return settings;
  }

  /** @param cost of the whole network over the dense one's. @param wholeMs what that one takes. */
  #timedSetting(form: Form, float: Judgment, cost: number, wholeMs: number): Coarse {
    const { base, size, graph, int8 } = form;
    const { slowdown, drop } = (int8 ? base.integers : null) ?? { slowdown: 1, drop: 0 };
    let model: Promise<LatencyModel> | undefined;
    return this.#setting({
      size,
      graph,
      int8,
      simplification: base.simplification,
      judgment: { ...float, dropPoints: float.dropPoints + drop },
      int8Drop: drop,
      cost: cost * slowdown,
      costOf: async (graphs) => {
        // Its blocks are timed only where something is built of them.
        model ??= this.#options
          .environmentAt(size)
          .then((environment) => this.#model(graph, size, environment, int8));
        return (await (await model).predict(graphs)).map((ms) => (slowdown * ms) / wholeMs);
      },
    });
  }

  /** The network with its own functions, and with cheaper ones where that pays. */
  async #bases(): Promise<Base[]> {
    const { dense, judge } = this.#options;
    const environment = await this.#options.environmentAt(null);
    const judgment = await judge(dense, null);
    const { activations, gates } = NO_CHANGE;
    const bases = [await this.#base(dense, { activations, gates }, judgment)];
    for (const simplification of SIMPLIFICATIONS) {
      if (this.#timeLeft() <= 0 || !changesAll(dense, simplification)) continue;
      // Gates alone are worth a look only where swishes have to stay.
      const only = simplification.activations === "keep";
      if (only && bases.some((base) => base.simplification.activations !== "keep")) continue;
      // What is built in the end is fitted to all pictures; this is to be judged only.
      const calibration = firstHalf(environment.calibration);
      const options = { ...environment, calibration, ...simplification };
      const { graph } = await simplifyNetwork(dense, options);
      const after = await judge(graph, null);
      if (after.dropPoints > this.#mostDrop()) continue;
      bases.push(await this.#base(graph, simplification, after));
      this.#options.onProgress(this.#share());
    }
    return bases;
  }

  /** What may be lost; a little more than allowed, as what is judged is an estimate. */
  #mostDrop(): number {
    const limit = this.#limit;
    return "maxDrop" in limit ? limit.maxDrop : Number.POSITIVE_INFINITY;
  }

  async #base(graph: Graph, simplification: Simplification, judgment: Judgment): Promise<Base> {
    const integers = await this.#integers(graph, judgment);
    return { graph, simplification, judgment, integers };
  }

  #setting(
    parts: Pick<Coarse, "size" | "graph" | "judgment" | "cost" | "costOf"> & Partial<Coarse>,
  ): Coarse {
    const { activations, gates } = NO_CHANGE;
    const simplification = { activations, gates };
    const setting = { int8: false, zeros: false, int8Drop: 0, simplification, ...parts };
    const { cost, judgment } = setting;
    const plan = planOf(setting);
    this.#points.push({ plan, cost, ...judgment, latencyRatio: this.#timed ? cost : null });
    return setting;
  }

  #model(
    graph: Graph,
    size: InputSize,
    { engine, signal }: CompressEnvironment,
    int8: boolean,
  ): Promise<LatencyModel> {
    const shared = { engine, table: this.#options.table, signal };
    return openLatencyModel(
      graph,
      size ?? this.#options.size,
      int8 ? { ...shared, variant: INTEGERS } : shared,
    );
  }

  /** The network at another size; undefined where it cannot take it. */
  #resized(graph: Graph, size: InputSize): Graph | undefined {
    try {
      return atInputSize(graph, size);
    } catch (error) {
      this.#refused.push({ name: `${size?.width}×${size?.height}`, reason: messageOf(error) });
      return undefined;
    }
  }

  /** What integers gain and cost on a network that is otherwise left as it is; null: no use. */
  async #integers(graph: Graph, float: Judgment): Promise<Base["integers"]> {
    try {
      const environment = await this.#options.environmentAt(null);
      const { graph: quantized } = await quantizeNetwork(graph, environment);
      const { engine, signal } = environment;
      const forms = [graph, integerForm(graph), quantized];
      const timed = forms.map((each) => ({ graph: each, ...this.#options.size }));
      const [floatMs, formMs, ms] = await compareLatency(timed, 1, engine, signal);
      if (floatMs! / ms! < LEAST_GAIN) {
        const reason = `integers make it ${(floatMs! / ms!).toFixed(2)} times as fast`;
        this.#refused.push({ name: "int8", reason });
        return null;
      }
      const judgment = await this.#options.judge(quantized, null);
      const drop = Math.max(0, judgment.dropPoints - float.dropPoints);
      return { drop, slowdown: ms! / formMs! };
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      this.#refused.push({ name: "int8", reason: error.message });
      return null;
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
    const { graph } = setting;
    const tables = await this.#groupTables(setting);
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
        ...planOf(setting),
        widths: Object.fromEntries(keepOf(choice)),
      }),
    };
  }

  async #judge(graph: Graph, { size, int8Drop }: Coarse): Promise<Judgment> {
    const judgment = await this.#options.judge(graph, size);
    return { ...judgment, dropPoints: judgment.dropPoints + int8Drop };
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
