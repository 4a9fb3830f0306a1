import { removeDeadCode } from "../onnx/dead-code.ts";
import type { Graph, Node } from "../onnx/graph.ts";
import { intAttribute } from "../onnx/graph.ts";
import { type ActivationEncoding, quantizeGraph, type WeightEncoding } from "../onnx/qdq.ts";
import { absorbClipping, integerNodes, isLinear } from "../onnx/qdq-nodes.ts";
import { appendRanges } from "../onnx/qdq-ranges.ts";
import { type Tensor, toFloat32 } from "../onnx/tensor.ts";
import type { CompressEnvironment, LayerReport, PassResult } from "./environment.ts";

/** How {@link quantizeNetwork} works. */
export interface QuantizeOptions extends CompressEnvironment {
  /**
   * How activations are stored. `uint8` with a zero point is the most exact and what CPUs run
   * fastest (the default); `int8` with zero point 0 is what TensorRT takes.
   */
  readonly scheme?: "uint8" | "int8";
  /** Nodes that stay in float, by name or by first output. */
  readonly float?: readonly string[];
}

/** Smallest and largest value. */
type Range = readonly [low: number, high: number];

/**
 * Quantizes a network to 8-bit integers for weights and activations, written as standard ONNX
 * (QuantizeLinear and DequantizeLinear) that runtimes fuse into integer kernels.
 *
 * @param dense normalized network from the picture to its features or logits, opset 13 or later.
 * @returns the quantized network; a report for each linear layer.
 */
export async function quantizeNetwork(dense: Graph, options: QuantizeOptions): Promise<PassResult> {
  const float = new Set(options.float ?? []);
  const { scheme = "uint8" } = options;
  const left = dense.nodes.filter((n) => float.has(n.name)).map((n) => n.outputs[0]!);
  const chosen = integerNodes(dense, new Set([...float, ...left]));
  // Integers with a zero point saturate where a Relu cuts; symmetric ones do not.
  const { graph, nodes } =
    scheme === "uint8" ? absorbClipping(dense, chosen) : { graph: dense, nodes: chosen };
  const members = graph.nodes.filter((node) => nodes.has(node.outputs[0]!));
  const names = activationNames(graph, members);
  const ranges = await measureRanges(dense, names, options);
  const activations = new Map(
    [...ranges].map(([name, range]) => [name, encodeRange(range, scheme)] as const),
  );
  const weights = new Map<string, WeightEncoding>();
  const reports: LayerReport[] = [];
  for (const node of members) {
    if (!isLinear(graph, node)) continue;
    const tensor = graph.initializers.get(node.inputs[1]!)!;
    weights.set(node.inputs[1]!, roundWeights(tensor, scaleAxis(node)));
    reports.push({
      name: node.name || node.outputs[0]!,
      method: "int8",
      sparsity: zeroShare(toFloat32(tensor)),
      relativeLoss: null,
    });
  }
  const quantized = quantizeGraph(removeDeadCode(graph), { nodes, activations, weights });
  return { graph: quantized, reports, refused: [] };
}

/** Everything that integer nodes read or make, but weights and biases. */
function activationNames(graph: Graph, members: readonly Node[]): string[] {
  const names = new Set<string>();
  for (const node of members) {
    const inputs = isLinear(graph, node) ? node.inputs.slice(0, 1) : node.inputs;
    for (const name of [...inputs, node.outputs[0]!]) if (name !== "") names.add(name);
  }
  return [...names];
}

async function measureRanges(
  dense: Graph,
  names: readonly string[],
  options: QuantizeOptions,
): Promise<Map<string, Range>> {
  const ranges = new Map<string, Range>();
  const widen = (name: string, low: number, high: number): void => {
    const [least, most] = ranges.get(name) ?? [low, high];
    ranges.set(name, [Math.min(least, low), Math.max(most, high)]);
  };
  const made: string[] = [];
  for (const name of names) {
    const constant = dense.initializers.get(name);
    if (constant === undefined) made.push(name);
    else if (constant.data instanceof Float32Array) {
      for (const value of constant.data) widen(name, value, value);
    }
  }
  const { graph, outputs } = appendRanges(dense, made);
  const session = await options.engine.open(graph);
  try {
    for (let batch = 0; batch < options.calibration.batches; batch++) {
      options.signal.throwIfAborted();
      const value = await options.calibration.read(batch);
      const results = await session.run({ [dense.inputs[0]!.name]: value });
      for (const [i, { minName, maxName }] of outputs.entries()) {
        widen(made[i]!, Number(results[minName]!.data[0]), Number(results[maxName]!.data[0]));
      }
      options.onProgress(batch + 1, options.calibration.batches);
    }
  } finally {
    await session.release();
  }
  return ranges;
}

/** The range with zero in it, so that padding and what is cut off at zero are exact. */
function encodeRange([least, most]: Range, scheme: "uint8" | "int8"): ActivationEncoding {
  const low = Math.min(0, least);
  const high = Math.max(0, most);
  if (scheme === "int8") {
    const size = Math.max(-low, high);
    return { type: "int8", scale: size > 0 ? size / 127 : 1, zeroPoint: 0 };
  }
  const scale = high > low ? (high - low) / 255 : 1;
  return { type: "uint8", scale, zeroPoint: Math.round(-low / scale) };
}

function scaleAxis(node: Node): number {
  if (node.opType === "Conv") return 0;
  return node.opType === "Gemm" && intAttribute(node, "transB", 0) !== 0 ? 0 : 1;
}

function roundWeights(tensor: Tensor, axis: number): WeightEncoding {
  const W = toFloat32(tensor);
  const rows = tensor.dims[axis]!;
  const inner = tensor.dims.slice(axis + 1).reduce((product, dim) => product * dim, 1);
  const rowOf = (at: number): number => Math.floor(at / inner) % rows;
  const largest = new Float64Array(rows);
  W.forEach((w, at) => {
    largest[rowOf(at)] = Math.max(largest[rowOf(at)]!, Math.abs(w));
  });
  const scales = Float32Array.from(largest, (size) => (size > 0 ? size / 127 : 1));
  const values = Int8Array.from(W, (w, at) => Math.round(w / scales[rowOf(at)]!));
  return { values, scales, axis };
}

function zeroShare(W: Float32Array): number {
  return W.reduce((count, w) => count + (w === 0 ? 1 : 0), 0) / Math.max(1, W.length);
}
