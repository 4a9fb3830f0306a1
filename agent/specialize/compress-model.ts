import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { type Aim, measureOf, printAim } from "../aim.ts";
import { AgentError } from "../errors.ts";
import { writeFileAtomic } from "../files.ts";
import type { Logger } from "../log.ts";
import { formatMethod, type Method } from "../method.ts";
import { type Preprocessing, preprocessingAt } from "../model.ts";
import { type Graph, readGraph, writeGraph } from "../onnx/graph.ts";
import { countParameters } from "../onnx/initializers.ts";
import { toSparseInitializers } from "../onnx/sparse-initializer.ts";
import { extractSubgraph } from "../onnx/subgraph.ts";
import { LatencyTable, thisMachine } from "../runtime/latency-table.ts";
import type { CompressionPlan } from "./compression-plan.ts";
import { createEngine, type Engine } from "./engine.ts";
import type { CompressEnvironment, LayerReport, PassResult, Refusal } from "./environment.ts";
import { frontLimit } from "./front.ts";
import { compareLatency, type TimedGraph } from "./graph-latency.ts";
import { loadNetwork, type Network, readModelFile } from "./network.ts";
import { compareOutputs, type OutputDifference, outputsOf } from "./output-difference.ts";
import { applyPlan, type InputSize, planOf } from "./pipeline.ts";
import { type SearchResult, searchPlans } from "./search.ts";
import {
  openUnlabeled,
  type PictureUse,
  splitUnlabeled,
  type UnlabeledPictures,
} from "./unlabeled-pictures.ts";

/** What {@link compressModel} is asked for. */
export interface CompressModelRequest {
  /** An ONNX classifier, input `[N, 3, height, width]`. */
  readonly modelPath: string;
  /** How a picture becomes its input. */
  readonly preprocessing: Preprocessing;
  /** Pictures without labels: most to calibrate with, the others to judge by. */
  readonly pictures: readonly string[];
  readonly method: Method;
  /** What to reach, for a method that searches; null for a fixed one. */
  readonly aim: Aim | null;
  readonly outPath: string;
  /** Pictures to calibrate with at most, mirror images included. */
  readonly calibrationPictures: number;
  readonly batchSize: number;
  readonly seed: number;
  /** λ as a share of the mean diagonal of the Hessian. */
  readonly damping: number;
  readonly executionProviders: readonly string[];
  readonly intraOpThreads: number;
  readonly maxMegapixels: number;
  /** File that keeps measured latencies for the next search; null: none. */
  readonly latencyTablePath: string | null;
  /** Seconds that a search may take. */
  readonly maxSeconds: number;
}

/** What a model weighs. */
interface ModelSize {
  readonly parameters: number;
  readonly nonzero: number;
  readonly bytes: number;
}

/** Median milliseconds of one run, taken by turns, and how many times faster the second is. */
interface LatencyPair {
  readonly before: number;
  readonly after: number;
  readonly speedup: number;
}

/** What {@link compressModel} did; `taco compress --json` prints it. */
export interface CompressModelResult {
  readonly model: string;
  readonly out: string;
  readonly method: string;
  readonly aim: string | null;
  readonly plan: CompressionPlan;
  /** How a picture becomes the result's input. */
  readonly preprocessing: Preprocessing;
  readonly before: ModelSize;
  readonly after: ModelSize;
  /** By pictures in one run; `batch8` is null for a graph that takes one at a time. */
  readonly latencyMs: { readonly batch1: LatencyPair; readonly batch8: LatencyPair | null };
  /** What a search for latency expected of `latencyMs.batch1.speedup`; null where there was none. */
  readonly predictedSpeedup: number | null;
  /** Outputs of the result against those of the model, on pictures that nothing was fitted to. */
  readonly heldBack: OutputDifference & { readonly pictures: number };
  readonly calibrationPictures: number;
  readonly problems: readonly { readonly subject: string; readonly reason: string }[];
  readonly layers: readonly LayerReport[];
  readonly refused: readonly Refusal[];
  readonly seconds: { readonly total: number } & Readonly<Record<string, number>>;
  readonly peakMemoryBytes: number;
}

/** How far {@link compressModel} is. */
export interface CompressModelProgress {
  readonly stage: string;
  readonly done: number;
  readonly total: number;
}

/** What works beside a request: where to log and whom to tell. */
export interface CompressModelContext {
  readonly log: Logger;
  readonly onProgress: (progress: CompressModelProgress) => void;
  readonly signal: AbortSignal;
}

/** Activations of one border that stay in memory; two borders are held at a time. */
const BORDER_MEMORY_BYTES = 128 * 2 ** 20;
/** Networks that are built at most, until one reaches the aim. */
const MAX_PLANS = 3;

/**
 * Compresses an ONNX classifier with nothing but pictures without labels, and compares the result
 * with it. The file is written whole, and only after ONNX Runtime loaded and ran it.
 *
 * @throws {AgentError} MODEL_INVALID where the model is not understood, PICTURE_UNREADABLE where
 *   there are too few pictures, RUN_FAILED where a search finds nothing for its aim.
 */
export async function compressModel(
  request: CompressModelRequest,
  context: CompressModelContext,
): Promise<CompressModelResult> {
  const workDir = await mkdtemp(join(tmpdir(), "taco-compress-"));
  const engine = await createEngine({ ...request, log: context.log });
  try {
    return await run(request, context, engine, workDir);
  } finally {
    await engine.close();
    await rm(workDir, { recursive: true, force: true });
  }
}

/** Seconds of wall time by name. */
class StopWatch {
  readonly #start = performance.now();
  readonly seconds: Record<string, number> = {};

  async time<T>(name: string, work: () => Promise<T>): Promise<T> {
    const start = performance.now();
    try {
      return await work();
    } finally {
      this.seconds[name] = (this.seconds[name] ?? 0) + (performance.now() - start) / 1000;
    }
  }

  get total(): number {
    return (performance.now() - this.#start) / 1000;
  }
}

interface Parts {
  readonly request: CompressModelRequest;
  readonly context: CompressModelContext;
  readonly engine: Engine;
  readonly watch: StopWatch;
  readonly network: Network;
  /** Up to the logits. */
  readonly dense: Graph;
  readonly pictures: PicturesBySize;
}

/** Something that was made, before it is known whether it is good enough. */
interface Made extends PassResult {
  readonly plan: CompressionPlan;
  readonly predictedLatencyRatio: number | null;
}

async function run(
  request: CompressModelRequest,
  context: CompressModelContext,
  engine: Engine,
  workDir: string,
): Promise<CompressModelResult> {
  const watch = new StopWatch();
  const { preprocessing, modelPath, outPath } = request;
  const bytes = await readModelFile(modelPath);
  const network = await loadNetwork(bytes, preprocessing, engine);
  const pictures = new PicturesBySize(request, context, workDir, network.batched);
  const parts = { request, context, engine, watch, network, dense: logitsGraph(network), pictures };
  try {
    const heldBack = await watch.time("pictures", () => pictures.at(null));
    const made = await makeBest(parts);
    const graph = toSparseInitializers(withTail(made.graph, network));
    const file = writeGraph(graph);
    const difference = await watch.time("compare", () => differenceOn(parts, made, "heldBack"));
    const latencyMs = await watch.time("latency", () => latencies(parts, file, made.plan));
    await mkdir(dirname(outPath), { recursive: true });
    await writeFileAtomic(outPath, file);
    const { inputSize } = made.plan;
    return {
      model: modelPath,
      out: outPath,
      method: formatMethod(request.method),
      aim: request.aim === null ? null : printAim(request.aim),
      plan: made.plan,
      preprocessing: inputSize ? preprocessingAt(preprocessing, inputSize) : preprocessing,
      before: { ...countParameters(network.graph), bytes: bytes.length },
      after: { ...countParameters(graph), bytes: file.length },
      latencyMs,
      predictedSpeedup: made.predictedLatencyRatio && 1 / made.predictedLatencyRatio,
      heldBack: { ...difference, pictures: heldBack.count.heldBack },
      calibrationPictures: heldBack.count.calibration,
      problems: heldBack.problems,
      layers: made.reports,
      refused: made.refused,
      seconds: { ...watch.seconds, total: watch.total },
      // ru_maxrss is in kibibytes (getrusage(2)).
      peakMemoryBytes: process.resourceUsage().maxRSS * 1024,
    };
  } finally {
    await pictures.close();
  }
}

/** The network up to its logits: what stands behind them has no weights. */
function logitsGraph({ graph, head, inputName }: Network): Graph {
  return head.cut === null ? graph : extractSubgraph(graph, [inputName], [head.logitsName]);
}

/** Puts what stood behind the logits there again, so that users of the model see no difference. */
function withTail(logits: Graph, { graph, head }: Network): Graph {
  if (head.cut === null) return logits;
  const names = graph.outputs.map(({ name }) => name);
  const tail = extractSubgraph(graph, [head.logitsName], names);
  return {
    ...logits,
    nodes: [...logits.nodes, ...tail.nodes],
    initializers: new Map([...logits.initializers, ...tail.initializers]),
    outputs: tail.outputs,
  };
}

/** The pictures of a request, decoded at every size that is asked for. */
class PicturesBySize {
  readonly #open = new Map<string, Promise<UnlabeledPictures>>();
  readonly #decode: (preprocessing: Preprocessing) => Promise<UnlabeledPictures>;
  readonly #preprocessing: Preprocessing;
  /** Folder for what a request needs while it is worked on. */
  readonly dir: string;

  constructor(
    request: CompressModelRequest,
    { onProgress, signal }: CompressModelContext,
    dir: string,
    batched: boolean,
  ) {
    this.dir = dir;
    const { calibrationPictures: most, seed, maxMegapixels } = request;
    const search = request.method.kind === "auto";
    const split = splitUnlabeled(request.pictures, { most, search, seed });
    this.#preprocessing = request.preprocessing;
    this.#decode = (preprocessing) =>
      openUnlabeled(split, preprocessing, {
        dir,
        wanted: most,
        batchSize: batched ? request.batchSize : 1,
        maxMegapixels,
        onProgress: (done, total) => onProgress({ stage: "pictures", done, total }),
        signal,
      });
  }

  /** @param size null: the model's own. */
  at(size: InputSize): Promise<UnlabeledPictures> {
    const shape = size ? preprocessingAt(this.#preprocessing, size) : this.#preprocessing;
    const key = `${shape.height}x${shape.width}`;
    const known = this.#open.get(key) ?? this.#decode(shape);
    this.#open.set(key, known);
    return known;
  }

  async close(): Promise<void> {
    for (const pictures of await Promise.allSettled(this.#open.values())) {
      if (pictures.status === "fulfilled") await pictures.value.close();
    }
  }
}

async function environmentAt(
  { request, context, engine, pictures }: Parts,
  size: InputSize,
  stage: string,
): Promise<CompressEnvironment> {
  const { of } = await pictures.at(size);
  return {
    engine,
    calibration: of.calibration,
    workDir: pictures.dir,
    memoryBytes: BORDER_MEMORY_BYTES,
    damping: request.damping,
    onProgress: (done, total) => context.onProgress({ stage, done, total }),
    signal: context.signal,
  };
}

/** Does what the method states, or makes what a search finds until something reaches the aim. */
async function makeBest(parts: Parts): Promise<Made> {
  const { request, dense, watch } = parts;
  const make = (plan: CompressionPlan): Promise<PassResult> =>
    watch.time("compress", () =>
      applyPlan(dense, plan, {
        environmentAt: (size) => environmentAt(parts, size, "compress"),
      }),
    );
  if (request.method.kind === "fixed") {
    const { plan, refused } = planOf(request.method, dense);
    const result = await make(plan);
    const all = [...refused, ...result.refused];
    return { ...result, plan, refused: all, predictedLatencyRatio: null };
  }
  const { chosen, refused } = await watch.time("search", () => search(parts));
  let nearest: { made: Made; miss: number } | undefined;
  for (const { plan, latencyRatio } of chosen) {
    const result = await make(plan);
    const all = [...refused, ...result.refused];
    const made = { ...result, plan, refused: all, predictedLatencyRatio: latencyRatio };
    const miss = await missOf(parts, made);
    if (nearest === undefined || miss < nearest.miss) nearest = { made, miss };
    if (miss <= 0) break;
  }
  if (nearest) return nearest.made;
  throw new AgentError(
    "RUN_FAILED",
    `nothing makes the model smaller within the aim (${printAim(request.aim!)}): allow a larger drop, or lower the aim`,
  );
}

/** How far something is from the aim, as a share of it; at most 0 where it is reached. */
async function missOf(parts: Parts, made: Made): Promise<number> {
  const { request, network, engine, context, dense } = parts;
  const limit = frontLimit(request.aim!, countParameters(network.graph).parameters);
  if ("maxDrop" in limit) {
    const { agreement } = await differenceOn(parts, made, "trial");
    return (100 * (1 - agreement) - limit.maxDrop) / 100;
  }
  const measure = measureOf(request.aim!);
  let cost: number;
  if (measure === "latency") {
    const graphs = [timed(parts, dense, null), timed(parts, made.graph, made.plan.inputSize)];
    const [before, after] = await compareLatency(graphs, 1, engine, context.signal);
    cost = after! / before!;
  } else if (measure === "nonzero") cost = countParameters(made.graph).nonzero;
  else cost = writeGraph(toSparseInitializers(withTail(made.graph, network))).length;
  return cost / limit.maxCost - 1;
}

async function search(parts: Parts): Promise<SearchResult> {
  const { request, context, engine, dense, network, pictures } = parts;
  const { preprocessing, seed } = request;
  const table = await LatencyTable.open(
    request.latencyTablePath,
    thisMachine(request),
    context.log,
  );
  const { signal } = context;
  const reference = await outputsOf(dense, (await pictures.at(null)).of.trial, engine, signal);
  return searchPlans({
    dense,
    size: preprocessing,
    aim: request.aim!,
    environmentAt: (size) => environmentAt(parts, size, "search"),
    judge: async (graph, size) => {
      const trial = (await pictures.at(size)).of.trial;
      const difference = compareOutputs(reference, await outputsOf(graph, trial, engine, signal));
      return { loss: difference.divergence, dropPoints: 100 * (1 - difference.agreement) };
    },
    table,
    parameters: countParameters(network.graph).parameters,
    restParameters: 0,
    maxSeconds: request.maxSeconds,
    maxPlans: MAX_PLANS,
    seed,
    onProgress: (share) => context.onProgress({ stage: "search", done: share, total: 1 }),
    signal,
  });
}

/** The outputs of what was made against the model's, on pictures of one use. */
async function differenceOn(
  { dense, pictures, engine, context }: Parts,
  made: Pick<Made, "graph" | "plan">,
  use: PictureUse,
): Promise<OutputDifference> {
  const { signal } = context;
  const own = (await pictures.at(null)).of[use];
  const other = (await pictures.at(made.plan.inputSize)).of[use];
  const before = await outputsOf(dense, own, engine, signal);
  return compareOutputs(before, await outputsOf(made.graph, other, engine, signal));
}

function timed({ request }: Parts, graph: Graph, size: InputSize): TimedGraph {
  const { height, width } = size ?? request.preprocessing;
  return { graph, height, width };
}

/** @param file what will be written: ONNX Runtime loads and runs it here. */
async function latencies(
  parts: Parts,
  file: Uint8Array,
  plan: CompressionPlan,
): Promise<CompressModelResult["latencyMs"]> {
  const { engine, context, network } = parts;
  const graphs = [timed(parts, network.graph, null), timed(parts, readGraph(file), plan.inputSize)];
  const pair = async (batch: number): Promise<LatencyPair> => {
    const [before, after] = await compareLatency(graphs, batch, engine, context.signal);
    return { before: before!, after: after!, speedup: before! / after! };
  };
  return { batch1: await pair(1), batch8: network.batched ? await pair(8) : null };
}
