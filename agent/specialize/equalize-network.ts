import { equalizationFactors } from "../compress/equalization.ts";
import type { Graph } from "../onnx/graph.ts";
import { findPrunableLayers } from "../onnx/prunable-layers.ts";
import {
  channelRanges,
  findScalableChannels,
  type ScalableChannels,
  scaleChannels,
} from "../onnx/qdq-equalize.ts";
import { withChannelRanges } from "../onnx/qdq-ranges.ts";
import { floats, pictureBorder, sweep } from "./border.ts";
import { type CompressEnvironment, firstBatches } from "./environment.ts";

/** Batches that the ranges of channels are taken from. */
const BATCHES = 8;

/**
 * Makes the channels between convolutions alike in range (cross-layer equalization, Nagel et al.
 * 2019, arXiv:1906.04721, on the ranges that activations have on calibration pictures): where a
 * tensor has one scale, a small channel beside a large one has few integers left. In float the
 * network stays the same.
 *
 * @returns the network itself where no channels can be scaled.
 */
export async function equalizeNetwork(graph: Graph, options: CompressEnvironment): Promise<Graph> {
  const found = findScalableChannels(graph);
  if (found.length === 0) return graph;
  const produced = await producedRanges(graph, found, options);
  let result = graph;
  for (const [i, channels] of found.entries()) {
    const layers = findPrunableLayers(result);
    const consumed = new Float64Array(channels.channels);
    for (const name of channels.consumers) {
      const layer = layers.find((own) => own.name === name)!;
      channelRanges(result, layer, channels.channels).forEach((range, c) => {
        consumed[c] = Math.max(consumed[c]!, range);
      });
    }
    result = scaleChannels(result, channels, equalizationFactors(produced[i]!, consumed));
  }
  return result;
}

/** Largest size of each channel, behind the Relu where there is one. */
async function producedRanges(
  graph: Graph,
  found: readonly ScalableChannels[],
  options: CompressEnvironment,
): Promise<Float64Array[]> {
  const values = found.map(({ values: all }) => {
    const relu = graph.nodes.find(
      ({ opType, inputs }) => opType === "Relu" && inputs[0] === all[0],
    );
    return relu?.outputs[0] ?? all[0]!;
  });
  const { graph: tapped, outputs } = withChannelRanges(graph, values);
  const ranges = found.map(({ channels }) => new Float64Array(channels));
  const calibration = firstBatches(options.calibration, BATCHES);
  await sweep(tapped, pictureBorder(graph), { ...options, calibration }, (_, results) => {
    for (const [i, name] of outputs.entries()) {
      floats(results, name).data.forEach((range, c) => {
        ranges[i]![c] = Math.max(ranges[i]![c]!, range);
      });
    }
  });
  return ranges;
}
