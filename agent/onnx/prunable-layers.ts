import {
  floatAttribute,
  type Graph,
  intAttribute,
  intsAttribute,
  type Node,
  stringAttribute,
} from "./graph.ts";
import { replaceInitializer } from "./initializers.ts";
import { consumersOf, describe, type GraphIndex, indexGraph } from "./query.ts";
import { isFloatType, type Tensor, toFloat32, withFloatValues } from "./tensor.ts";

/**
 * A layer whose weights form a matrix W (rows × cols) that multiplies something of the input:
 * rows are output features, cols the inputs that one output sees. For a convolution the columns
 * are ordered (input channel of the group, kernel row, kernel column), as in the file; row r
 * belongs to group ⌊r / (rows / groups)⌋.
 */
export interface PrunableLayer {
  /** Position of the node in `graph.nodes`. */
  readonly nodeIndex: number;
  /** Name of the node, or of its output where it has none. */
  readonly name: string;
  readonly opType: "Conv" | "Gemm" | "MatMul";
  readonly weightName: string;
  /**
   * `rows`: stored row by row (Conv, Gemm with transB, constant left side of a MatMul);
   * `cols`: stored transposed (Gemm without transB, constant right side of a MatMul).
   */
  readonly weightOrder: "rows" | "cols";
  /** Side of a MatMul on which the weight stands; `right` for all others. */
  readonly weightSide: "left" | "right";
  /** Initializer of the bias, one value a row; null where there is none that can be told. */
  readonly biasName: string | null;
  /** Position of the `Add` that adds the bias of a MatMul; null where the node does it itself. */
  readonly biasNodeIndex: number | null;
  /** Activation that the weights multiply. */
  readonly inputName: string;
  /** Output of the node itself. */
  readonly outputName: string;
  /** Output after the bias: the Add's where there is one, else `outputName`. */
  readonly biasedOutputName: string;
  /** Rows of W. */
  readonly outFeatures: number;
  /** Columns of W: Cin / groups · kernel height · kernel width. */
  readonly inFeaturesPerGroup: number;
  readonly groups: number;
  /** Kernel [height, width]; [1, 1] for matrix products. */
  readonly kernel: readonly number[];
  readonly strides: readonly number[];
  /** [top, left, bottom, right]; meaningless where `autoPad` is not NOTSET. */
  readonly pads: readonly number[];
  readonly dilations: readonly number[];
  readonly autoPad: string;
  /** Names of the other nodes that read the same weight: to change it changes them too. */
  readonly sharedWith: readonly string[];
}

/**
 * Finds the layers whose weights can be pruned one by one, in the order of the graph: Conv with
 * two spatial dimensions, Gemm with a constant B, MatMul with one constant matrix. The graph must
 * be normalized (`normalizeGraph`): constants behind other nodes are not seen.
 */
export function findPrunableLayers(graph: Graph): PrunableLayer[] {
  const index = indexGraph(graph);
  const layers: PrunableLayer[] = [];
  graph.nodes.forEach((node, position) => {
    const layer = layerOf(graph, index, node, position);
    if (layer) layers.push(layer);
  });
  return layers;
}

function layerOf(
  graph: Graph,
  index: GraphIndex,
  node: Node,
  position: number,
): PrunableLayer | undefined {
  if (node.domain !== "") return undefined;
  switch (node.opType) {
    case "Conv":
      return convLayer(graph, index, node, position);
    case "Gemm":
      return gemmLayer(graph, index, node, position);
    case "MatMul":
      return matMulLayer(graph, index, node, position);
    default:
      return undefined;
  }
}

/** Fields that all layers of a node share. */
function common(
  graph: Graph,
  index: GraphIndex,
  node: Node,
  position: number,
  names: { weight: string; input: string },
) {
  const outputName = node.outputs[0]!;
  const others = consumersOf(graph, index, names.weight).filter((other) => other !== node);
  return {
    nodeIndex: position,
    name: node.name || outputName,
    weightName: names.weight,
    inputName: names.input,
    outputName,
    biasedOutputName: outputName,
    biasNodeIndex: null,
    weightSide: "right" as const,
    sharedWith: others.map((other) => other.name || (other.outputs[0] ?? "")),
  };
}

const MATRIX_GEOMETRY = {
  groups: 1,
  kernel: [1, 1],
  strides: [1, 1],
  pads: [0, 0, 0, 0],
  dilations: [1, 1],
  autoPad: "NOTSET",
} as const;

function convLayer(
  graph: Graph,
  index: GraphIndex,
  node: Node,
  position: number,
): PrunableLayer | undefined {
  const [input, weightName, bias] = node.inputs;
  const weight = floatConstant(graph, weightName);
  if (!input || !weightName || weight?.dims.length !== 4) return undefined;
  if (graph.initializers.has(input)) return undefined;
  const [outFeatures, channels, height, width] = weight.dims as [number, number, number, number];
  return {
    ...common(graph, index, node, position, { weight: weightName, input }),
    opType: "Conv",
    weightOrder: "rows",
    biasName: floatConstant(graph, bias) ? bias! : null,
    outFeatures,
    inFeaturesPerGroup: channels * height * width,
    groups: intAttribute(node, "group", 1),
    kernel: [height, width],
    strides: intsAttribute(node, "strides", [1, 1]),
    pads: intsAttribute(node, "pads", [0, 0, 0, 0]),
    dilations: intsAttribute(node, "dilations", [1, 1]),
    autoPad: stringAttribute(node, "auto_pad", "NOTSET"),
  };
}

function gemmLayer(
  graph: Graph,
  index: GraphIndex,
  node: Node,
  position: number,
): PrunableLayer | undefined {
  const [input, weightName, bias] = node.inputs;
  const weight = floatConstant(graph, weightName);
  if (!input || !weightName || weight?.dims.length !== 2) return undefined;
  if (graph.initializers.has(input) || intAttribute(node, "transA", 0) !== 0) return undefined;
  const transposed = intAttribute(node, "transB", 0) !== 0;
  const [first, second] = weight.dims as [number, number];
  const outFeatures = transposed ? first : second;
  const fits = floatConstant(graph, bias)?.data.length === outFeatures;
  return {
    ...common(graph, index, node, position, { weight: weightName, input }),
    ...MATRIX_GEOMETRY,
    opType: "Gemm",
    weightOrder: transposed ? "rows" : "cols",
    // With beta ≠ 1 the stored bias is not what is added: better none than a wrong one.
    biasName: fits && floatAttribute(node, "beta", 1) === 1 ? bias! : null,
    outFeatures,
    inFeaturesPerGroup: transposed ? second : first,
  };
}

function matMulLayer(
  graph: Graph,
  index: GraphIndex,
  node: Node,
  position: number,
): PrunableLayer | undefined {
  const [left, right] = node.inputs;
  if (!left || !right) return undefined;
  const [leftWeight, rightWeight] = [floatConstant(graph, left), floatConstant(graph, right)];
  if ((leftWeight === undefined) === (rightWeight === undefined)) return undefined;
  const weight = (rightWeight ?? leftWeight)!;
  if (weight.dims.length !== 2) return undefined;
  const [first, second] = weight.dims as [number, number];
  const onRight = rightWeight !== undefined;
  const names = onRight ? { weight: right, input: left } : { weight: left, input: right };
  const outFeatures = onRight ? second : first;
  return {
    ...common(graph, index, node, position, names),
    ...MATRIX_GEOMETRY,
    opType: "MatMul",
    weightOrder: onRight ? "cols" : "rows",
    weightSide: onRight ? "right" : "left",
    outFeatures,
    inFeaturesPerGroup: onRight ? first : second,
    biasName: null,
    ...(onRight ? addedBias(graph, index, node, outFeatures) : {}),
  };
}

/** The `Add` of a constant vector right after a MatMul, as PyTorch writes a Linear. */
function addedBias(graph: Graph, index: GraphIndex, node: Node, rows: number) {
  const output = node.outputs[0]!;
  const [add, ...others] = consumersOf(graph, index, output);
  if (add?.opType !== "Add" || others.length > 0 || index.outputs.has(output)) return {};
  const biasName = add.inputs.find((name) => name !== output);
  const bias = floatConstant(graph, biasName);
  if (!biasName || bias?.data.length !== rows || bias.dims.at(-1) !== rows) return {};
  return {
    biasName,
    biasNodeIndex: index.consumers.get(output)![0]!,
    biasedOutputName: add.outputs[0]!,
  };
}

function floatConstant(graph: Graph, name: string | undefined): Tensor | undefined {
  const tensor = name ? graph.initializers.get(name) : undefined;
  return tensor && isFloatType(tensor.dataType) ? tensor : undefined;
}

/**
 * A layer's weights as W, `outFeatures × inFeaturesPerGroup`, row-major, always a copy. A Gemm's
 * alpha is left out: it scales the output, not the problem.
 *
 * @throws {RangeError} if the graph lacks the weight or it has another size.
 */
export function readWeightMatrix(graph: Graph, layer: PrunableLayer): Float32Array {
  const values = toFloat32(weightOf(graph, layer));
  const { outFeatures: rows, inFeaturesPerGroup: cols } = layer;
  return layer.weightOrder === "rows" ? values.slice() : transpose(values, cols, rows);
}

/**
 * The graph with a layer's weights replaced by W, `outFeatures × inFeaturesPerGroup`, row-major,
 * rounded to the type of the weight.
 *
 * @throws {RangeError} if W or the weight has another size.
 */
export function writeWeightMatrix(
  graph: Graph,
  layer: PrunableLayer,
  W: Float32Array | Float64Array,
): Graph {
  const tensor = weightOf(graph, layer);
  const { outFeatures: rows, inFeaturesPerGroup: cols } = layer;
  if (W.length !== rows * cols) {
    throw new RangeError(
      `weights of "${layer.name}": expected ${rows} × ${cols}, got ${W.length} values`,
    );
  }
  const values = layer.weightOrder === "rows" ? W.slice() : transpose(W, rows, cols);
  return replaceInitializer(graph, layer.weightName, withFloatValues(tensor, values));
}

function weightOf(graph: Graph, layer: PrunableLayer): Tensor {
  const tensor = graph.initializers.get(layer.weightName);
  const count = layer.outFeatures * layer.inFeaturesPerGroup;
  if (tensor?.data.length !== count) {
    throw new RangeError(
      `"${layer.name}": expected ${count} weights in "${layer.weightName}", got ${tensor?.data.length ?? "none"}`,
    );
  }
  return tensor;
}

/** `rows × cols` row-major → `cols × rows` row-major. */
function transpose(values: Float32Array | Float64Array, rows: number, cols: number): Float32Array {
  const result = new Float32Array(rows * cols);
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < cols; c++) result[c * rows + r] = values[r * cols + c]!;
  }
  return result;
}

/**
 * The bias of a layer, one value a row; null where it has none.
 *
 * @throws {RangeError} if the graph lacks the initializer.
 */
export function readBias(graph: Graph, layer: PrunableLayer): Float32Array | null {
  if (layer.biasName === null) return null;
  const tensor = graph.initializers.get(layer.biasName);
  if (tensor === undefined) throw new RangeError(`the graph has no bias "${layer.biasName}"`);
  return toFloat32(tensor).slice();
}

/**
 * The graph with another bias for one layer. A layer without one gets one, where its node takes a
 * third input (Conv, Gemm with beta 1) or by an Add behind it (MatMul). A bias that other nodes
 * read too is left alone: the layer gets a copy of its own.
 *
 * Adding a node shifts positions: find the layers anew afterwards.
 *
 * @param bias one value a row.
 * @throws {RangeError} if the size differs; for a Gemm with beta other than 1.
 */
export function writeBias(
  graph: Graph,
  layer: PrunableLayer,
  bias: Float32Array | Float64Array,
): Graph {
  if (bias.length !== layer.outFeatures) {
    throw new RangeError(`expected ${layer.outFeatures} biases, got ${bias.length}`);
  }
  const node = graph.nodes[layer.nodeIndex];
  if (node?.outputs[0] !== layer.outputName) {
    throw new RangeError(`"${layer.name}" is not at its place: find the layers of this graph anew`);
  }
  return withBias(graph, layer, node, Float32Array.from(bias));
}

function withBias(graph: Graph, layer: PrunableLayer, node: Node, bias: Float32Array): Graph {
  const weight = weightOf(graph, layer);
  const old = layer.biasName === null ? undefined : graph.initializers.get(layer.biasName);
  const template = old ?? { dims: [bias.length], dataType: weight.dataType, data: weight.data };
  const tensor = withFloatValues(template, bias);
  const index = indexGraph(graph);
  const readers = layer.biasName === null ? [] : (index.consumers.get(layer.biasName) ?? []);
  if (layer.biasName !== null && readers.length === 1) {
    return replaceInitializer(graph, layer.biasName, tensor);
  }
  const name = ownName(graph, `${layer.outputName}_bias`);
  const initializers = new Map(graph.initializers).set(name, tensor);
  const nodes = [...graph.nodes];
  if (layer.biasNodeIndex !== null) {
    const add = nodes[layer.biasNodeIndex]!;
    const inputs = add.inputs.map((input) => (input === layer.biasName ? name : input));
    nodes[layer.biasNodeIndex] = { ...add, inputs };
    return { ...graph, nodes, initializers };
  }
  if (layer.opType !== "MatMul") {
    if (floatAttribute(node, "beta", 1) !== 1 || (node.inputs[2] && layer.biasName === null)) {
      throw new RangeError(`${describe(node)} has a bias that is no plain vector of its rows`);
    }
    nodes[layer.nodeIndex] = { ...node, inputs: [node.inputs[0]!, node.inputs[1]!, name] };
    return { ...graph, nodes, initializers };
  }
  return insertAdd({ ...graph, nodes, initializers }, layer, node, name);
}

/** The MatMul makes a new value; the Add makes the old one, so that readers need no change. */
function insertAdd(graph: Graph, layer: PrunableLayer, node: Node, biasName: string): Graph {
  if (layer.weightSide === "left") {
    throw new RangeError(`${describe(node)}: a bias of rows does not broadcast over its output`);
  }
  const product = ownName(graph, `${layer.outputName}_product`);
  const nodes = [...graph.nodes];
  const add: Node = {
    name: `${layer.name}_bias`,
    opType: "Add",
    domain: "",
    inputs: [product, biasName],
    outputs: [layer.outputName],
    attributes: new Map(),
  };
  nodes.splice(layer.nodeIndex, 1, { ...node, outputs: [product] }, add);
  return { ...graph, nodes };
}

function ownName(graph: Graph, base: string): string {
  const taken = new Set([...graph.initializers.keys(), ...graph.nodes.flatMap((n) => n.outputs)]);
  let name = base;
  for (let i = 1; taken.has(name); i++) name = `${base}_${i}`;
  return name;
}
