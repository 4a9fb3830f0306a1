import { AgentError } from "../errors.ts";
import { type FixedMethod, formatPattern, parseMethod, type ZeroPattern } from "../method.ts";
import { findSwishes } from "../onnx/activations.ts";
import { type ChannelGroup, findChannelGroups } from "../onnx/channel-groups.ts";
import type { Graph } from "../onnx/graph.ts";
import { withInputSize } from "../onnx/input-size.ts";
import { findPrunableLayers } from "../onnx/prunable-layers.ts";
import { type CompressOptions, compressNetwork } from "./compress-network.ts";
import { type CompressionPlan, NO_CHANGE } from "./compression-plan.ts";
import { dropBlocks } from "./drop-blocks.ts";
import type { CompressEnvironment, LayerReport, PassResult, Refusal } from "./environment.ts";
import { type LayerPattern, reasonToLeave } from "./layer-patterns.ts";
import { narrowNetwork } from "./narrow-network.ts";
import { quantizeNetwork } from "./quantize-network.ts";
import { pruneTowardDense } from "./refit-network.ts";
import { simplifies, simplifyNetwork } from "./simplify-network.ts";
import { storeWeights } from "./weight-only.ts";

/** Height and width of a network's input in pixels; null: its own. */
export type InputSize = CompressionPlan["inputSize"];

/** What {@link applyPlan} works with. */
export interface PlanOptions {
  /** The environment, with the calibration pictures at a size. */
  readonly environmentAt: (size: InputSize) => Promise<CompressEnvironment>;
  /** For the pass that makes zeros: block size, and its checkpoints. */
  readonly zeros?: Pick<CompressOptions, "blockSize" | "resume" | "onSegment">;
}

/** Widths of channels are kept to a multiple of this, the lanes of vector units. */
const WIDTH_MULTIPLE = 8;

/**
 * Does all that a plan states to a network, in the one order in which each pass can mend what the
 * ones before did: picture size, simpler functions, blocks left out, widths, zeros, integers. Zeros and
 * weights of few bits are one pass, which makes no checkpoints.
 *
 * @param dense normalized network from the picture to its features or logits; the plan's names
 *   are those of its layers and groups.
 * @throws {AgentError} MODEL_INVALID where the network cannot take the plan's picture size.
 */
export async function applyPlan(
  dense: Graph,
  plan: CompressionPlan,
  options: PlanOptions,
): Promise<PassResult> {
  const environment = await options.environmentAt(plan.inputSize);
  const reports: LayerReport[] = [];
  const refused: Refusal[] = [];
  let graph = atInputSize(dense, plan.inputSize);
  const pass = (result: PassResult): void => {
    graph = result.graph;
    reports.push(...result.reports);
    refused.push(...result.refused);
  };
  const { droppedBlocks: blocks, activations, gates } = plan;
  if (simplifies(graph, plan)) {
    pass(await simplifyNetwork(graph, { ...environment, activations, gates }));
  }
  if (blocks.length > 0) pass(await dropBlocks(graph, { ...environment, blocks }));
  if (Object.keys(plan.widths).length > 0) {
    const include = ({ id }: ChannelGroup) => plan.widths[id] !== undefined;
    const keep = ({ id, units }: ChannelGroup) => plan.widths[id] ?? units;
    pass(await narrowNetwork(graph, { ...environment, include, keep }));
  }
  const patterns = patternsOf(plan);
  if (plan.weightBits !== null) {
    const block = options.zeros?.blockSize;
    const blockSize = block === undefined ? {} : { blockSize: block };
    // Zeros and codes come out of one pass: what one loses, the other still can make up for.
    const bits = plan.weightBits;
    pass(await storeWeights(graph, { ...environment, bits, patterns, ...blockSize }));
  } else if (patterns.size > 0) {
    pass(await pruneNetwork(graph, patterns, environment, options.zeros));
  }
  if (plan.int8) pass(await quantizeNetwork(graph, environment));
  return { graph, reports, refused };
}

/**
 * Zeros by pattern, with all layers fitted to what the network had before.
 *
 * @param patterns by name of the layer; layers not named are not pruned.
 * @param how its checkpoints are those of a plain pass, where one is made.
 */
export function pruneNetwork(
  graph: Graph,
  patterns: ReadonlyMap<string, ZeroPattern>,
  environment: CompressEnvironment,
  how: PlanOptions["zeros"] = {},
): Promise<PassResult> {
  const left: LayerPattern = { kind: "dense", reason: "the plan leaves it" };
  const { blockSize, ...checkpoints } = how;
  const size = blockSize === undefined ? {} : { blockSize };
  return pruneTowardDense(graph, {
    ...environment,
    ...size,
    patterns,
    plain: (some) =>
      compressNetwork(graph, {
        ...environment,
        ...size,
        ...(some === patterns ? checkpoints : {}),
        patternOf: ({ name }) => some.get(name) ?? left,
      }),
  });
}

/** The plan without its rounding: what can be trained before {@link roundNetwork} does the rest. */
export function inFloat(plan: CompressionPlan): CompressionPlan {
  return { ...plan, int8: false, weightBits: null };
}

/** Does what a plan states beyond {@link inFloat}, zeros kept, to a network made by that. */
export function roundNetwork(
  graph: Graph,
  { int8, weightBits }: Pick<CompressionPlan, "int8" | "weightBits">,
  environment: CompressEnvironment,
): Promise<PassResult> {
  if (weightBits !== null) return storeWeights(graph, { ...environment, bits: weightBits });
  if (int8) return quantizeNetwork(graph, environment);
  return Promise.resolve({ graph, reports: [], refused: [] });
}

/** @throws {AgentError} MODEL_INVALID where the network cannot take that size. */
export function atInputSize(graph: Graph, size: InputSize): Graph {
  if (size === null) return graph;
  const resized = withInputSize(graph, size.height, size.width);
  if (!("reason" in resized)) return resized;
  throw new AgentError(
    "MODEL_INVALID",
    `the network cannot take pictures of ${size.width} × ${size.height} pixels: ${resized.reason}`,
  );
}

/** The plan's patterns of zeros, by name of the layer. @throws {RangeError} where one is none. */
export function patternsOf({ sparsity }: CompressionPlan): Map<string, ZeroPattern> {
  return new Map(Object.entries(sparsity).map(([name, text]) => [name, patternOf(text)]));
}

/** @throws {RangeError} where the text is no pattern of zeros. */
export function patternOf(text: string): ZeroPattern {
  const method = parseMethod(text);
  if (method.kind === "fixed" && method.pattern !== null) return method.pattern;
  throw new RangeError(`expected a pattern of zeros such as unstructured:0.5, got "${text}"`);
}

/** What a method does to this network, layer by layer, and what it cannot do. */
export function planOf(
  method: FixedMethod,
  dense: Graph,
): { plan: CompressionPlan; refused: Refusal[] } {
  const { inputSize, gates, int8, weightBits, pattern } = method;
  // Integers would be held up at every swish, so they bring functions of their own.
  const held = int8 && method.activations === "keep" && findSwishes(dense).length > 0;
  const activations = held ? ("for-integers" as const) : method.activations;
  const refused: Refusal[] = [];
  const sparsity: Record<string, string> = {};
  if (pattern !== null) {
    for (const layer of findPrunableLayers(dense)) {
      const reason = reasonToLeave(dense, layer);
      if (reason === null) sparsity[layer.name] = formatPattern(pattern);
      else refused.push({ name: layer.name, reason: `no zeros: ${reason}` });
    }
  }
  const widths: Record<string, number> = {};
  if (method.structured > 0) {
    const found = findChannelGroups(dense);
    refused.push(...found.refused);
    for (const { id, kind, units } of found.groups) {
      if (kind !== "residual") widths[id] = widthOf((1 - method.structured) * units, units);
    }
  }
  const size = inputSize === null ? null : { height: inputSize, width: inputSize };
  const shared = { inputSize: size, activations, gates, int8, weightBits };
  return { plan: { ...NO_CHANGE, ...shared, widths, sparsity }, refused };
}

/** A number of units to keep near `wanted`: whole lanes where there are many, at least one. */
export function widthOf(wanted: number, units: number): number {
  const multiple = units >= 4 * WIDTH_MULTIPLE ? WIDTH_MULTIPLE : 1;
  return Math.min(units, Math.max(multiple, multiple * Math.round(wanted / multiple)));
}
