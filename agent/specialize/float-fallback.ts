import { findBorders } from "../onnx/borders.ts";
import type { Graph } from "../onnx/graph.ts";
import { isLinear } from "../onnx/qdq-nodes.ts";
import { extractSubgraph } from "../onnx/subgraph.ts";
import { measureByTurns, summarizeLatency } from "../runtime/latency.ts";
import { measureShapes } from "./border.ts";
import type { Engine, EngineSession } from "./engine.ts";
import { type CompressEnvironment, firstBatches } from "./environment.ts";
import { compareOutputs, type NetworkOutputs, outputsOf } from "./output-difference.ts";

/** A network that can be written with some of its nodes in float. */
export interface FallbackProblem {
  readonly dense: Graph;
  /** The same with weights and biases as the integers have them. */
  readonly rounded: Graph;
  /** Nodes that may compute on integers, by first output. */
  readonly nodes: ReadonlySet<string>;
  /** The integer form of the rounded network, or of a part of it, with these nodes in float. */
  readonly form: (graph: Graph, left: ReadonlySet<string>) => Graph;
  /** ‖ŷ − y‖² / ‖y‖² that the outputs of the integer form may reach. */
  readonly largestError: number;
}

/** What {@link chooseFloat} found. */
export interface FloatChoice {
  /** Nodes that stay in float, by first output. */
  readonly left: ReadonlySet<string>;
  /** ‖ŷ − y‖² / ‖y‖² of the outputs with these nodes in float. */
  readonly error: number;
}

/** Batches of pictures that errors are measured on. */
const BATCHES = 3;
/** Stretches that are judged one by one. */
const MOST_BLOCKS = 24;
const TIMED_ROUNDS = 7;
/** Convolutions at the beginning that are tried in float, and those behind them that are timed along. */
const MOST_LEADING = 4;
const BEHIND = 2;
/** Milliseconds below which a beginning is not worth a choice, and share that one has to save. */
const SHORTEST_MS = 0.3;
const LEAST_SAVED = 0.04;
/** Share of its time in float that integers save in a stretch between others, at least. */
const LEAST_SHARE = 0.2;

/** A stretch of the network, and what integers cost and save there. */
interface Block {
  readonly from: string;
  readonly to: string;
  readonly nodes: readonly string[];
}

/**
 * Leaves the beginning of a network in float where it is slower on integers, and puts more
 * stretches back into float until its outputs are as close to the dense ones as wanted: first
 * those whose integers add most error for the time they save. Each is measured alone, its error on
 * calibration pictures and its time on this device; where the integers are good enough, only the
 * beginning is.
 */
export async function chooseFloat(
  problem: FallbackProblem,
  options: CompressEnvironment,
): Promise<FloatChoice> {
  const { dense, rounded, nodes, form, largestError } = problem;
  const few = { ...options, calibration: firstBatches(options.calibration, BATCHES) };
  const wanted = await outputsOf(dense, few.calibration, few.engine, few.signal);
  const errorOf = (left: ReadonlySet<string>) => measureError(form(rounded, left), wanted, few);
  let left: ReadonlySet<string> = await slowStart(problem, few);
  let error = await errorOf(left);
  if (error <= largestError) return { left, error };
  const judged: { block: Block; error: number; worth: number }[] = [];
  const blocks = cutBlocks(rounded, nodes);
  for (const block of blocks) {
    if (block.nodes.every((name) => left.has(name))) continue;
    const others = new Set(nodes);
    for (const name of block.nodes) others.delete(name);
    const alone = await errorOf(others);
    const savedMs = await savedTime(problem, block, few);
    judged.push({ block, error: alone, worth: alone / Math.max(savedMs, 1e-3) });
    options.onProgress(judged.length, blocks.length);
  }
  judged.sort((a, b) => b.worth - a.worth);
  // Errors of stretches add up well enough to say how many must go, not to say it exactly.
  let expected = judged.reduce((sum, { error: own }) => sum + own, 0);
  for (const { block, error: own } of judged) {
    left = new Set([...left, ...block.nodes]);
    expected -= own;
    if (expected > largestError) continue;
    error = await errorOf(left);
    if (error <= largestError) break;
  }
  return { left, error };
}

/**
 * The nodes at the beginning that integers make slower: a picture has three channels, few for
 * kernels that read all channels of a pixel at once, and has to be rounded first, which costs less
 * behind a layer or two. Inside of a network such islands of float cost more than they save.
 */
async function slowStart(problem: FallbackProblem, options: CompressEnvironment) {
  const { rounded, nodes } = problem;
  const leading = rounded.nodes.filter((n) => nodes.has(n.outputs[0]!) && isLinear(rounded, n));
  const other = leading.findIndex(({ opType }) => opType !== "Conv");
  const most = Math.min(MOST_LEADING, other < 0 ? leading.length - 1 : other);
  const borders = cutPlaces(rounded);
  const order = rounded.nodes.map(({ outputs }) => outputs[0]!);
  const last = order.indexOf(
    leading[Math.min(most + BEHIND, leading.length) - 1]?.outputs[0] ?? "",
  );
  const to = order.find((name, at) => at >= last && borders.has(name));
  if (most < 1 || to === undefined) return new Set<string>();
  const choices = leading.slice(0, most + 1).map(({ outputs }) => {
    const before = order.slice(0, order.indexOf(outputs[0]!));
    return new Set(before.filter((name) => nodes.has(name)));
  });
  const start = { from: rounded.inputs[0]!.name, to };
  const times = await timeForms(problem, start, choices, options, 3 * TIMED_ROUNDS);
  const best = times.indexOf(Math.min(...times));
  const saves = times[0]! > SHORTEST_MS && times[best]! < (1 - LEAST_SAVED) * times[0]!;
  return saves ? choices[best]! : new Set<string>();
}

/** Milliseconds of a stretch for one picture, for each set of nodes in float. */
async function timeForms(
  { rounded, nodes, form }: FallbackProblem,
  { from, to }: Pick<Block, "from" | "to">,
  choices: readonly ReadonlySet<string>[],
  { engine, calibration }: CompressEnvironment,
  rounds = TIMED_ROUNDS,
): Promise<number[]> {
  const part = extractSubgraph(rounded, [from], [to]);
  const dims = (await measureShapes(rounded, [from], engine, calibration)).get(from)!;
  const size = dims.reduce((product, dim) => product * dim, 1);
  const data = Float32Array.from({ length: size }, (_, i) => Math.sin(i));
  const names = part.nodes.map(({ outputs }) => outputs[0]!);
  const graphs = choices.map((left) =>
    form(part, new Set(names.filter((name) => !nodes.has(name) || left.has(name)))),
  );
  return timeOf(graphs, engine, { [from]: { data, dims } }, rounds);
}

async function measureError(
  graph: Graph,
  wanted: NetworkOutputs,
  { calibration, engine, signal }: CompressEnvironment,
): Promise<number> {
  const { relativeError } = compareOutputs(
    wanted,
    await outputsOf(graph, calibration, engine, signal),
  );
  return Number.isFinite(relativeError) ? relativeError : Number.POSITIVE_INFINITY;
}

/** Borders and the output; none between a layer and the Relu or Clip that may be a part of it. */
function cutPlaces(graph: Graph): Set<string> {
  const clipped = new Set(
    graph.nodes.flatMap(({ opType, inputs }) =>
      opType === "Relu" || opType === "Clip" ? inputs.slice(0, 1) : [],
    ),
  );
  const borders = findBorders(graph).filter((name) => !clipped.has(name));
  return new Set([...borders, graph.outputs[0]!.name]);
}

function cutBlocks(graph: Graph, nodes: ReadonlySet<string>): Block[] {
  const borders = cutPlaces(graph);
  const linear = graph.nodes.filter((n) => nodes.has(n.outputs[0]!) && isLinear(graph, n));
  const wanted = Math.ceil(linear.length / MOST_BLOCKS);
  const isWeighty = new Set(linear);
  const blocks: Block[] = [];
  let from = graph.inputs[0]!.name;
  let inside: string[] = [];
  let count = 0;
  for (const node of graph.nodes) {
    const name = node.outputs[0]!;
    if (nodes.has(name)) inside.push(name);
    if (isWeighty.has(node)) count++;
    const last = name === graph.outputs[0]!.name;
    if (!borders.has(name) || (count < wanted && !last)) continue;
    if (inside.length > 0) blocks.push({ from, to: name, nodes: inside });
    [from, inside, count] = [name, [], 0];
  }
  return blocks;
}

/**
 * Milliseconds that a stretch takes less on integers than in float, for one picture; at least a
 * share of those in float, as one alone has to round what comes in and goes out, which falls away
 * among integers.
 */
async function savedTime(
  problem: FallbackProblem,
  block: Block,
  options: CompressEnvironment,
): Promise<number> {
  const choices = [problem.nodes, new Set<string>()];
  const [float32 = 0, integer = 0] = await timeForms(problem, block, choices, options);
  return Math.max(float32 - integer, LEAST_SHARE * float32);
}

async function timeOf(
  graphs: readonly Graph[],
  engine: Engine,
  feeds: Parameters<EngineSession["run"]>[0],
  rounds: number,
): Promise<number[]> {
  const sessions: EngineSession[] = [];
  try {
    for (const graph of graphs) sessions.push(await engine.open(graph));
    const probes = sessions.map((session) => async () => {
      const start = performance.now();
      await session.run(feeds);
      return performance.now() - start;
    });
    const samples = await measureByTurns(probes, rounds, () => Promise.resolve());
    return samples.map((list) => summarizeLatency(list).medianMs);
  } finally {
    for (const session of sessions) await session.release();
  }
}
