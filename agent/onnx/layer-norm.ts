import { node as makeNode } from "./builder.ts";
import { removeDeadCode } from "./dead-code.ts";
import { type Graph, intAttribute, intsAttribute, type Node } from "./graph.ts";
import { consumersOf, freeName, type GraphIndex, indexGraph, producerOf } from "./query.ts";
import { floatTensor, integersOf, isFloatType, type Tensor, toFloat32 } from "./tensor.ts";

/** The operator came with this opset; see `raiseOpset`. */
const SINCE_OPSET = 17;

/**
 * Recognizes layer norms over the last axis that an exporter has written out, and puts the
 * operator in their place: (x − mean) / √(variance + ε) · γ + β as PyTorch writes it, and
 * x · g + (β − mean · g) with g = γ / √(variance + ε) as TensorFlow does. Graphs of an opset
 * without the operator come back as they are.
 */
export function recognizeLayerNorms(graph: Graph): Graph {
  if (graph.opset < SINCE_OPSET) return graph;
  const index = indexGraph(graph);
  const initializers = new Map(graph.initializers);
  const norms = new Map<string, Node>();
  for (const node of graph.nodes) {
    const norm = torchNorm(graph, index, node) ?? tensorflowNorm(graph, index, node);
    if (norm === undefined) continue;
    const scale = norm.scale ?? freeName(graph, `${norm.output}_ones`);
    if (norm.scale === null) {
      // Without a scale the width is known from the shift alone.
      const width =
        norm.shift === null ? undefined : graph.initializers.get(norm.shift)?.data.length;
      if (width === undefined) continue;
      initializers.set(scale, floatTensor([width], new Float32Array(width).fill(1)));
    }
    const inputs = [norm.input, scale, ...(norm.shift === null ? [] : [norm.shift])];
    const epsilon = { type: "float", value: norm.epsilon } as const;
    const attributes = { axis: -1, epsilon };
    norms.set(norm.output, makeNode("LayerNormalization", inputs, [norm.output], attributes));
  }
  if (norms.size === 0) return graph;
  const nodes = graph.nodes.map((node) => norms.get(node.outputs[0] ?? "") ?? node);
  return removeDeadCode({ ...graph, nodes, initializers });
}

interface LayerNorm {
  readonly input: string;
  /** γ; null where there is none. */
  readonly scale: string | null;
  /** β; null where there is none. */
  readonly shift: string | null;
  readonly epsilon: number;
  readonly output: string;
}

/** `node` is the division by the standard deviation; what follows it is taken in. */
function torchNorm(graph: Graph, index: GraphIndex, node: Node): LayerNorm | undefined {
  const quotient = quotientOf(graph, index, node);
  if (quotient === undefined) return undefined;
  const centered = producerOf(graph, index, quotient.over);
  const spread = spreadOf(graph, index, quotient.deviation);
  if (centered?.opType !== "Sub" || spread === undefined) return undefined;
  const [input, mean] = centered.inputs as [string, string];
  if (input !== spread.input || meanOf(graph, index, mean) !== input) return undefined;
  const scaled = nextWithVector(graph, index, node, "Mul");
  const shifted = nextWithVector(graph, index, scaled?.node ?? node, "Add");
  return {
    input,
    scale: scaled?.vector ?? null,
    shift: shifted?.vector ?? null,
    epsilon: spread.epsilon,
    output: (shifted ?? scaled)?.node.outputs[0] ?? node.outputs[0]!,
  };
}

/** a / √v, or a · (1 / √v). */
function quotientOf(
  graph: Graph,
  index: GraphIndex,
  node: Node,
): { over: string; deviation: string } | undefined {
  if (node.opType === "Div") return { over: node.inputs[0]!, deviation: node.inputs[1]! };
  if (node.opType !== "Mul") return undefined;
  for (const side of [0, 1]) {
    const inverse = producerOf(graph, index, node.inputs[side]!);
    if (inverse?.opType === "Reciprocal") {
      return { over: node.inputs[1 - side]!, deviation: inverse.inputs[0]! };
    }
  }
  return undefined;
}

/** √(mean((x − mean(x))²) + ε): x and ε. */
function spreadOf(
  graph: Graph,
  index: GraphIndex,
  deviation: string,
): { input: string; epsilon: number } | undefined {
  const root = producerOf(graph, index, deviation);
  const sum = root?.opType === "Sqrt" ? producerOf(graph, index, root.inputs[0]!) : undefined;
  if (sum?.opType !== "Add") return undefined;
  const side = sum.inputs.findIndex((name) => scalarOf(graph, name) !== undefined);
  if (side < 0) return undefined;
  const square = meanOf(graph, index, sum.inputs[1 - side]!);
  const squared = square === undefined ? undefined : producerOf(graph, index, square);
  const centered = squared && squareRootOf(graph, squared);
  const difference = centered === undefined ? undefined : producerOf(graph, index, centered);
  if (difference?.opType !== "Sub") return undefined;
  const [input, mean] = difference.inputs as [string, string];
  if (meanOf(graph, index, mean) !== input) return undefined;
  return { input, epsilon: scalarOf(graph, sum.inputs[side]!)! };
}

/** What a node squares: Pow(a, 2) or a · a. */
function squareRootOf(graph: Graph, node: Node): string | undefined {
  const [a, b] = node.inputs;
  if (node.opType === "Pow" && scalarOf(graph, b!) === 2) return a;
  return node.opType === "Mul" && a === b ? a : undefined;
}

/** What a value is the mean of, over the last axis, which stays as a 1. */
function meanOf(graph: Graph, index: GraphIndex, value: string): string | undefined {
  const node = producerOf(graph, index, value);
  if (node?.opType !== "ReduceMean" || intAttribute(node, "keepdims", 1) === 0) return undefined;
  const given = node.inputs[1] ? graph.initializers.get(node.inputs[1]) : undefined;
  const axes = given ? integersOf(given) : intsAttribute(node, "axes", []);
  return axes?.length === 1 && axes[0] === -1 ? node.inputs[0] : undefined;
}

function scalarOf(graph: Graph, name: string): number | undefined {
  const tensor = graph.initializers.get(name);
  if (tensor?.data.length !== 1 || !isFloatType(tensor.dataType)) return undefined;
  return toFloat32(tensor)[0];
}

/** The only reader of a node, if it combines the value with one constant a feature. */
function nextWithVector(
  graph: Graph,
  index: GraphIndex,
  node: Node,
  opType: string,
): { node: Node; vector: string } | undefined {
  const output = node.outputs[0]!;
  const [next, ...others] = consumersOf(graph, index, output);
  if (next?.opType !== opType || others.length > 0 || index.outputs.has(output)) return undefined;
  const vector = next.inputs.find((name) => name !== output);
  return isFeatureVector(graph.initializers.get(vector ?? ""))
    ? { node: next, vector: vector! }
    : undefined;
}

function isFeatureVector(tensor: Tensor | undefined): boolean {
  return tensor !== undefined && isFloatType(tensor.dataType) && tensor.dims.length === 1;
}

/** `node` is the last addition, x · g + (β − mean · g). */
function tensorflowNorm(graph: Graph, index: GraphIndex, node: Node): LayerNorm | undefined {
  if (node.opType !== "Add") return undefined;
  for (const side of [0, 1]) {
    const scaled = producerOf(graph, index, node.inputs[side]!);
    const rest = producerOf(graph, index, node.inputs[1 - side]!);
    if (scaled?.opType !== "Mul" || rest?.opType !== "Sub") continue;
    const [shift, product] = rest.inputs as [string, string];
    const meanTimes = producerOf(graph, index, product);
    if (meanTimes?.opType !== "Mul" || !isFeatureVector(graph.initializers.get(shift))) continue;
    for (const factor of scaled.inputs.filter((name) => meanTimes.inputs.includes(name))) {
      const input = scaled.inputs.find((name) => name !== factor);
      const mean = meanTimes.inputs.find((name) => name !== factor);
      const gain = gainOf(graph, index, factor);
      if (!input || !mean || gain === undefined) continue;
      if (meanOf(graph, index, mean) !== input || gain.input !== input) continue;
      const { scale, epsilon } = gain;
      return { input, scale, shift, epsilon, output: node.outputs[0]! };
    }
  }
  return undefined;
}

/** γ / √(variance + ε). */
function gainOf(
  graph: Graph,
  index: GraphIndex,
  value: string,
): { input: string; epsilon: number; scale: string } | undefined {
  const node = producerOf(graph, index, value);
  if (node?.opType !== "Mul") return undefined;
  const scale = node.inputs.find((name) => isFeatureVector(graph.initializers.get(name)));
  const quotient = quotientOf(graph, index, node);
  const spread = quotient && spreadOf(graph, index, quotient.deviation);
  return scale !== undefined && quotient?.over === scale && spread
    ? { ...spread, scale }
    : undefined;
}
