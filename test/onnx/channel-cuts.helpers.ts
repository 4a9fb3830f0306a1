import assert from "node:assert/strict";
import { type ChannelGroup, findChannelGroups } from "../../agent/onnx/channel-groups.ts";
import type { Graph } from "../../agent/onnx/graph.ts";
import { keepUnits } from "../../agent/onnx/keep-units.ts";
import {
  findPrunableLayers,
  readWeightMatrix,
  writeWeightMatrix,
} from "../../agent/onnx/prunable-layers.ts";
import {
  batchDims,
  largestDifference,
  randomInput,
  randomValues,
  runGraph,
} from "./run-graph.helpers.ts";

/** About a share of a group's units to keep, at least one, the same for the same seed. */
export function someUnits(group: ChannelGroup, share: number, seed: number): number[] {
  const order = Array.from(randomValues(group.units, seed)).map((value, u) => ({ value, u }));
  order.sort((a, b) => a.value - b.value);
  const count = Math.max(1, Math.round(share * group.units));
  return order
    .slice(0, count)
    .map(({ u }) => u)
    .sort((a, b) => a - b);
}

/** What a group takes from the network without some units, said by its consumers alone. */
export function withMaskedConsumers(
  graph: Graph,
  group: ChannelGroup,
  keep: readonly number[],
): Graph {
  const layers = new Map(findPrunableLayers(graph).map((layer) => [layer.name, layer]));
  const gone = Array.from({ length: group.units }, (_, u) => u).filter((u) => !keep.includes(u));
  let masked = graph;
  for (const { layer: name, columns } of group.consumers) {
    const layer = layers.get(name)!;
    const W = readWeightMatrix(masked, layer);
    const cols = layer.inFeaturesPerGroup;
    for (const u of gone) {
      for (const column of columns[u]!) {
        for (let row = 0; row < layer.outFeatures; row++) W[row * cols + column] = 0;
      }
    }
    masked = writeWeightMatrix(masked, layer, W);
  }
  return masked;
}

/** Largest difference of the outputs of two graphs, as a share of the largest value. */
export async function outputDifference(a: Graph, b: Graph, batch: number): Promise<number> {
  const feeds = { [a.inputs[0]!.name]: randomInput(batchDims(a, batch), 7 + batch) };
  const [first, second] = [await runGraph(a, feeds), await runGraph(b, feeds)];
  let worst = 0;
  for (const [name, { data, dims }] of Object.entries(first)) {
    const other = second[name]!;
    assert.deepEqual(other.dims, dims);
    const scale = largestDifference(data, new Float32Array(data.length));
    assert.ok(scale > 0 && Number.isFinite(scale), `${name} says nothing: ${scale}`);
    worst = Math.max(worst, largestDifference(data, other.data) / scale);
  }
  return worst;
}

/**
 * Cuts some units of every group, one group after the other, and checks against the original
 * with the columns of those units set to zero: the cut graph does the same, and cutting what is
 * masked changes nothing.
 *
 * @returns the cut graph.
 */
export async function assertCutEqualsMask(
  graph: Graph,
  groups: readonly ChannelGroup[],
  options: {
    share?: number;
    seed?: number;
    batches?: readonly number[];
    sameStructure?: boolean;
  } = {},
): Promise<Graph> {
  const { share = 0.6, seed = 1, batches = [1, 3], sameStructure = true } = options;
  let cut = graph;
  let masked = graph;
  groups.forEach((group, i) => {
    const keep = someUnits(group, share, seed + i);
    cut = keepUnits(cut, group, keep);
    masked = withMaskedConsumers(masked, group, keep);
  });
  let cutMasked = masked;
  groups.forEach((group, i) => {
    cutMasked = keepUnits(cutMasked, group, someUnits(group, share, seed + i));
  });
  // The two cut graphs have the same shapes: one batch size for each checks both sizes.
  assert.ok((await outputDifference(masked, cut, batches.at(-1)!)) < 1e-4);
  assert.ok((await outputDifference(masked, cutMasked, batches[0]!)) < 1e-4);
  // A group of a grouped convolution, or a part of a Slice, of which one is left is another
  // structure, with other units.
  if (!sameStructure) return cut;
  const sizes = new Map(findChannelGroups(cut).groups.map(({ id, units }) => [id, units]));
  groups.forEach((group, i) => {
    const kept = someUnits(group, share, seed + i).length;
    // A group of one unit is none any more.
    assert.equal(sizes.get(group.id) ?? 1, kept);
  });
  return cut;
}
