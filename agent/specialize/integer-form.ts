import { splitHardSwish } from "../onnx/activations.ts";
import type { Graph, Node } from "../onnx/graph.ts";
import { intAttribute } from "../onnx/graph.ts";
import { type ActivationEncoding, quantizeGraph, type WeightEncoding } from "../onnx/qdq.ts";
import {
  absorbClipping,
  encodedValues,
  gateOffsets,
  integerNodes,
  isLinear,
} from "../onnx/qdq-nodes.ts";

/** Any range takes the same time. */
const ENCODING: ActivationEncoding = { type: "uint8", scale: 0.05, zeroPoint: 128 };

/**
 * A network in the form of its 8-bit version, with weights and ranges that mean nothing: what is
 * to be timed needs no pictures.
 *
 * @throws {RangeError} as `quantizeGraph`.
 */
export function integerForm(graph: Graph): Graph {
  const split = splitHardSwish(graph);
  const { graph: absorbed, nodes } = absorbClipping(split, integerNodes(split));
  const values = encodedValues(absorbed, nodes);
  const activations = new Map(values.map((name) => [name, ENCODING] as const));
  for (const [name, offset] of gateOffsets(absorbed, nodes)) {
    activations.set(name, { type: "uint8", scale: offset / 100, zeroPoint: 100 });
  }
  const weights = new Map<string, WeightEncoding>();
  for (const node of absorbed.nodes) {
    if (!nodes.has(node.outputs[0]!) || !isLinear(absorbed, node)) continue;
    weights.set(node.inputs[1]!, anyWeights(absorbed, node));
  }
  return quantizeGraph(absorbed, { nodes, activations, weights });
}

function anyWeights(graph: Graph, node: Node): WeightEncoding {
  const tensor = graph.initializers.get(node.inputs[1]!)!;
  const first = node.opType === "Conv" || intAttribute(node, "transB", 0) !== 0;
  const axis = first ? 0 : 1;
  return {
    values: Int8Array.from({ length: tensor.data.length }, (_, i) => (i % 255) - 127),
    scales: new Float32Array(tensor.dims[axis]!).fill(0.01),
    axis,
  };
}
