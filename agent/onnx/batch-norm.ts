import {
  floatAttribute,
  type Graph,
  intAttribute,
  intsAttribute,
  type Node,
  stringAttribute,
} from "./graph.ts";
import { consumersOf, freeName, type GraphIndex, indexGraph } from "./query.ts";
import { isFloatType, type Tensor, toFloat32, withFloatValues } from "./tensor.ts";

/**
 * Folds batch norms, and products and sums with one constant a channel, into the Conv or Gemm
 * before them: y = s · (Wx + b) + t is (s · W)x + (s · b + t). A batch norm before a Conv without
 * padding or a Gemm is folded into that one: W(s · x + t) + b is (W · s)x + (Wt + b); with padding
 * the border would see t where the network has zero. What can be folded nowhere stays.
 */
export function foldBatchNorms(graph: Graph): Graph {
  const draft: Draft = {
    graph,
    index: indexGraph(graph),
    initializers: new Map(graph.initializers),
    nodes: [],
    made: new Map(),
    taken: new Set(),
  };
  for (const node of graph.nodes) {
    if (!foldBackward(draft, node)) push(draft, foldForward(draft, node));
  }
  const nodes = draft.nodes.filter((node) => node !== null);
  return nodes.length === graph.nodes.length
    ? graph
    : { ...graph, nodes, initializers: draft.initializers };
}

/** The graph that comes out, as far as it is written. */
interface Draft {
  readonly graph: Graph;
  readonly index: GraphIndex;
  readonly initializers: Map<string, Tensor>;
  /** null where a node has gone into a later one. */
  readonly nodes: (Node | null)[];
  /** Position in `nodes` by output. */
  readonly made: Map<string, number>;
  readonly taken: Set<string>;
}

function push(draft: Draft, node: Node): void {
  for (const name of node.outputs) draft.made.set(name, draft.nodes.length);
  draft.nodes.push(node);
}

/** y = scale · x + shift, one value a channel. */
interface Affine {
  readonly scale: Float64Array;
  readonly shift: Float64Array;
}

/** A layer whose weights can take a factor a row, or a column. */
interface Layer {
  readonly node: Node;
  readonly weight: Tensor;
  readonly bias: Tensor | undefined;
  /** Outputs. */
  readonly rows: number;
  readonly groups: number;
  /** Whether the weights of one output lie together. */
  readonly byRow: boolean;
}

function layerAt(draft: Draft, node: Node | null | undefined): Layer | undefined {
  if (node?.domain !== "") return undefined;
  const weight = floatAt(draft, node.inputs[1]);
  const bias = floatAt(draft, node.inputs[2]);
  if (weight === undefined || (node.inputs[2] && bias === undefined)) return undefined;
  if (node.opType === "Conv" && weight.dims.length >= 3) {
    const groups = intAttribute(node, "group", 1);
    return { node, weight, bias, rows: weight.dims[0]!, groups, byRow: true };
  }
  if (node.opType !== "Gemm" || weight.dims.length !== 2) return undefined;
  const plain = intAttribute(node, "transA", 0) === 0 && floatAttribute(node, "beta", 1) === 1;
  const byRow = intAttribute(node, "transB", 0) !== 0;
  const rows = weight.dims[byRow ? 0 : 1]!;
  if (!plain || (bias && bias.data.length !== rows && bias.data.length !== 1)) return undefined;
  return { node, weight, bias, rows, groups: 1, byRow };
}

function floatAt(draft: Draft, name: string | undefined): Tensor | undefined {
  const tensor = name ? draft.initializers.get(name) : undefined;
  return tensor && isFloatType(tensor.dataType) ? tensor : undefined;
}

/** Folds a node into the layer that makes its input. */
function foldBackward(draft: Draft, node: Node): boolean {
  const input = node.inputs.find((name) => draft.made.has(name));
  const position = input === undefined ? undefined : draft.made.get(input);
  const layer = position === undefined ? undefined : layerAt(draft, draft.nodes[position]);
  if (layer === undefined || !onlyFor(draft, input!)) return false;
  const affine = affineOf(draft, node, input!, layer);
  if (affine === undefined) return false;
  const { rows, byRow } = layer;
  const values = Float64Array.from(toFloat32(layer.weight));
  const cols = values.length / rows;
  for (let i = 0; i < values.length; i++) {
    values[i]! *= affine.scale[byRow ? Math.floor(i / cols) : i % rows]!;
  }
  const old = layer.bias && toFloat32(layer.bias);
  const bias = affine.shift.map((shift, r) => {
    return shift + affine.scale[r]! * (old?.[old.length === 1 ? 0 : r] ?? 0);
  });
  const folded = { ...withWeights(draft, layer, values, bias), outputs: [node.outputs[0]!] };
  draft.nodes[position!] = folded;
  draft.made.set(node.outputs[0]!, position!);
  return true;
}

/** Whether nobody but the node at hand reads a value. */
function onlyFor(draft: Draft, value: string): boolean {
  return (
    consumersOf(draft.graph, draft.index, value).length === 1 && !draft.index.outputs.has(value)
  );
}

/** The layer with new weights and biases, under names of its own where others read the old ones. */
function withWeights(draft: Draft, layer: Layer, weight: Float64Array, bias: Float64Array): Node {
  const { node, rows } = layer;
  const [input, weightName, biasName] = node.inputs as [string, string, string | undefined];
  const { dataType, data } = layer.weight;
  const vector = withFloatValues({ dims: [rows], dataType, data }, bias);
  const biasBase = `${node.name || node.outputs[0]}.bias`;
  return {
    ...node,
    inputs: [
      input,
      store(draft, weightName, withFloatValues(layer.weight, weight)),
      biasName ? store(draft, biasName, vector) : storeNew(draft, biasBase, vector),
    ],
  };
}

function store(draft: Draft, name: string, tensor: Tensor): string {
  const readers = consumersOf(draft.graph, draft.index, name).length;
  if (readers > 1 && !draft.taken.has(name)) return storeNew(draft, name, tensor);
  draft.initializers.set(name, tensor);
  return name;
}

function storeNew(draft: Draft, base: string, tensor: Tensor): string {
  const name = freeName(draft.graph, base, draft.taken);
  draft.taken.add(name);
  draft.initializers.set(name, tensor);
  return name;
}

function affineOf(draft: Draft, node: Node, input: string, layer: Layer): Affine | undefined {
  if (node.domain !== "") return undefined;
  if (node.opType === "BatchNormalization") {
    return node.inputs[0] === input ? batchNorm(draft, node, layer.rows) : undefined;
  }
  if (!["Mul", "Div", "Add", "Sub"].includes(node.opType) || node.inputs.length !== 2)
    return undefined;
  const first = node.inputs[0] === input;
  const constant = floatAt(draft, node.inputs[first ? 1 : 0]);
  const values = constant && perChannel(constant, layer);
  if (values === undefined || (!first && node.opType === "Div")) return undefined;
  const all = (value: number) => new Float64Array(layer.rows).fill(value);
  switch (node.opType) {
    case "Mul":
      return { scale: values, shift: all(0) };
    case "Div":
      return { scale: values.map((value) => 1 / value), shift: all(0) };
    case "Add":
      return { scale: all(1), shift: values };
    default:
      return first
        ? { scale: all(1), shift: values.map((v) => -v) }
        : { scale: all(-1), shift: values };
  }
}

/** A constant as one value a channel of the layer's output; undefined for any other shape. */
function perChannel({ dims, data, dataType }: Tensor, layer: Layer): Float64Array | undefined {
  const rank = layer.node.opType === "Gemm" ? 2 : layer.weight.dims.length;
  if (dims.length > rank) return undefined;
  const values = toFloat32({ dims, data, dataType });
  if (values.length === 1) return new Float64Array(layer.rows).fill(values[0]!);
  const axis = 1 - rank + dims.length;
  const fits = dims.every((size, i) => size === (i === axis ? layer.rows : 1));
  return fits ? Float64Array.from(values) : undefined;
}

/** γ / √(var + ε) and β − mean · γ / √(var + ε). */
function batchNorm(draft: Draft, node: Node, channels: number): Affine | undefined {
  const parts = node.inputs.slice(1).map((name) => floatAt(draft, name));
  const training = intAttribute(node, "training_mode", 0) !== 0;
  if (training || node.outputs.slice(1).some((name) => name !== "")) return undefined;
  if (parts.length !== 4 || parts.some((part) => part?.data.length !== channels)) return undefined;
  const [gamma, beta, mean, variance] = parts.map((part) => toFloat32(part!));
  const epsilon = floatAttribute(node, "epsilon", 1e-5);
  const scale = Float64Array.from(gamma!, (value, c) => value / Math.sqrt(variance![c]! + epsilon));
  return { scale, shift: scale.map((value, c) => beta![c]! - mean![c]! * value) };
}

/** Folds a batch norm, which is in no layer yet, into the layer that is its only reader. */
function foldForward(draft: Draft, node: Node): Node {
  const layer = layerAt(draft, node);
  const position = draft.made.get(node.inputs[0] ?? "");
  const norm = position === undefined ? undefined : draft.nodes[position];
  if (!layer || !norm || norm.opType !== "BatchNormalization" || !onlyFor(draft, node.inputs[0]!)) {
    return node;
  }
  if (node.opType === "Conv" && isPadded(node)) return node;
  const { rows, groups, weight, byRow } = layer;
  const affine = batchNorm(draft, norm, weight.dims[byRow ? 1 : 0]! * groups);
  if (affine === undefined) return node;
  const values = Float64Array.from(toFloat32(weight));
  const cols = values.length / rows;
  const inputs = weight.dims[byRow ? 1 : 0]!;
  const alpha = node.opType === "Gemm" ? floatAttribute(node, "alpha", 1) : 1;
  const old = layer.bias && toFloat32(layer.bias);
  const bias = Float64Array.from({ length: rows }, (_, r) => old?.[old.length === 1 ? 0 : r] ?? 0);
  for (let i = 0; i < values.length; i++) {
    const [row, col] = byRow ? [Math.floor(i / cols), i % cols] : [i % rows, Math.floor(i / rows)];
    const channel = Math.floor(row / (rows / groups)) * inputs + Math.floor(col / (cols / inputs));
    bias[row]! += alpha * values[i]! * affine.shift[channel]!;
    values[i]! *= affine.scale[channel]!;
  }
  draft.nodes[position!] = null;
  const folded = withWeights(draft, layer, values, bias);
  return { ...folded, inputs: [norm.inputs[0]!, ...folded.inputs.slice(1)] };
}

function isPadded(node: Node): boolean {
  const auto = stringAttribute(node, "auto_pad", "NOTSET");
  if (auto === "VALID") return false;
  return auto !== "NOTSET" || intsAttribute(node, "pads", []).some((pad) => pad !== 0);
}
