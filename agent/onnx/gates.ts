import { node } from "./builder.ts";
import { removeDeadCode } from "./dead-code.ts";
import type { Graph, Node } from "./graph.ts";
import {
  findPrunableLayers,
  type PrunableLayer,
  readBias,
  readWeightMatrix,
  writeBias,
  writeWeightMatrix,
} from "./prunable-layers.ts";
import { consumersOf, freeName, type GraphIndex, indexGraph, producerOf } from "./query.ts";
import { floatTensor } from "./tensor.ts";

/**
 * A squeeze-excite gate (Hu et al., arXiv 1709.01507, eq. 2–4): channels of a value are multiplied
 * by a function of their means over the picture.
 */
export interface Gate {
  /** What is multiplied, `[N, C, h, w]`. */
  readonly input: string;
  /** What it is multiplied by, `[N, C, 1, 1]`. */
  readonly factor: string;
  /** The product. */
  readonly output: string;
}

/** Nodes that one gate may have; the longest known has nine, written out with a swish. */
const MAX_NODES = 24;
const POOLS = new Set(["GlobalAveragePool", "ReduceMean"]);

/**
 * Finds the gates of a graph, in order: every `Mul` of a value x with something that comes of x
 * alone, and only through its means.
 */
export function findGates(graph: Graph): Gate[] {
  const index = indexGraph(graph);
  return graph.nodes.flatMap((node): Gate[] => {
    if (node.opType !== "Mul" || node.domain !== "") return [];
    const [a, b] = node.inputs as readonly [string, string];
    const output = node.outputs[0]!;
    if (comesOfMeans(graph, index, b, a)) return [{ input: a, factor: b, output }];
    if (comesOfMeans(graph, index, a, b)) return [{ input: b, factor: a, output }];
    return [];
  });
}

/** Whether a value is made of the means of another one and of constants alone. */
function comesOfMeans(graph: Graph, index: GraphIndex, value: string, source: string): boolean {
  const open = [value];
  const seen = new Set<string>();
  let pools = 0;
  while (open.length > 0) {
    const name = open.pop()!;
    if (seen.has(name) || name === "" || graph.initializers.has(name)) continue;
    seen.add(name);
    const made = producerOf(graph, index, name);
    if (made === undefined || seen.size > MAX_NODES) return false;
    if (POOLS.has(made.opType) && made.inputs[0] === source) pools++;
    else open.push(...made.inputs);
  }
  return pools > 0;
}

/**
 * The graph with constant factors in the place of a gate. They are multiplied into the layers that
 * read the product, else into the convolution that makes what is multiplied, where either can take
 * them; else a multiplication by a constant is left.
 *
 * @param means one factor a channel.
 * @throws {RangeError} if the gate is not one of the graph.
 */
export function foldGate(graph: Graph, gate: Gate, means: Float32Array): Graph {
  const index = indexGraph(graph);
  const product = producerOf(graph, index, gate.output);
  if (product?.opType !== "Mul") throw new RangeError(`no gate makes "${gate.output}"`);
  const layers = findPrunableLayers(graph);
  const readers = consumersOf(graph, index, gate.output);
  const behind = layers.filter((layer) => layer.inputName === gate.output);
  const outside = index.outputs.has(gate.output);
  if (!outside && behind.length === readers.length && behind.every((l) => takes(l, means.length))) {
    const scaled = behind.reduce((now, layer) => withScaledInputs(now, layer, means), graph);
    return withoutGate(scaled, gate, gate.input);
  }
  const before = layers.find(({ biasedOutputName }) => biasedOutputName === gate.input);
  const own = consumersOf(graph, index, gate.input).filter((reader) => reader !== product);
  const pools = own.every((reader) => POOLS.has(reader.opType));
  if (before && pools && before.sharedWith.length === 0 && !index.outputs.has(gate.input)) {
    return withoutGate(withScaledOutputs(graph, before, means), gate, gate.input);
  }
  const name = freeName(graph, `${gate.output}_factors`);
  const initializers = new Map(graph.initializers);
  initializers.set(name, floatTensor([1, means.length, 1, 1], means));
  const nodes = graph.nodes.map((each) =>
    each === product ? node("Mul", [gate.input, name], [gate.output]) : each,
  );
  return removeDeadCode({ ...graph, nodes, initializers });
}

/** Whether each input channel has columns of its own, for all outputs, that nothing else reads. */
function takes(layer: PrunableLayer, channels: number): boolean {
  const { opType, groups, kernel, inFeaturesPerGroup, sharedWith } = layer;
  const places = kernel.reduce((a, b) => a * b, 1);
  const whole = opType === "Conv" && groups === 1 && inFeaturesPerGroup === channels * places;
  return whole && sharedWith.length === 0;
}

function withScaledInputs(graph: Graph, layer: PrunableLayer, factors: Float32Array): Graph {
  const W = readWeightMatrix(graph, layer);
  const cols = layer.inFeaturesPerGroup;
  const places = cols / factors.length;
  for (let i = 0; i < W.length; i++) W[i]! *= factors[Math.floor((i % cols) / places)]!;
  return writeWeightMatrix(graph, layer, W);
}

function withScaledOutputs(graph: Graph, layer: PrunableLayer, factors: Float32Array): Graph {
  const W = readWeightMatrix(graph, layer);
  const cols = layer.inFeaturesPerGroup;
  for (let i = 0; i < W.length; i++) W[i]! *= factors[Math.floor(i / cols)]!;
  const bias = readBias(graph, layer)?.map((value, row) => value * factors[row]!);
  const scaled = writeWeightMatrix(graph, layer, W);
  return bias === undefined ? scaled : writeBias(scaled, layer, bias);
}

/** Whoever read the product reads something else; what made the factors alone goes. */
function withoutGate(graph: Graph, { output }: Gate, instead: string): Graph {
  const nodes = graph.nodes.flatMap((each): Node[] => {
    if (each.outputs[0] === output) return [];
    const inputs = each.inputs.map((name) => (name === output ? instead : name));
    return [{ ...each, inputs }];
  });
  return removeDeadCode({ ...graph, nodes });
}
