import type { Measure } from "../aim.ts";
import type { FrontLimit } from "../compress/budget.ts";
import { messageOf } from "../errors.ts";
import { findSwishes, replaceSwish } from "../onnx/activations.ts";
import { findGates, foldGate } from "../onnx/gates.ts";
import { type Graph, writeGraph } from "../onnx/graph.ts";
import { inferShapes } from "../onnx/infer-shapes.ts";
import { countParameters } from "../onnx/initializers.ts";
import { toSparseInitializers } from "../onnx/sparse-initializer.ts";
import { elementCount } from "../onnx/tensor.ts";
import type { LatencyTable } from "../runtime/latency-table.ts";
import { swapForIntegers } from "./activation-swap.ts";
import { type CompressionPlan, NO_CHANGE } from "./compression-plan.ts";
import {
  type CompressEnvironment,
  firstBatches,
  type PassResult,
  type Refusal,
} from "./environment.ts";
import { compareLatency } from "./graph-latency.ts";
import { integerForm } from "./integer-form.ts";
import {
  type LatencyModel,
  openLatencyModel,
  type PictureSize,
  wholeLatencies,
} from "./latency-model.ts";
import { atInputSize, type InputSize } from "./pipeline.ts";
import { quantizeNetwork } from "./quantize-network.ts";
import type { Judgment } from "./search-space.ts";
import { type Simplification, simplifies, simplifyNetwork } from "./simplify-network.ts";
import { storeWeights } from "./weight-only.ts";

/** What settings are made from. */
export interface SettingOptions {
  /** Normalized network from the picture to its features or logits, for `size`. */
  readonly dense: Graph;
  readonly size: PictureSize;
  /** The environment with the calibration pictures at a size; null: the network's own. */
  readonly environmentAt: (size: InputSize) => Promise<CompressEnvironment>;
  /**
   * Judges a network that takes pictures of a size, on pictures that no pass is fitted to.
   *
   * @param origin what it was made from, judged before; the dense network by default.
   */
  readonly judge: (graph: Graph, size: InputSize, origin?: Origin) => Promise<Judgment>;
  readonly table: LatencyTable;
  /** Parameters that the result has beside those of `dense`: its new head. */
  readonly restParameters: number;
}

/** Where a network comes from. */
interface Origin {
  readonly graph: Graph;
  /** Whether weights were fitted to pictures on the way; else every picture is a fair judge. */
  readonly fitted: boolean;
}

/** What a search knows and is told meanwhile. */
export interface SettingContext {
  readonly limit: FrontLimit;
  /** Milliseconds until the search should end. */
  readonly timeLeft: () => number;
  readonly refuse: (refusal: Refusal) => void;
}

/** A setting of the coarse levers, and what it costs and loses by itself. */
export interface Coarse {
  readonly size: InputSize;
  readonly simplification: Simplification;
  readonly int8: boolean;
  readonly weightBits: CompressionPlan["weightBits"];
  /** The network before its weights are rounded. */
  readonly graph: Graph;
  /** Whether its fine levers are zeros; else channels and heads. */
  readonly zeros: boolean;
  /** Latency over the dense network's, non-zero weights, or bytes. */
  readonly cost: number;
  readonly judgment: Judgment;
  /** Points that rounding costs beside all else. */
  readonly roundingDrop: number;
  /** What networks cost that are made of `graph`, once all else of the setting is done to them. */
  readonly costOf: (graphs: readonly Graph[]) => Promise<number[]>;
}

/** Picture sizes are multiples of this: what five halvings or patches of 16 and 32 divide. */
const SIZE_STEP = 32;
/** Smaller pictures than this share of the own size are not tried, nor any below MIN_SIZE. */
const LEAST_SIZE = 0.5;
const MIN_SIZE = 96;
/** Integers must make the network at least this much faster to be tried. */
const LEAST_GAIN = 1.1;
/** Share of the drop allowed by which settings may differ and count as alike. */
const NOISE = 0.1;
/** Share of a setting's cost that its fine levers are taken to leave at least. */
export const LEAST_LEFT = 0.6;
/** Share of the time in which bases are fitted: the others are for their sizes and fine levers. */
const BASES_SHARE = 0.6;
/** Bytes of one weight. */
const FLOAT_BYTES = 4;

/**
 * The settings of all levers that are gone through one by one: picture size, cheaper functions and
 * integers where latency counts, integers and few bits where bytes do. The dense network's own is
 * the first.
 */
export function coarseSettings(
  measure: Measure,
  options: SettingOptions,
  context: SettingContext,
): Promise<Coarse[]> {
  switch (measure) {
    case "latency":
      return latencySettings(options, context);
    case "nonzero":
      return nonzeroSettings(options);
    case "bytes":
      return bytesSettings(options, context);
  }
}

/** The plan of a setting, before any fine lever. */
export function planOfSetting({ size, int8, weightBits, simplification }: Coarse): CompressionPlan {
  const { activations, gates } = simplification;
  const cheaper = activations !== "keep" || gates !== "keep";
  const changed = size !== null || int8 || weightBits !== null || cheaper;
  if (!changed) return NO_CHANGE;
  return { ...NO_CHANGE, inputSize: size, activations, gates, int8, weightBits };
}

/** A setting with all levers at rest but those stated. */
function setting(
  parts: Pick<Coarse, "graph" | "judgment" | "cost" | "costOf"> & Partial<Coarse>,
): Coarse {
  const { activations, gates } = NO_CHANGE;
  return {
    size: null,
    simplification: { activations, gates },
    int8: false,
    weightBits: null,
    zeros: false,
    roundingDrop: 0,
    ...parts,
  };
}

/** What may be lost. */
function mostDrop({ limit }: SettingContext): number {
  return "maxDrop" in limit ? limit.maxDrop : Number.POSITIVE_INFINITY;
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
/** Functions that integers compute fast. */
const SWAP: Simplification = { activations: "for-integers", gates: "keep" };
/** Cheaper functions that are tried, with room for those that lose more. */
const SIMPLIFICATIONS: readonly Simplification[] = [
  { activations: "relu", gates: "keep" },
  { activations: "keep", gates: "fold" },
  { activations: "relu", gates: "fold" },
];

function pixelsOf({ size }: Form): number {
  return size === null ? Number.POSITIVE_INFINITY : size.height * size.width;
}

/** The environment with half of the calibration pictures. */
function firstHalf(environment: CompressEnvironment): CompressEnvironment {
  const { calibration } = environment;
  const half = firstBatches(calibration, Math.ceil(calibration.batches / 2));
  return { ...environment, calibration: half };
}

/** Whether every part of a simplification finds something to change. */
function changesAll(graph: Graph, { activations, gates }: Simplification): boolean {
  const swishes = simplifies(graph, { activations, gates: "keep" });
  const folds = simplifies(graph, { activations: "keep", gates });
  return (swishes || activations === "keep") && (folds || gates === "keep");
}

/**
 * Every simplification at every size, in float and in integers: all are timed whole; what is
 * slower than another that loses no more, or smaller than what already loses too much, is not
 * judged.
 */
async function latencySettings(
  options: SettingOptions,
  context: SettingContext,
): Promise<Coarse[]> {
  const until = (1 - BASES_SHARE) * context.timeLeft();
  const inTime = { ...context, timeLeft: () => context.timeLeft() - until };
  const bases = await openBases(options, inTime);
  const forms = bases.flatMap((base) =>
    [null, ...smallerSizes(options.size)].flatMap((size): Form[] => {
      const graph = resized(base.graph, size, context);
      if (graph === undefined) return [];
      const float: Form = { base, size, graph, int8: false };
      const integers: Form[] = base.integers ? [{ ...float, int8: true }] : [];
      return base.simplification.activations === "for-integers" ? integers : [float, ...integers];
    }),
  );
  const times = await timeForms(forms, options);
  const whole = times[0]!;
  const settings: Coarse[] = [];
  const judged = new Map(bases.map(({ graph, judgment }) => [graph, judgment]));
  const latest = new Map(bases.map((base) => [base, base.judgment]));
  const costs = forms.map(
    ({ base, int8 }, at) => (int8 ? base.integers!.slowdown : 1) * (times[at]! / whole),
  );
  for (const at of judgedInOrder(forms, costs, context)) {
    const form = forms[at]!;
    const cost = costs[at]!;
    // Smaller pictures only lose more.
    if (beaten(settings, cost, latest.get(form.base)!, context)) continue;
    const known = judged.get(form.graph);
    const late = context.timeLeft() <= 0 && !isMissing(settings, cost, costs, context);
    if (known === undefined && late) continue;
    const origin = { graph: form.base.graph, fitted: false };
    const judgment = known ?? (await options.judge(form.graph, form.size, origin));
    judged.set(form.graph, judgment);
    latest.set(form.base, judgment);
    if (judgment.dropPoints > mostDrop(context)) continue;
    settings.push(timedSetting(form, judgment, cost, whole, options));
  }
  return settings;
}

/**
 * The order in which forms are judged, as long as there is time. For a limit on latency those that
 * keep it, the slowest first, then the nearest beyond it. Else the own size of all bases, which
 * shows what need not be tried at smaller ones.
 */
function judgedInOrder(
  forms: readonly Form[],
  costs: readonly number[],
  { limit }: SettingContext,
): number[] {
  const all = [...forms.keys()];
  if ("maxDrop" in limit) {
    return all.sort((a, b) => pixelsOf(forms[b]!) - pixelsOf(forms[a]!));
  }
  const slowestFirst = all.sort((a, b) => costs[b]! - costs[a]!);
  const first = slowestFirst.findIndex((at) => costs[at]! <= limit.maxCost);
  const beyond = first < 0 ? all.length : first;
  return [...slowestFirst.slice(beyond), ...slowestFirst.slice(0, beyond).reverse()];
}

/** Whether there is nothing yet that keeps a limit on latency, and this does or comes nearest. */
function isMissing(
  settings: readonly Coarse[],
  cost: number,
  costs: readonly number[],
  { limit }: SettingContext,
): boolean {
  if ("maxDrop" in limit || settings.some((other) => other.cost <= limit.maxCost)) return false;
  return cost <= Math.max(limit.maxCost, Math.min(...costs));
}

/** Milliseconds of each form as a whole. */
async function timeForms(
  forms: readonly Pick<Form, "graph" | "size" | "int8">[],
  options: SettingOptions,
): Promise<number[]> {
  const { engine, signal } = await options.environmentAt(null);
  const networks = forms.map(({ graph, size, int8 }) => ({
    graph,
    size: size ?? options.size,
    variant: int8 ? INTEGERS : undefined,
  }));
  return wholeLatencies(networks, { engine, signal });
}

/** Whether something at least as fast loses no more than what loses at least so much. */
function beaten(
  settings: readonly Coarse[],
  cost: number,
  atLeast: Judgment,
  context: SettingContext,
): boolean {
  const most = mostDrop(context);
  if (atLeast.dropPoints > most) return true;
  const noise = Number.isFinite(most) ? most * NOISE : 0;
  return settings.some(
    (other) => other.cost <= cost && other.judgment.dropPoints <= atLeast.dropPoints + noise,
  );
}

/** @param cost latency over the dense network's, @param wholeMs which takes so long. */
function timedSetting(
  { base, size, graph, int8 }: Form,
  float: Judgment,
  cost: number,
  wholeMs: number,
  options: SettingOptions,
): Coarse {
  const { slowdown, drop } = (int8 ? base.integers : null) ?? { slowdown: 1, drop: 0 };
  let model: Promise<LatencyModel> | undefined;
  return setting({
    size,
    graph,
    int8,
    simplification: base.simplification,
    judgment: { ...float, dropPoints: float.dropPoints + drop },
    roundingDrop: drop,
    cost,
    costOf: async (graphs) => {
      // Its blocks are timed only where something is built of them.
      model ??= modelOf(graph, size, int8, options);
      return (await (await model).predict(graphs)).map((ms) => (slowdown * ms) / wholeMs);
    },
  });
}

async function modelOf(
  graph: Graph,
  size: InputSize,
  int8: boolean,
  options: SettingOptions,
): Promise<LatencyModel> {
  const { engine, signal } = await options.environmentAt(size);
  const shared = { engine, table: options.table, signal };
  const variant = int8 ? INTEGERS : undefined;
  return openLatencyModel(graph, size ?? options.size, { ...shared, variant });
}

/**
 * The network with its own functions, with those that integers compute fast, and with cheaper ones
 * in float too, where they do not lose too much. To fit one takes a minute, so what each can be at
 * best is timed first: for a limit on latency, those that cannot keep it are left out.
 */
async function openBases(options: SettingOptions, context: SettingContext): Promise<Base[]> {
  const { dense, judge } = options;
  const environment = await options.environmentAt(null);
  const bases: Base[] = [];
  // A swish holds integers up; they have a base of their own, unless that comes to nothing.
  let swishesStay = false;
  const integersOf = (graph: Graph, { activations }: Simplification, judgment: Judgment) => {
    const held = activations === "keep" && !swishesStay && simplifies(graph, SWAP);
    return held ? Promise.resolve(null) : judgeIntegers(graph, judgment, options, context);
  };
  const open = async (graph: Graph, simplification: Simplification): Promise<number> => {
    const judgment = await judge(graph, null);
    if (judgment.dropPoints > mostDrop(context)) return judgment.dropPoints;
    const integers = await integersOf(graph, simplification, judgment);
    bases.push({ graph, simplification, judgment, integers });
    return judgment.dropPoints;
  };
  const { activations, gates } = NO_CHANGE;
  await open(dense, { activations, gates });
  const lost = { activations: 0, gates: 0 };
  for (const [i, simplification] of (await worthFitting(options, context)).entries()) {
    // The first may be what keeps a limit on latency.
    if (context.timeLeft() <= 0 && i > 0) continue;
    if (simplification === SWAP) {
      const { graph, refused } = await swapForIntegers(dense, firstHalf(environment));
      for (const refusal of refused) context.refuse(refusal);
      if (graph !== dense) {
        await open(graph, SWAP);
      } else if (bases[0]) {
        swishesStay = true;
        const integers = await integersOf(dense, bases[0].simplification, bases[0].judgment);
        bases[0] = { ...bases[0], integers };
      }
      continue;
    }
    const both = simplification.activations !== "keep" && simplification.gates !== "keep";
    if (both && lost.activations + lost.gates > mostDrop(context)) continue;
    // To all pictures, as what is built in the end: fitted to fewer it looks worse than it is.
    const { graph } = await simplifyNetwork(dense, { ...environment, ...simplification });
    const drop = await open(graph, simplification);
    lost[simplification.gates === "keep" ? "activations" : "gates"] = drop;
  }
  return bases;
}

/**
 * Simplifications to fit. For a limit on latency, those that can keep it with their fine levers, or
 * else the fastest alone; the fastest first, as time may run out.
 */
async function worthFitting(
  options: SettingOptions,
  context: SettingContext,
): Promise<readonly Simplification[]> {
  const { dense } = options;
  const { limit } = context;
  const all = [SWAP, ...SIMPLIFICATIONS].filter((each) => changesAll(dense, each));
  if ("maxDrop" in limit || all.length === 0) return all;
  const silent = { ...context, refuse: () => undefined };
  const forms = [null, ...all].flatMap((simplification) => {
    const graph = simplification === null ? dense : sketchOf(simplification, options);
    return [null, ...smallerSizes(options.size)].flatMap((size) => {
      const sized = resized(graph, size, silent);
      if (sized === undefined) return [];
      const form = { simplification, graph: sized, size };
      return [false, true].map((int8) => ({ ...form, int8 }));
    });
  });
  const times = await timeForms(forms, options);
  const least = (simplification: Simplification) =>
    Math.min(...times.filter((_, at) => forms[at]!.simplification === simplification)) / times[0]!;
  const fastestFirst = [...all].sort((a, b) => least(a) - least(b));
  const able = fastestFirst.filter((each) => LEAST_LEFT * least(each) <= limit.maxCost);
  return able.length > 0 ? able : fastestFirst.slice(0, 1);
}

/** A simplified network as it will be, but fitted to nothing: it takes as long. */
function sketchOf({ activations, gates }: Simplification, options: SettingOptions): Graph {
  const { dense, size } = options;
  const picture = dense.inputs[0]!.name;
  const shapes = inferShapes(dense, new Map([[picture, [1, 3, size.height, size.width]]]));
  const dimsOf = (name: string) => shapes.get(name)?.dims ?? [];
  let graph = dense;
  for (const gate of gates === "fold" ? findGates(dense) : []) {
    const channels = dimsOf(gate.factor)[1];
    if (channels !== undefined) graph = foldGate(graph, gate, new Float32Array(channels).fill(1));
  }
  if (activations === "keep") return graph;
  const sites = findSwishes(graph);
  if (activations !== "for-integers") {
    return replaceSwish(
      graph,
      activations,
      sites.map(({ output }) => output),
    );
  }
  const large = sites.filter(({ input }) => elementCount(dimsOf(input).slice(2)) > 1);
  return replaceSwish(
    graph,
    "hard-swish",
    large.map(({ output }) => output),
  );
}

/** The network at another size; undefined where it cannot take it. */
function resized(graph: Graph, size: InputSize, { refuse }: SettingContext): Graph | undefined {
  try {
    return atInputSize(graph, size);
  } catch (error) {
    refuse({ name: `${size?.width}×${size?.height}`, reason: messageOf(error) });
    return undefined;
  }
}

/** What integers gain and cost on a network that is otherwise left as it is; null: no use. */
async function judgeIntegers(
  graph: Graph,
  float: Judgment,
  options: SettingOptions,
  { refuse }: SettingContext,
): Promise<Base["integers"]> {
  const environment = await options.environmentAt(null);
  const { engine, signal } = environment;
  try {
    const { graph: quantized } = await quantizeNetwork(graph, firstHalf(environment));
    const forms = [graph, integerForm(graph), quantized];
    const timed = forms.map((each) => ({ graph: each, ...options.size }));
    const [floatMs, formMs, ms] = await compareLatency(timed, 1, engine, signal);
    if (floatMs! / ms! < LEAST_GAIN) {
      const reason = `integers make it ${(floatMs! / ms!).toFixed(2)} times as fast`;
      refuse({ name: "int8", reason });
      return null;
    }
    const judgment = await options.judge(quantized, null);
    const drop = Math.max(0, judgment.dropPoints - float.dropPoints);
    return { drop, slowdown: ms! / formMs! };
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    refuse({ name: "int8", reason: error.message });
    return null;
  }
}

async function nonzeroSettings({ dense, restParameters, judge }: SettingOptions) {
  const costOf = (graphs: readonly Graph[]) =>
    Promise.resolve(graphs.map((graph) => countParameters(graph).nonzero + restParameters));
  const [cost] = await costOf([dense]);
  const judgment = await judge(dense, null);
  return [setting({ graph: dense, zeros: true, judgment, cost: cost!, costOf })];
}

async function bytesSettings(options: SettingOptions, context: SettingContext): Promise<Coarse[]> {
  const { dense, restParameters, judge } = options;
  const rest = FLOAT_BYTES * restParameters;
  const judgment = await judge(dense, null);
  const inFloat = (graphs: readonly Graph[]) =>
    Promise.resolve(graphs.map((graph) => writeGraph(toSparseInitializers(graph)).length + rest));
  const [cost = 0] = await inFloat([dense]);
  const settings = [
    setting({ graph: dense, judgment, cost, costOf: inFloat }),
    setting({ graph: dense, zeros: true, judgment, cost, costOf: inFloat }),
  ];
  const rounded = async (
    what: Partial<Pick<Coarse, "int8" | "weightBits">>,
    round: (environment: CompressEnvironment) => Promise<PassResult>,
  ): Promise<void> => {
    if (context.timeLeft() <= 0) return;
    const { graph } = await round(await options.environmentAt(null));
    const after = await judge(graph, null);
    const saved = cost - writeGraph(graph).length - rest;
    const share = saved / (FLOAT_BYTES * countParameters(dense).parameters);
    const costOf = async (graphs: readonly Graph[]) =>
      (await inFloat(graphs)).map(
        (bytes, i) => bytes - share * FLOAT_BYTES * countParameters(graphs[i]!).parameters,
      );
    const roundingDrop = Math.max(0, after.dropPoints - judgment.dropPoints);
    const parts = { judgment: after, roundingDrop, cost: cost - saved, costOf };
    settings.push(setting({ graph: dense, ...what, ...parts }));
  };
  try {
    await rounded({ int8: true }, (environment) => quantizeNetwork(dense, environment));
    for (const bits of [4, 3] as const) {
      await rounded({ weightBits: bits }, (environment) =>
        storeWeights(dense, { ...environment, bits }),
      );
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    context.refuse({ name: "weights of few bits", reason: error.message });
  }
  return settings;
}
