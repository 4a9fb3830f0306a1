import { sha256 } from "../files.ts";
import { findBorders } from "../onnx/borders.ts";
import { buildModel, floatValue, node } from "../onnx/builder.ts";
import type { Attribute, Graph } from "../onnx/graph.ts";
import { inferShapes } from "../onnx/infer-shapes.ts";
import { findPrunableLayers } from "../onnx/prunable-layers.ts";
import { consumersOf, indexGraph } from "../onnx/query.ts";
import { extractSubgraph } from "../onnx/subgraph.ts";
import { elementCount, floatTensor, isFloatType, type Tensor } from "../onnx/tensor.ts";
import { type LatencyJob, LatencyTable, type TimedRun } from "../runtime/latency-table.ts";
import type { Engine } from "./engine.ts";

/** A part of a network that is timed by itself. */
interface Block {
  readonly inputName: string;
  readonly outputName: string;
  /** From the one value to the other. */
  readonly graph: Graph;
  /** Shape of what it reads for one picture. */
  readonly inputDims: readonly number[];
  /** Values that go in and out at its cuts; the network's own ends do not count. */
  readonly cutValues: number;
  /** The same for blocks of the same operations and shapes, whatever their weights. */
  readonly key: string;
}

/** Size of a network's input in pixels. */
export interface PictureSize {
  readonly height: number;
  readonly width: number;
}

/** Operations that start something new: what stands before them is not fused with them. */
const STARTS = new Set(["Conv", "Gemm", "MatMul", "LayerNormalization", "ReduceMean", "MaxPool"]);

/**
 * Cuts a network for one picture where everything passes through one value and a layer begins, so
 * that what the runtime fuses (a convolution with its activation, a sum) stays together. Each
 * block has at least one layer with weights.
 */
export function cutBlocks(graph: Graph, size: PictureSize): Block[] {
  const input = graph.inputs[0]!.name;
  const output = graph.outputs[0]!.name;
  const shapes = shapesOf(graph, size);
  const index = indexGraph(graph);
  const position = new Map<string, number>();
  graph.nodes.forEach((node, at) => {
    for (const name of node.outputs) position.set(name, at);
  });
  const layerAt = findPrunableLayers(graph).map(({ nodeIndex }) => nodeIndex);
  const layersBetween = (from: number, to: number) => layerAt.some((at) => at > from && at <= to);
  const last = Math.max(...layerAt, -1);
  const valuesOf = (name: string) => elementCount(shapes.get(name) ?? [Number.POSITIVE_INFINITY]);
  const cuts = [input];
  let from = -1;
  for (const name of findBorders(graph)) {
    const at = position.get(name) ?? -1;
    const begins = consumersOf(graph, index, name).some(({ opType }) => STARTS.has(opType));
    if (!begins || !layersBetween(from, at) || at >= last) continue;
    // The inside of a block can be many times wider than its ends, and a cut costs by width.
    if (from >= 0 && valuesOf(name) > valuesOf(cuts.at(-1)!)) continue;
    cuts.push(name);
    from = at;
  }
  return cuts.map((inputName, i) => {
    const outputName = cuts[i + 1] ?? output;
    const part = extractSubgraph(graph, [inputName], [outputName]);
    const inputDims = shapes.get(inputName)!;
    const ends = [i > 0 ? inputName : null, i < cuts.length - 1 ? outputName : null];
    const cutValues = ends.reduce((sum, name) => sum + (name === null ? 0 : valuesOf(name)), 0);
    const key = keyOf(part, inputDims);
    return { inputName, outputName, graph: part, inputDims, cutValues, key };
  });
}

/** Shapes for one picture, where they can be told. */
function shapesOf(graph: Graph, { height, width }: PictureSize): Map<string, readonly number[]> {
  const input = graph.inputs[0]!.name;
  const dims = [1, 3, height, width];
  const known = inferShapes(graph, new Map([[input, dims]]));
  return new Map([...known].map(([name, value]) => [name, value.dims] as const)).set(input, dims);
}

/** Digest of operations, attributes, wiring and shapes; names and weights do not count. */
function keyOf(graph: Graph, inputDims: readonly number[]): string {
  const numbers = new Map<string, number>([[graph.inputs[0]!.name, 0]]);
  const numberOf = (name: string): number => {
    const known = numbers.get(name) ?? numbers.size;
    numbers.set(name, known);
    return known;
  };
  const nodes = graph.nodes.map((node) => {
    const inputs = node.inputs.map((name) => {
      if (name === "") return null;
      const constant = graph.initializers.get(name);
      return constant ? describeConstant(constant) : numberOf(name);
    });
    const attributes = [...node.attributes].map(([name, value]) => [
      name,
      describeAttribute(value),
    ]);
    attributes.sort(([a], [b]) => (String(a) < String(b) ? -1 : 1));
    return [node.domain, node.opType, inputs, attributes, node.outputs.map(numberOf)];
  });
  return sha256(JSON.stringify([graph.opset, inputDims, nodes]));
}

/** Whole numbers are sizes and the like; of weights only the shape counts. */
function describeConstant({ dataType, dims, data }: Tensor): unknown {
  const sizes = isFloatType(dataType) || elementCount(dims) > 64 ? null : Array.from(data, String);
  return { dataType, dims, sizes };
}

function describeAttribute(attribute: Attribute): unknown {
  if (attribute.type === "tensor") return describeConstant(attribute.value);
  return attribute.type === "other" ? attribute.proto.name : attribute.value;
}

/** Predicts the latency of one picture from blocks that were measured one by one. */
export interface LatencyModel {
  /** Measured latency of the whole network that the model was made with, in milliseconds. */
  readonly denseMs: number;
  /**
   * Milliseconds of each network: the sum of its blocks, less what the cuts cost. Blocks that are
   * not in the table yet are measured, all of them by turns.
   */
  predict(graphs: readonly Graph[]): Promise<number[]>;
}

/** A whole network to be timed. */
export interface WholeNetwork {
  readonly graph: Graph;
  readonly size: PictureSize;
  readonly variant?: LatencyModelOptions["variant"];
}

/** Whole networks that are open at one time, beside the first: each holds its weights twice. */
const WHOLE_AT_ONCE = 4;

/**
 * Milliseconds of one picture through each network, all measured now and by turns with the first:
 * there are few of them, and they are compared with each other, not with another day's.
 */
export async function wholeLatencies(
  networks: readonly WholeNetwork[],
  { engine, signal }: Pick<LatencyModelOptions, "engine" | "signal">,
): Promise<number[]> {
  const jobs = networks.map(({ graph, size, variant }) =>
    jobOf(wholeOf(graph, size), engine, variant),
  );
  const table = LatencyTable.forgetful();
  const reference = jobs[0] && { reference: jobs[0] };
  await table.measure(jobs, { signal, atOnce: WHOLE_AT_ONCE, ...reference });
  return jobs.map(({ key }) => table.get(key)!);
}

function jobOf(block: Block, engine: Engine, variant: LatencyModelOptions["variant"]): LatencyJob {
  return {
    key: `${variant?.name ?? "float"} ${block.key}`,
    open: () => timedBlock(variant ? { ...block, graph: variant.of(block.graph) } : block, engine),
  };
}

/** What a {@link LatencyModel} is made with. */
export interface LatencyModelOptions {
  readonly engine: Engine;
  readonly table: LatencyTable;
  readonly signal: AbortSignal;
  /** What becomes of a block before it is timed, with a name for it: other arithmetic. */
  readonly variant?: { readonly name: string; readonly of: (graph: Graph) => Graph } | undefined;
}

/** Least share of a block's time that is left when the cost of its cuts is taken off. */
const LEAST_SHARE = 0.2;

/**
 * Makes a latency model of a network and of what can be cut out of it. Blocks alone take longer
 * than within the network, since at each cut values are copied and put into another layout; that
 * is about proportional to their number, and this network, measured whole, says how much it is.
 */
export async function openLatencyModel(
  dense: Graph,
  size: PictureSize,
  options: LatencyModelOptions,
): Promise<LatencyModel> {
  const { engine, table, signal, variant } = options;
  const job = (block: Block): LatencyJob => jobOf(block, engine, variant);
  const whole = wholeOf(dense, size);
  const reference = referenceJob(engine);
  const measured = async (jobs: readonly LatencyJob[]): Promise<number[]> => {
    await table.measure(jobs, { signal, reference });
    return jobs.map(({ key }) => table.get(key)!);
  };
  const blocks = cutBlocks(dense, size);
  const [denseMs, ...times] = await measured([job(whole), ...blocks.map(job)]);
  const cutValues = blocks.reduce((sum, block) => sum + block.cutValues, 0);
  const alone = times.reduce((sum, ms) => sum + ms, 0);
  const msPerValue = cutValues > 0 ? Math.max(0, alone - denseMs!) / cutValues : 0;
  // Blocks that are faster alone have their data in the caches.
  const slowdown = alone > 0 ? Math.max(1, denseMs! / alone) : 1;
  return {
    denseMs: denseMs!,
    predict: async (graphs) => {
      const parts = graphs.map((graph) => cutBlocks(graph, size));
      await measured(parts.flat().map(job));
      return parts.map((list) =>
        list.reduce((sum, block) => {
          const ms = table.get(job(block).key)!;
          const inside = Math.max(LEAST_SHARE * ms, ms - msPerValue * block.cutValues);
          return sum + slowdown * inside;
        }, 0),
      );
    },
  };
}

function wholeOf(graph: Graph, { height, width }: PictureSize): Block {
  const inputDims = [1, 3, height, width];
  const [inputName, outputName] = [graph.inputs[0]!.name, graph.outputs[0]!.name];
  return { graph, inputName, outputName, inputDims, cutValues: 0, key: keyOf(graph, inputDims) };
}

/** A 3×3 convolution of 64 channels at 28×28: what networks do most, in under a millisecond. */
function referenceJob(engine: Engine): LatencyJob {
  const [channels, side] = [64, 28];
  const W = Float32Array.from({ length: channels * channels * 9 }, (_, i) => Math.sin(i) / 24);
  const graph = buildModel({
    inputs: [floatValue("x", [1, channels, side, side])],
    outputs: [floatValue("y", [1, channels, side, side])],
    nodes: [node("Conv", ["x", "W"], ["y"], { pads: [1, 1, 1, 1] })],
    initializers: { W: floatTensor([channels, channels, 3, 3], W) },
  });
  const inputDims = [1, channels, side, side];
  return {
    key: "reference",
    open: () => timedBlock({ graph, inputName: "x", inputDims }, engine),
  };
}

/** Opens a block to be timed. Inputs are no zeros, which some kernels run faster or slower. */
async function timedBlock(
  { graph, inputName, inputDims }: Pick<Block, "graph" | "inputName" | "inputDims">,
  engine: Engine,
): Promise<TimedRun> {
  const session = await engine.open(graph);
  const data = Float32Array.from({ length: elementCount(inputDims) }, (_, i) => Math.sin(i));
  const feeds = { [inputName]: { data, dims: inputDims } };
  return {
    run: async () => {
      const start = performance.now();
      await session.run(feeds);
      return performance.now() - start;
    },
    release: () => session.release(),
  };
}
