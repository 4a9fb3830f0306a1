import { findBorders } from "../onnx/borders.ts";
import type { Graph } from "../onnx/graph.ts";
import { findPrunableLayers, type PrunableLayer } from "../onnx/prunable-layers.ts";
import { readsOf } from "../onnx/query.ts";

/** A stretch of the network between two values that everything passes through. */
export interface Segment {
  readonly inputName: string;
  readonly outputName: string;
  /**
   * Its layers in waves: those of one wave do not depend on each other, so their statistics come
   * from one pass; every wave sees the ones before it compressed.
   */
  readonly waves: readonly (readonly PrunableLayer[])[];
}

/** A border that is this much larger than the last cut is no good place to keep activations. */
const LARGEST_GROWTH = 2;
/**
 * Where the work is known, a border is worth keeping from so many multiplications for each of its
 * values on: below it, copying the values costs more than computing them a second time.
 */
const WORK_A_VALUE = 200;

/**
 * Cuts a network at its borders into segments with at least one layer to prune, so that the
 * statistics of a layer need the network from the last cut only and not from the picture.
 *
 * @param layers the layers to prune, of this very graph.
 * @param sizeOf values of one picture at each border, the graph's input included.
 * @param positions output positions of one picture, for every layer of the graph, be it pruned or
 *   not; without it, every layer starts a wave and borders are judged by their size alone.
 */
export function cutSegments(
  graph: Graph,
  layers: readonly PrunableLayer[],
  sizeOf: ReadonlyMap<string, number>,
  positions?: (layer: PrunableLayer) => number,
): Segment[] {
  const position = new Map<string, number>();
  graph.nodes.forEach((node, index) => {
    for (const name of node.outputs) position.set(name, index);
  });
  const workOf = positions && workBetween(graph, positions);
  const segments: Segment[] = [];
  const input = graph.inputs[0]!.name;
  let from = { name: input, position: -1 };
  const borders = [...findBorders(graph), graph.outputs[0]!.name];
  for (const name of borders) {
    const end = position.get(name) ?? graph.nodes.length;
    const inside = layers.filter((l) => l.nodeIndex > from.position && l.nodeIndex <= end);
    const last = name === borders.at(-1);
    const size = sizeOf.get(name) ?? 0;
    const worth = workOf
      ? workOf(from.position, end) >= WORK_A_VALUE * size
      : size <= LARGEST_GROWTH * (sizeOf.get(from.name) ?? 1);
    if (!last && (inside.length === 0 || !worth || splitsBias(inside, end))) continue;
    const waves = inside.length > 0 ? wavesOf(graph, inside, positions ?? (() => 1)) : [];
    segments.push({ inputName: from.name, outputName: name, waves });
    from = { name, position: end };
  }
  return segments;
}

/** Joins neighboring segments as long as the second moments of their layers fit into memory. */
export function joinSegments(segments: readonly Segment[], doubles: number): Segment[] {
  const joined: Segment[] = [];
  let used = 0;
  for (const segment of segments) {
    const own = segment.waves
      .flat()
      .reduce((sum, l) => sum + l.groups * l.inFeaturesPerGroup ** 2, 0);
    const last = joined.at(-1);
    if (last && used + own <= doubles) {
      used += own;
      const { inputName } = last;
      const waves = [...last.waves, ...segment.waves];
      joined[joined.length - 1] = { inputName, outputName: segment.outputName, waves };
    } else {
      used = own;
      joined.push(segment);
    }
  }
  return joined;
}

/** Multiplications for one picture between two nodes of a graph, those of its layers. */
function workBetween(graph: Graph, positions: (layer: PrunableLayer) => number) {
  const all = findPrunableLayers(graph).map((layer) => ({
    at: layer.nodeIndex,
    work: layer.outFeatures * layer.inFeaturesPerGroup * positions(layer),
  }));
  return (after: number, upTo: number): number =>
    all.reduce((sum, { at, work }) => sum + (at > after && at <= upTo ? work : 0), 0);
}

/** A cut between a product and the Add of its bias would part what is corrected together. */
function splitsBias(layers: readonly PrunableLayer[], end: number): boolean {
  return layers.some((layer) => (layer.biasNodeIndex ?? -1) > end);
}

/**
 * A layer that sees a picture only as a whole, such as the gate of a squeeze-excite block, makes
 * no wave of its own among layers that see many positions: what it does to those behind it is put
 * right by its own correction, and a wave costs a run over all pictures.
 */
const FEW_POSITIONS = 16;

function wavesOf(
  graph: Graph,
  layers: readonly PrunableLayer[],
  positions: (layer: PrunableLayer) => number,
): PrunableLayer[][] {
  const most = Math.max(...layers.map(positions));
  const gates = new Set(layers.filter((layer) => positions(layer) * FEW_POSITIONS <= most));
  const byNode = new Map(layers.map((layer) => [layer.nodeIndex, layer]));
  const depthOf = new Map<string, number>();
  const waves: PrunableLayer[][] = [];
  graph.nodes.forEach((node, index) => {
    const depth = Math.max(0, ...readsOf(node).map((name) => depthOf.get(name) ?? 0));
    const layer = byNode.get(index);
    if (layer) {
      waves[depth] ??= [];
      waves[depth].push(layer);
    }
    const after = layer && !gates.has(layer) ? depth + 1 : depth;
    for (const name of node.outputs) depthOf.set(name, after);
  });
  return waves.filter((wave) => wave !== undefined);
}
