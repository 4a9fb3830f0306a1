import { node } from "./builder.ts";
import { removeDeadCode } from "./dead-code.ts";
import {
  floatAttribute,
  type Graph,
  intAttribute,
  intsAttribute,
  type Node,
  type ValueInfo,
} from "./graph.ts";
import { consumersOf, freeName, type GraphIndex, indexGraph, producerOf } from "./query.ts";
import { extractSubgraph } from "./subgraph.ts";
import {
  DataType,
  elementCount,
  floatTensor,
  isFloatType,
  type Tensor,
  toFloat32,
} from "./tensor.ts";

/** The classifier at the end of a network. */
export interface Head {
  /**
   * `linear`: logits = features · Wᵀ + b on a matrix of features. `conv`: a 1×1 convolution
   * beside a global average pool (SqueezeNet, Keras MobileNet); its features are its input,
   * pooled over all positions.
   */
  readonly kind: "linear" | "conv";
  /** Activation that the classifier reads: `[N, features]`, for `conv` `[N, features, h, w]`. */
  readonly featuresName: string;
  readonly weightName: string;
  /** null where there is none. */
  readonly biasName: string | null;
  /** Name of the node that holds the weights, or of its output. */
  readonly nodeName: string;
  readonly opType: "Gemm" | "MatMul" | "Conv";
  /** True if the weight is stored class by class. */
  readonly transB: boolean;
  /** Factors of a Gemm on the product and on the bias; 1 for all others. */
  readonly alpha: number;
  readonly beta: number;
  readonly classes: number;
  readonly features: number;
  /** Value that holds the logits now: what a trailing softmax reads. */
  readonly logitsName: string;
  /** The graph's output, after a softmax where there is one. */
  readonly outputName: string;
  /** `Softmax`, `LogSoftmax` or `Sigmoid` behind the logits, which is cut off; else null. */
  readonly cut: string | null;
  /** False if an activation stands between a conv head and its pool: W on pooled features is then
   * not the same function, and the head must be refitted. */
  readonly exact: boolean;
}

/** Nodes that only rearrange logits of shape [N, classes, 1, 1] or pass them on. */
const PASSIVE = new Set(["Identity", "Dropout", "Flatten", "Reshape", "Squeeze"]);
const NORMALIZERS = new Set(["Softmax", "LogSoftmax", "Sigmoid"]);

/**
 * Finds the classifier, walking back from the output through what merely reshapes or
 * normalizes. The graph must be normalized (`normalizeGraph`).
 *
 * @returns the head, or the reason in words why there is none that this code understands.
 */
export function findHead(graph: Graph): Head | { readonly reason: string } {
  const [output, ...others] = graph.outputs;
  if (output === undefined || others.length > 0) {
    return { reason: `expected one output, got ${graph.outputs.length}` };
  }
  const index = indexGraph(graph);
  const outputName = output.name;
  const end = walkBack(graph, index, outputName, PASSIVE);
  let logitsName = outputName;
  let last = end;
  let cut: string | null = null;
  if (end && NORMALIZERS.has(end.opType)) {
    cut = end.opType;
    logitsName = end.inputs[0]!;
    last = walkBack(graph, index, logitsName, PASSIVE);
  }
  const found = { logitsName, outputName, cut };
  const head = linearHead(graph, index, last, found) ?? convHead(graph, index, last, found);
  if (head && !fitsOutput(output, head.classes)) {
    return {
      reason: `the output has shape [${output.dims}], the classifier ${head.classes} classes`,
    };
  }
  return (
    head ?? {
      reason: `the output "${outputName}" comes from ${last?.opType ?? "no node"}; expected a Gemm, a MatMul or a 1×1 Conv with a global average pool, with constant weights`,
    }
  );
}

/** Unknown sizes fit; a batch dimension of any size is left aside. */
function fitsOutput(output: ValueInfo, classes: number): boolean {
  const sizes = (output.dims ?? []).slice(1);
  if (!sizes.every((size): size is number => typeof size === "number")) return true;
  return sizes.length === 0 || elementCount(sizes) === classes;
}

type Found = Pick<Head, "logitsName" | "outputName" | "cut">;

function walkBack(
  graph: Graph,
  index: GraphIndex,
  from: string,
  through: ReadonlySet<string>,
): Node | undefined {
  let current = producerOf(graph, index, from);
  while (current && through.has(current.opType)) {
    current = producerOf(graph, index, current.inputs[0] ?? "");
  }
  return current;
}

function constant(graph: Graph, name: string | undefined): Tensor | undefined {
  const tensor = name ? graph.initializers.get(name) : undefined;
  return tensor && isFloatType(tensor.dataType) ? tensor : undefined;
}

function linearHead(
  graph: Graph,
  index: GraphIndex,
  last: Node | undefined,
  found: Found,
): Head | undefined {
  if (last?.opType === "Gemm") {
    const transB = intAttribute(last, "transB", 0) !== 0;
    if (intAttribute(last, "transA", 0) !== 0) return undefined;
    const bias = last.inputs[2] ? last.inputs[2] : null;
    if (bias !== null && !constant(graph, bias)) return undefined;
    const alpha = floatAttribute(last, "alpha", 1);
    const beta = floatAttribute(last, "beta", 1);
    return matrixHead(graph, last, found, { transB, bias, alpha, beta });
  }
  let product = last;
  let bias: string | null = null;
  if (last?.opType === "Add") {
    const side = last.inputs.findIndex((name) => constant(graph, name));
    bias = last.inputs[side] ?? null;
    product = producerOf(graph, index, last.inputs[1 - side] ?? "");
    if (product && consumersOf(graph, index, product.outputs[0]!).length > 1) return undefined;
  }
  if (product?.opType !== "MatMul") return undefined;
  return matrixHead(graph, product, found, { transB: false, bias, alpha: 1, beta: 1 });
}

function matrixHead(
  graph: Graph,
  last: Node,
  found: Found,
  how: { transB: boolean; bias: string | null; alpha: number; beta: number },
): Head | undefined {
  const [featuresName, weightName] = last.inputs;
  const weight = constant(graph, weightName);
  if (!featuresName || !weightName || weight?.dims.length !== 2) return undefined;
  const [first, second] = weight.dims as [number, number];
  const [classes, features] = how.transB ? [first, second] : [second, first];
  if (how.bias !== null && constant(graph, how.bias)!.data.length !== classes) return undefined;
  return {
    kind: "linear",
    featuresName,
    weightName,
    biasName: how.bias,
    nodeName: last.name || last.outputs[0]!,
    opType: last.opType as "Gemm" | "MatMul",
    transB: how.transB,
    alpha: how.alpha,
    beta: how.beta,
    classes,
    features,
    ...found,
    exact: true,
  };
}

/** Conv 1×1 → (activation) → pool, or pool → Conv 1×1. */
function convHead(
  graph: Graph,
  index: GraphIndex,
  last: Node | undefined,
  found: Found,
): Head | undefined {
  let conv = last;
  let exact = true;
  if (last && isGlobalPool(last)) {
    const before = walkBack(graph, index, last.inputs[0]!, new Set(["Identity", "Dropout"]));
    exact = before?.opType === "Conv";
    const activation = before && ACTIVATIONS.has(before.opType);
    conv = activation ? producerOf(graph, index, before.inputs[0]!) : before;
  } else if (!comesFromPool(graph, index, last)) {
    return undefined;
  }
  if (conv?.opType !== "Conv" || intAttribute(conv, "group", 1) !== 1) return undefined;
  const [featuresName, weightName, bias] = conv.inputs;
  const weight = constant(graph, weightName);
  if (!featuresName || !weightName || weight?.dims.length !== 4) return undefined;
  const [classes, features, height, width] = weight.dims as [number, number, number, number];
  const padded = intsAttribute(conv, "pads", []).some((pad) => pad !== 0);
  const strided = intsAttribute(conv, "strides", []).some((stride) => stride !== 1);
  if (height !== 1 || width !== 1) return undefined;
  return {
    kind: "conv",
    featuresName,
    weightName,
    biasName: bias ? bias : null,
    nodeName: conv.name || conv.outputs[0]!,
    opType: "Conv",
    transB: true,
    alpha: 1,
    beta: 1,
    classes,
    features,
    ...found,
    exact: exact && !padded && !strided,
  };
}

const ACTIVATIONS = new Set(["Relu", "Clip", "LeakyRelu", "HardSwish"]);

function isGlobalPool(last: Node): boolean {
  if (last.opType === "GlobalAveragePool") return true;
  // Exporters write adaptive pools to 1×1 as a pool over the whole, known size.
  return last.opType === "ReduceMean" || last.opType === "AveragePool";
}

function comesFromPool(graph: Graph, index: GraphIndex, conv: Node | undefined): boolean {
  if (conv?.opType !== "Conv") return false;
  const before = walkBack(graph, index, conv.inputs[0] ?? "", PASSIVE);
  return before !== undefined && isGlobalPool(before);
}

/** Weights of a classifier as they act: alpha and beta multiplied in. */
export interface HeadWeights {
  /** `classes × features`, row-major. */
  readonly W: Float32Array;
  /** One value a class. */
  readonly b: Float32Array;
}

/**
 * Reads a head's weights.
 *
 * @throws {RangeError} if the graph lacks them.
 */
export function readHead(graph: Graph, head: Head): HeadWeights {
  const weight = constant(graph, head.weightName);
  if (weight === undefined) throw new RangeError(`the graph has no weight "${head.weightName}"`);
  const stored = toFloat32(weight);
  const { classes, features, transB, alpha, beta } = head;
  const W = new Float32Array(classes * features);
  for (let c = 0; c < classes; c++) {
    for (let f = 0; f < features; f++) {
      W[c * features + f] = alpha * stored[transB ? c * features + f : f * classes + c]!;
    }
  }
  const bias = head.biasName === null ? undefined : constant(graph, head.biasName);
  const b = bias ? toFloat32(bias).map((value) => beta * value) : new Float32Array(classes);
  return { W, b };
}

/** A graph that ends in the features a classifier reads, and the name of that output. */
export interface FeatureGraph {
  readonly graph: Graph;
  /** float32 `[N, features]`. */
  readonly featuresName: string;
}

/** The network without its classifier: from the graph's inputs to `[N, features]`. */
export function featureGraph(graph: Graph, head: Head): FeatureGraph {
  const { nodes, featuresName } = flatFeatures(graph, head);
  const dims = ["N", head.features];
  const outputs = [{ name: featuresName, dataType: DataType.FLOAT, dims }];
  const made = { ...graph, nodes: [...graph.nodes, ...nodes], outputs };
  const inputs = graph.inputs.map(({ name }) => name);
  return { graph: { ...extractSubgraph(made, inputs, [featuresName]), outputs }, featuresName };
}

function flatFeatures(graph: Graph, head: Head): { nodes: Node[]; featuresName: string } {
  if (head.opType === "Gemm") return { nodes: [], featuresName: head.featuresName };
  const featuresName = freeName(graph, "features");
  if (head.opType === "MatMul") {
    const flat = node("Flatten", [head.featuresName], [featuresName], { axis: 1 });
    return { nodes: [flat], featuresName };
  }
  const pooled = freeName(graph, "features_pooled");
  const pool = node("GlobalAveragePool", [head.featuresName], [pooled]);
  return { nodes: [pool, node("Flatten", [pooled], [featuresName], { axis: 1 })], featuresName };
}

/**
 * The graph with another classifier: features · Wᵀ + b, output `logits` [N, classes], nothing
 * behind it. For a conv head the features are its input, averaged over all positions.
 *
 * @param W `classes × features`, row-major, class by class.
 * @param b one value a class.
 * @throws {RangeError} if the sizes do not fit.
 */
export function replaceHead(
  graph: Graph,
  head: Head,
  W: Float32Array,
  b: Float32Array,
  names: { readonly output?: string; readonly weight?: string; readonly bias?: string } = {},
): Graph {
  const classes = b.length;
  if (classes === 0 || W.length !== classes * head.features) {
    throw new RangeError(
      `expected ${classes} × ${head.features} weights for ${classes} biases, got ${W.length}`,
    );
  }
  const { nodes, featuresName } = flatFeatures(graph, head);
  const output = names.output ?? "logits";
  // The old classifier must go first: its names may be those of the new one.
  const outputs = [{ name: featuresName, dataType: DataType.FLOAT, dims: ["N", head.features] }];
  const bare = removeDeadCode({ ...graph, nodes: [...graph.nodes, ...nodes], outputs });
  const free = displace(bare, output);
  const weightName = freeName(free, names.weight ?? "classifier.weight");
  const biasName = freeName(free, names.bias ?? "classifier.bias");
  const gemm = node("Gemm", [featuresName, weightName, biasName], [output], { transB: 1 });
  return {
    ...free,
    nodes: [...free.nodes, { ...gemm, name: "classifier" }],
    initializers: new Map(free.initializers)
      .set(weightName, floatTensor([classes, head.features], W))
      .set(biasName, floatTensor([classes], b)),
    outputs: [{ name: output, dataType: DataType.FLOAT, dims: ["N", classes] }],
  };
}

/**
 * Makes sure that a name is free for the new output.
 *
 * @throws {RangeError} if a value before the classifier has it.
 */
function displace(graph: Graph, name: string): Graph {
  if (freeName({ ...graph, outputs: [] }, name) === name) return graph;
  throw new RangeError(`a value before the classifier is already called "${name}"`);
}

/**
 * The network with a linear classifier on its features: output `logits`, `[N, classes]`.
 *
 * @param backbone with features `[N, inputs]` as its only output.
 * @param head `weights` `classes × inputs`, row-major; `bias` one value a class.
 */
export function withLinearHead(
  backbone: Graph,
  { weights, bias }: { readonly weights: Float32Array; readonly bias: Float32Array },
): Graph {
  const features = backbone.outputs[0]!.name;
  const classes = bias.length;
  const initializers = new Map(backbone.initializers)
    .set("taco_head_weight", floatTensor([classes, weights.length / classes], weights))
    .set("taco_head_bias", floatTensor([classes], bias));
  const names = [features, "taco_head_weight", "taco_head_bias"];
  return {
    ...backbone,
    nodes: [...backbone.nodes, node("Gemm", names, ["logits"], { transB: 1 })],
    initializers,
    outputs: [{ name: "logits", dataType: DataType.FLOAT, dims: ["N", classes] }],
  };
}
