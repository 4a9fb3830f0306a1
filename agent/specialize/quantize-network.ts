import { removeDeadCode } from "../onnx/dead-code.ts";
import type { Graph } from "../onnx/graph.ts";
import { QDQ_OPSET, quantizeGraph } from "../onnx/qdq.ts";
import { absorbClipping, encodedValues, integerNodes } from "../onnx/qdq-nodes.ts";
import { type EncodingType, encodeActivations } from "./activation-encodings.ts";
import type { CompressEnvironment, LayerReport, PassResult } from "./environment.ts";
import { chooseFloat } from "./float-fallback.ts";
import { quantizeWeights } from "./quantize-weights.ts";

/** How {@link quantizeNetwork} works. */
export interface QuantizeOptions extends CompressEnvironment {
  /**
   * How activations are stored. `uint8` with a zero point is the most exact and what CPUs run
   * fastest (the default); `int8` with zero point 0 is what TensorRT takes.
   */
  readonly scheme?: EncodingType;
  /** Nodes that stay in float, by name or by first output. */
  readonly float?: readonly string[];
  /**
   * ‖ŷ − y‖² / ‖y‖² of the outputs on calibration pictures from which on stretches of the network
   * go back to float. Default 0.02.
   */
  readonly largestError?: number;
}

const LARGEST_ERROR = 0.02;

/**
 * Quantizes a network to 8-bit integers for weights and activations, written as standard ONNX
 * (QuantizeLinear and DequantizeLinear) that runtimes fuse into integer kernels.
 *
 * @param dense normalized network from the picture to its features or logits; refused below opset 13.
 * @returns the quantized network; a report for each linear layer.
 */
export async function quantizeNetwork(dense: Graph, options: QuantizeOptions): Promise<PassResult> {
  const { scheme = "uint8" } = options;
  if (dense.opset < QDQ_OPSET) {
    const reason = `integers with a scale a channel need opset ${QDQ_OPSET}, and its nodes of opset ${dense.opset} cannot be raised`;
    return { graph: dense, reports: [], refused: [{ name: dense.name, reason }] };
  }
  const named = new Set(options.float ?? []);
  const left = new Set(
    dense.nodes
      .filter(({ name, outputs }) => named.has(name) || named.has(outputs[0]!))
      .map(({ outputs }) => outputs[0]!),
  );
  // Integers with a zero point saturate where a Relu cuts; symmetric ones do not.
  const saturating = scheme === "uint8";
  const chosen = integerNodes(dense, left, saturating);
  const rounded = await quantizeWeights(dense, chosen, options);
  const { weights } = rounded;
  const plan = (graph: Graph, nodes: ReadonlySet<string>) =>
    saturating ? absorbClipping(graph, nodes) : { graph, nodes };
  const whole = plan(rounded.graph, chosen);
  const values = encodedValues(whole.graph, whole.nodes);
  const activations = await encodeActivations(rounded.graph, values, scheme, options);
  const form = (graph: Graph, float: ReadonlySet<string>): Graph => {
    const own = plan(graph, integerNodes(graph, new Set([...left, ...float]), saturating));
    const encoded = encodedValues(own.graph, own.nodes);
    const used = new Map(encoded.map((name) => [name, activations.get(name)!] as const));
    return quantizeGraph(removeDeadCode(own.graph), {
      nodes: own.nodes,
      activations: used,
      weights,
    });
  };
  const { largestError = LARGEST_ERROR } = options;
  const problem = { dense, rounded: rounded.graph, nodes: chosen, form, largestError };
  const choice = await chooseFloat(problem, options);
  return {
    graph: form(rounded.graph, choice.left),
    reports: rounded.reports.map((r) => inFloat(r, dense, choice.left)),
    refused: [],
  };
}

function inFloat(report: LayerReport, dense: Graph, left: ReadonlySet<string>): LayerReport {
  const node = dense.nodes.find(({ name, outputs }) => (name || outputs[0]) === report.name);
  if (!node || !left.has(node.outputs[0]!)) return report;
  return { ...report, method: "float: integers cost more than they save", relativeLoss: null };
}
