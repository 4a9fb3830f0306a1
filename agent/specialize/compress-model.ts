import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { type Aim, printAim } from "../aim.ts";
import { writeFileAtomic } from "../files.ts";
import type { Logger } from "../log.ts";
import { type FixedMethod, formatMethod, type Method } from "../method.ts";
import type { Preprocessing } from "../model.ts";
import { type Graph, readGraph, writeGraph } from "../onnx/graph.ts";
import { countParameters } from "../onnx/initializers.ts";
import { extractSubgraph } from "../onnx/subgraph.ts";
import { compressNetwork } from "./compress-network.ts";
import { createEngine, type Engine } from "./engine.ts";
import type { CompressEnvironment, LayerReport, PassResult, Refusal } from "./environment.ts";
import { compareLatency } from "./graph-latency.ts";
import { uniformPattern } from "./layer-patterns.ts";
import { loadNetwork, type Network, readModelFile } from "./network.ts";
import { compareOutputs, type OutputDifference, outputsOf } from "./output-difference.ts";
import { openUnlabeled, splitUnlabeled, type UnlabeledPictures } from "./unlabeled-pictures.ts";

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
}

/** What a model weighs. */
export interface ModelSize {
  readonly parameters: number;
  readonly nonzero: number;
  readonly bytes: number;
}

/** Median milliseconds of one run, taken by turns, and how many times faster the second is. */
export interface LatencyPair {
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
  readonly before: ModelSize;
  readonly after: ModelSize;
  /** By pictures in one run; `batch8` is null for a graph that takes one at a time. */
  readonly latencyMs: { readonly batch1: LatencyPair; readonly batch8: LatencyPair | null };
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

/**
 * Compresses an ONNX classifier with nothing but pictures without labels, and compares the result
 * with it. The file is written whole, and only after ONNX Runtime loaded and ran it.
 *
 * @throws {AgentError} MODEL_INVALID where the model is not understood, PICTURE_UNREADABLE where
 *   there are too few pictures.
 */
export async function compressModel(
  request: CompressModelRequest,
  context: CompressModelContext,
): Promise<CompressModelResult> {
  const watch = new StopWatch();
  const workDir = await mkdtemp(join(tmpdir(), "taco-compress-"));
  const engine = await createEngine({ ...request, log: context.log });
  try {
    return await run({ request, context, engine, workDir, watch });
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
  readonly workDir: string;
  readonly watch: StopWatch;
}

async function run(parts: Parts): Promise<CompressModelResult> {
  const { request, context, engine, watch } = parts;
  const { preprocessing, method, modelPath, outPath } = request;
  const bytes = await readModelFile(modelPath);
  const network = await loadNetwork(bytes, preprocessing, engine);
  const dense = logitsGraph(network);
  const pictures = await watch.time("pictures", () => openPictures(parts, network));
  try {
    const made = await watch.time("compress", () => compressed(parts, dense, pictures));
    const graph = withTail(made.graph, network);
    const file = writeGraph(graph);
    const heldBack = await watch.time("compare", async () => {
      const { signal } = context;
      const before = await outputsOf(dense, pictures.heldBack, engine, signal);
      const after = await outputsOf(made.graph, pictures.heldBack, engine, signal);
      return { ...compareOutputs(before, after), pictures: pictures.heldBackCount };
    });
    const latencyMs = await watch.time("latency", () => latencies(parts, network, readGraph(file)));
    await mkdir(dirname(outPath), { recursive: true });
    await writeFileAtomic(outPath, file);
    return {
      model: modelPath,
      out: outPath,
      method: formatMethod(method),
      aim: request.aim === null ? null : printAim(request.aim),
      before: { ...countParameters(network.graph), bytes: bytes.length },
      after: { ...countParameters(graph), bytes: file.length },
      latencyMs,
      heldBack,
      calibrationPictures: pictures.calibrationCount,
      problems: pictures.problems,
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

function openPictures(parts: Parts, network: Network): Promise<UnlabeledPictures> {
  const { request, context, workDir } = parts;
  const split = splitUnlabeled(request.pictures, request.calibrationPictures, request.seed);
  return openUnlabeled(split, request.preprocessing, {
    dir: workDir,
    wanted: request.calibrationPictures,
    batchSize: network.batched ? request.batchSize : 1,
    maxMegapixels: request.maxMegapixels,
    onProgress: (done, total) => context.onProgress({ stage: "pictures", done, total }),
    signal: context.signal,
  });
}

function compressed(parts: Parts, dense: Graph, pictures: UnlabeledPictures): Promise<PassResult> {
  const { request, context, engine, workDir } = parts;
  const environment: CompressEnvironment = {
    engine,
    calibration: pictures.calibration,
    workDir,
    memoryBytes: BORDER_MEMORY_BYTES,
    damping: request.damping,
    onProgress: (done, total) => context.onProgress({ stage: "compress", done, total }),
    signal: context.signal,
  };
  if (request.method.kind === "auto") throw new RangeError("auto");
  return applyMethod(dense, request.method, environment);
}

function applyMethod(
  dense: Graph,
  method: FixedMethod,
  environment: CompressEnvironment,
): Promise<PassResult> {
  const { pattern } = method;
  if (pattern === null) return Promise.resolve({ graph: dense, reports: [], refused: [] });
  return compressNetwork(dense, { ...environment, patternOf: uniformPattern(dense, pattern) });
}

async function latencies(
  { request, engine, context }: Parts,
  network: Network,
  after: Graph,
): Promise<CompressModelResult["latencyMs"]> {
  const { height, width } = request.preprocessing;
  const graphs = [network.graph, after].map((graph) => ({ graph, height, width }));
  const pair = async (batch: number): Promise<LatencyPair> => {
    const [before, then] = await compareLatency(graphs, batch, engine, context.signal);
    return { before: before!, after: then!, speedup: before! / then! };
  };
  return { batch1: await pair(1), batch8: network.batched ? await pair(8) : null };
}
