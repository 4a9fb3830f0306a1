import type { Graph, Node } from "./graph.ts";
import {
  findPrunableLayers,
  type PrunableLayer,
  readBias,
  readWeightMatrix,
  writeBias,
  writeWeightMatrix,
} from "./prunable-layers.ts";
import { consumersOf, type GraphIndex, indexGraph } from "./query.ts";

/** A convolution whose channels can be made smaller and larger again behind it. */
export interface ScalableChannels {
  /** Name of the layer that makes them. */
  readonly producer: string;
  readonly channels: number;
  /** Everything between, in order, the producer's output first: what gets another range. */
  readonly values: readonly string[];
  /** Names of the layers that take them in. */
  readonly consumers: readonly string[];
}

/** Operators that pass on a positive factor of a channel as it is. */
const HOMOGENEOUS = new Set(["Relu", "Identity", "MaxPool", "AveragePool", "GlobalAveragePool"]);

/**
 * Finds the channels between convolutions that positive factors pass through unchanged: from a
 * convolution through Relu, pooling and gates (Mul with what does not depend on them linearly) to
 * other convolutions, with no other reader on the way. A layer is the producer of one entry at
 * most, and all that read its channels are in the entry.
 */
export function findScalableChannels(graph: Graph): ScalableChannels[] {
  const index = indexGraph(graph);
  const layers = findPrunableLayers(graph).filter(
    ({ opType, sharedWith }) => opType === "Conv" && sharedWith.length === 0,
  );
  const byNode = new Map(layers.map((layer) => [graph.nodes[layer.nodeIndex]!, layer]));
  return layers.flatMap((layer): ScalableChannels[] => {
    const found = follow(graph, index, layer.outputName, byNode);
    if (!found || found.consumers.size === 0) return [];
    const { name: producer, outFeatures: channels } = layer;
    const consumers = [...found.consumers].map(({ name }) => name);
    return [{ producer, channels, values: [...found.values], consumers }];
  });
}

/** The values that carry a factor, and the layers at their ends; null where something else reads. */
function follow(
  graph: Graph,
  index: GraphIndex,
  start: string,
  layers: ReadonlyMap<Node, PrunableLayer>,
): { values: Set<string>; consumers: Set<PrunableLayer> } | null {
  const values = new Set([start]);
  const consumers = new Set<PrunableLayer>();
  const gates: Node[] = [];
  for (const value of values) {
    if (index.outputs.has(value)) return null;
    for (const node of consumersOf(graph, index, value)) {
      const layer = layers.get(node);
      if (layer) {
        if (layer.inputName !== value || !separates(layer)) return null;
        consumers.add(layer);
      } else if (node.domain === "" && HOMOGENEOUS.has(node.opType) && node.outputs.length === 1) {
        values.add(node.outputs[0]!);
      } else if (node.domain === "" && node.opType === "Mul") {
        gates.push(node);
        values.add(node.outputs[0]!);
      } else return null;
    }
  }
  // A product of two of them would carry the square of a factor.
  const squared = gates.some(({ inputs }) => inputs.every((name) => values.has(name)));
  return squared ? null : { values, consumers };
}

/** Whether each input channel has weights of its own that a factor can be put into. */
function separates({ groups, inFeaturesPerGroup, kernel }: PrunableLayer): boolean {
  const area = kernel.reduce((product, size) => product * size, 1);
  return groups === 1 || inFeaturesPerGroup === area;
}

/** Largest |w| that a layer multiplies each input channel by. */
export function channelRanges(graph: Graph, layer: PrunableLayer, channels: number): Float64Array {
  const W = readWeightMatrix(graph, layer);
  const largest = new Float64Array(channels);
  W.forEach((w, at) => {
    const channel = channelOf(layer, at);
    largest[channel] = Math.max(largest[channel]!, Math.abs(w));
  });
  return largest;
}

/** Input channel of the weight at a place of `rows × cols`. */
function channelOf({ groups, outFeatures, inFeaturesPerGroup, kernel }: PrunableLayer, at: number) {
  const area = kernel.reduce((product, size) => product * size, 1);
  const row = Math.floor(at / inFeaturesPerGroup);
  if (groups > 1) return Math.floor((row * groups) / outFeatures);
  return Math.floor((at % inFeaturesPerGroup) / area);
}

/**
 * Divides channels by positive factors where they are made and multiplies by them where they are
 * taken in: the network computes the same, but for rounding.
 *
 * @param factors one a channel.
 * @throws {RangeError} if the number of factors differs or one is not positive and finite.
 */
export function scaleChannels(
  graph: Graph,
  { producer, channels, consumers }: ScalableChannels,
  factors: Float64Array,
): Graph {
  if (factors.length !== channels || !factors.every((f) => f > 0 && Number.isFinite(f))) {
    throw new RangeError(`expected ${channels} positive factors, got [${factors.slice(0, 8)} …]`);
  }
  const layers = new Map(findPrunableLayers(graph).map((layer) => [layer.name, layer]));
  const made = layers.get(producer)!;
  const cols = made.inFeaturesPerGroup;
  const W = readWeightMatrix(graph, made).map((w, at) => w / factors[Math.floor(at / cols)]!);
  let result = writeWeightMatrix(graph, made, W);
  const bias = readBias(graph, made);
  if (bias)
    result = writeBias(
      result,
      made,
      bias.map((b, c) => b / factors[c]!),
    );
  for (const name of consumers) {
    const layer = layers.get(name)!;
    const own = readWeightMatrix(result, layer).map((w, at) => w * factors[channelOf(layer, at)]!);
    result = writeWeightMatrix(result, layer, own);
  }
  return result;
}
