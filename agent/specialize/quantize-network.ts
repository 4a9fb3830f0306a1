import { splitHardSwish } from "../onnx/activations.ts";
import { removeDeadCode } from "../onnx/dead-code.ts";
import type { Graph } from "../onnx/graph.ts";
import { QDQ_OPSET, quantizeGraph } from "../onnx/qdq.ts";
import { absorbClipping, encodedValues, gateOffsets, integerNodes } from "../onnx/qdq-nodes.ts";
import { type EncodingType, encodeActivations } from "./activation-encodings.ts";
import {
  type CompressEnvironment,
  firstBatches,
  type LayerReport,
  type PassResult,
} from "./environment.ts";
import { equalizeNetwork } from "./equalize-network.ts";
import { chooseFloat } from "./float-fallback.ts";
import { integerWeightBits } from "./integer-bits.ts";
import { compareOutputs, outputsOf } from "./output-difference.ts";
import { type QuantizedWeights, quantizeWeights, roundAllWeights } from "./quantize-weights.ts";

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
   * go back to float. Default 0.05: a head that is fitted anew makes up for such errors.
   */
  readonly largestError?: number;
}

const LARGEST_ERROR = 0.05;

/**
 * Quantizes a network to 8-bit integers for weights and activations, written as standard ONNX
 * (QuantizeLinear and DequantizeLinear) that runtimes fuse into integer kernels.
 *
 * @param network normalized network from the picture to its features or logits; refused below opset 13.
 * @returns the quantized network; a report for each linear layer.
 */
export async function quantizeNetwork(
  network: Graph,
  options: QuantizeOptions,
): Promise<PassResult> {
  const dense = splitHardSwish(network);
  if (dense.opset < QDQ_OPSET) {
    const reason = `integers with a scale a channel need opset ${QDQ_OPSET}, and its nodes of opset ${dense.opset} cannot be raised`;
    return { graph: network, reports: [], refused: [{ name: dense.name, reason }] };
  }
  const scheme: Scheme = {
    type: options.scheme ?? "uint8",
    left: namedNodes(dense, options),
    weightBits: await integerWeightBits(options.engine),
  };
  const start = await betterEqualized(dense, scheme, options);
  const weights = await quantizeWeights(
    start,
    chosenNodes(start, scheme),
    scheme.weightBits,
    options,
  );
  const form = await prepareForms(weights, scheme, options);
  const choice = await chooseFloat(
    {
      dense,
      rounded: weights.graph,
      nodes: chosenNodes(dense, scheme),
      form,
      largestError: options.largestError ?? LARGEST_ERROR,
    },
    options,
  );
  return {
    graph: form(weights.graph, choice.left),
    reports: weights.reports.map((report) => inFloat(report, dense, choice.left)),
    refused: [],
  };
}

/** What holds for the whole network. */
interface Scheme {
  readonly type: EncodingType;
  /** Nodes that stay in float in any case, by first output. */
  readonly left: ReadonlySet<string>;
  /** See {@link integerWeightBits}. */
  readonly weightBits: number;
}

function namedNodes(dense: Graph, { float = [] }: QuantizeOptions): Set<string> {
  const named = new Set(float);
  const nodes = dense.nodes.filter(
    ({ name, outputs }) => named.has(name) || named.has(outputs[0]!),
  );
  return new Set(nodes.map(({ outputs }) => outputs[0]!));
}

/** Integers with a zero point saturate where a Relu cuts; symmetric ones do not. */
function saturates({ type }: Scheme): boolean {
  return type === "uint8";
}

function chosenNodes(graph: Graph, scheme: Scheme, float: ReadonlySet<string> = new Set()) {
  return integerNodes(graph, new Set([...scheme.left, ...float]), saturates(scheme));
}

/** The nodes on integers, in a graph whose Relus are part of them where integers saturate. */
function withIntegers(graph: Graph, scheme: Scheme, float?: ReadonlySet<string>) {
  const nodes = chosenNodes(graph, scheme, float);
  const own = saturates(scheme) ? absorbClipping(graph, nodes) : { graph, nodes };
  return { ...own, values: encodedValues(own.graph, own.nodes) };
}

/** How a rounded network, or a part of it, is written with some of its nodes in float. */
async function prepareForms(
  { graph: rounded, weights }: QuantizedWeights,
  scheme: Scheme,
  options: CompressEnvironment,
): Promise<(graph: Graph, float: ReadonlySet<string>) => Graph> {
  const { values, graph: integers, nodes: all } = withIntegers(rounded, scheme);
  const gates = gateOffsets(integers, all);
  const known = await encodeActivations(rounded, values, scheme.type, gates, options);
  return (graph, float) => {
    const own = withIntegers(graph, scheme, float);
    const activations = new Map(own.values.map((name) => [name, known.get(name)!] as const));
    const { nodes } = own;
    return quantizeGraph(removeDeadCode(own.graph), { nodes, activations, weights });
  };
}

/** Batches on which the plain and the equalized network are compared. */
const TRIAL_BATCHES = 2;

/** The equalized network where its simplest integer form is closer to the dense one. */
async function betterEqualized(
  dense: Graph,
  scheme: Scheme,
  options: CompressEnvironment,
): Promise<Graph> {
  const equalized = await equalizeNetwork(dense, options);
  if (equalized === dense) return dense;
  const { engine, signal } = options;
  const calibration = firstBatches(options.calibration, TRIAL_BATCHES);
  const wanted = await outputsOf(dense, calibration, engine, signal);
  const errorOf = async (graph: Graph): Promise<number> => {
    const few = { ...options, calibration };
    const rounded = roundAllWeights(graph, chosenNodes(graph, scheme), scheme.weightBits);
    const form = (await prepareForms(rounded, scheme, few))(rounded.graph, new Set());
    const { relativeError } = compareOutputs(
      wanted,
      await outputsOf(form, calibration, engine, signal),
    );
    return relativeError;
  };
  return (await errorOf(equalized)) < (await errorOf(dense)) ? equalized : dense;
}

function inFloat(report: LayerReport, dense: Graph, left: ReadonlySet<string>): LayerReport {
  const node = dense.nodes.find(({ name, outputs }) => (name || outputs[0]) === report.name);
  if (!node || !left.has(node.outputs[0]!)) return report;
  return { ...report, method: "float: integers cost more than they save", relativeLoss: null };
}
