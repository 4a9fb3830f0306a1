import type { ChannelGroup } from "../onnx/channel-groups.ts";
import type { Graph } from "../onnx/graph.ts";
import {
  findPrunableLayers,
  type PrunableLayer,
  readWeightMatrix,
} from "../onnx/prunable-layers.ts";
import type { CompressEnvironment, LayerReport, PassResult } from "./environment.ts";
import {
  type GroupTables,
  keptUnits,
  type LayerPlaces,
  measureGroups,
  placesOf,
  stitch,
} from "./group-tables.ts";
import { refitNetwork } from "./refit-network.ts";

/** How {@link narrowNetwork} works. */
export interface NarrowOptions extends CompressEnvironment {
  /**
   * Units to keep of a group, 1 to `units`.
   *
   * @param losses relative loss after k units are gone; see `GroupTable.losses`.
   */
  readonly keep: (group: ChannelGroup, losses: Float64Array) => number;
  /** Which groups to measure and ask about; all by default. */
  readonly include?: (group: ChannelGroup) => boolean;
  /** Tables of this very network, where they are at hand; else they are measured. */
  readonly tables?: GroupTables;
  /**
   * `narrowed`, the default: layers that lost inputs; `behind`: also every layer behind one, to
   * make up for what cannot be made up for inside a block.
   */
  readonly refit?: "narrowed" | "behind";
  /** See `RefitOptions.stream`; default true. */
  readonly stream?: boolean;
  /** See `RefitOptions.correct`; default false. */
  readonly correct?: boolean;
}

/**
 * Makes a network narrower: takes channels, hidden units and heads away in the order that costs
 * least ({@link measureGroups}), and fits what is left to the dense network, layer after layer on
 * the inputs of the narrowed one ({@link refitNetwork}).
 *
 * @param dense normalized network from the picture to its features or logits.
 */
export async function narrowNetwork(dense: Graph, options: NarrowOptions): Promise<PassResult> {
  const tables = options.tables ?? (await measureGroups(dense, options, options.include));
  try {
    const keep = new Map(
      tables.groups.map(({ group, losses }) => [group.id, options.keep(group, losses)]),
    );
    const places = placesOf(dense, tables, keptUnits(tables, keep));
    const stitched = await stitch(dense, tables, keep);
    const { graph, losses } = await refitNetwork(dense, stitched, {
      ...options,
      places,
      stream: options.stream ?? true,
      correct: options.correct ?? false,
      include: chooseLayers(dense, places, options.refit ?? "narrowed"),
    });
    const reports = reportsOf(dense, graph, places, losses);
    return { graph, reports, refused: tables.refused };
  } finally {
    if (options.tables === undefined) await tables.dispose();
  }
}

function chooseLayers(
  dense: Graph,
  places: ReadonlyMap<string, LayerPlaces>,
  refit: "narrowed" | "behind",
): (layer: PrunableLayer) => boolean {
  const narrowed = (name: string): boolean => (places.get(name)?.columns ?? null) !== null;
  if (refit === "narrowed") return ({ name }) => narrowed(name);
  const layers = findPrunableLayers(dense);
  const first = layers.findIndex(({ name }) => narrowed(name));
  const behind = new Set(layers.slice(first).map(({ name }) => name));
  // A depthwise filter sees one channel: there is nothing to make up for with.
  return (layer) => behind.has(layer.name) && (layer.groups === 1 || narrowed(layer.name));
}

function reportsOf(
  dense: Graph,
  graph: Graph,
  places: ReadonlyMap<string, LayerPlaces>,
  losses: ReadonlyMap<string, number>,
): LayerReport[] {
  const after = new Map(findPrunableLayers(graph).map((layer) => [layer.name, layer]));
  return findPrunableLayers(dense).flatMap((layer): LayerReport[] => {
    const place = places.get(layer.name);
    const own = after.get(layer.name);
    const loss = losses.get(layer.name);
    if (!own || (!place && loss === undefined)) return [];
    const area = layer.kernel.reduce((product, size) => product * size, 1);
    const method = place?.columns
      ? `structured ${layer.inFeaturesPerGroup / area} → ${own.inFeaturesPerGroup / area}`
      : place?.rows
        ? `structured ${layer.outFeatures} → ${own.outFeatures}`
        : "refitted";
    const weights = readWeightMatrix(graph, own);
    const zeros = weights.reduce((count, w) => count + (w === 0 ? 1 : 0), 0);
    const { name } = layer;
    return [{ name, method, sparsity: zeros / weights.length, relativeLoss: loss ?? null }];
  });
}
