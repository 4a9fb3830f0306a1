import { type ChannelFlow, followChannels, type LabeledConstant } from "./channel-flow.ts";
import { type AxisLabels, fixedClasses, rootOf } from "./channel-labels.ts";
import type { Graph } from "./graph.ts";
import { findPrunableLayers, type PrunableLayer } from "./prunable-layers.ts";

/**
 * A constant that shrinks with a group: along `axis` of what node input `(node, input)` reads, the
 * places `indices[u]` belong to unit u. Named by its reader, because several nodes may read one
 * initializer of which only some readers shrink.
 */
interface ChannelSlice {
  /** First output of the reading node, and the position among its inputs. */
  readonly node: string;
  readonly input: number;
  /** Name of the constant when the group was found. */
  readonly initializer: string;
  readonly axis: number;
  /** When the group was found: size of the axis, rank, and how many inputs the node had. */
  readonly size: number;
  readonly rank: number;
  readonly inputs: number;
  readonly indices: readonly (readonly number[])[];
}

/**
 * A size that follows: one number of a constant (target of a Reshape, sizes of a Split, bounds of
 * a Slice, pads) or of an attribute (`group`, `split`), less `less[u]` for each unit u taken away.
 * A Split that states no sizes gets them.
 */
export interface ChannelSize {
  /** First output of the node that holds or reads the number. */
  readonly node: string;
  /** Position of the input that holds it, or name of the attribute. */
  readonly holder: number | string;
  /** All numbers of that list when the group was found; one number for a single attribute. */
  readonly values: readonly number[];
  /** Place within the list. */
  readonly at: number;
  readonly less: readonly number[];
}

/** Channels that can be taken away together, unit by unit; see {@link findChannelGroups}. */
export interface ChannelGroup {
  /** Name of the layer that makes the channels first. */
  readonly id: string;
  /**
   * `internal`: width inside a block, or hidden units of an FFN; `heads`: attention heads;
   * `residual`: a stream that passes through Adds, with everything that writes to it and reads it.
   */
  readonly kind: "internal" | "heads" | "residual";
  /** Channels or heads that can be taken away one by one. */
  readonly units: number;
  readonly slices: readonly ChannelSlice[];
  readonly sizes: readonly ChannelSize[];
  /** Layers that multiply these channels: `columns[u]` of W, as `readWeightMatrix` orders them. */
  readonly consumers: readonly {
    readonly layer: string;
    readonly columns: readonly (readonly number[])[];
  }[];
  /** Layers whose rows make them, depthwise convolutions on the way included: `rows[u]` of W. */
  readonly producers: readonly {
    readonly layer: string;
    readonly rows: readonly (readonly number[])[];
  }[];
}

/** What can be taken away, and what cannot and why. */
export interface ChannelGroups {
  /** In the order of the layers that make the channels. */
  readonly groups: readonly ChannelGroup[];
  /** `name`: layer that makes the channels; the reason names the node that stands in the way. */
  readonly refused: readonly { readonly name: string; readonly reason: string }[];
}

/**
 * Finds the channels that can be removed from a network, in groups of units that can go one by
 * one: the dependency graph of Fang et al. 2023 (DepGraph, arXiv:2301.12900), over single channels
 * instead of layers.
 *
 * Every channel of every axis gets a label. What is elementwise tied (the two sides of an Add, an
 * expansion and its depthwise convolution, a row and its bias) gets the same one; a Reshape into
 * attention heads gives all rows of a head of q, k and v one label. Labels that one layer makes
 * form a group, and so do all streams that an Add ties. Fixed, and so in no group, are channels
 * that
 *   - reach an output of the graph, or an operator that is not followed;
 *   - go through a LayerNorm, a Softmax or a mean over themselves: its statistics run over all of
 *     them, so without some it is another function of the others, whatever is refitted behind it.
 *     This keeps the residual stream of a transformer at its width;
 *   - are regrouped by a Reshape that makes no attention heads (a channel shuffle);
 *   - are counted by a size that is computed while the network runs: fold shapes first.
 *
 * @param graph normalized (`normalizeGraph`), its shapes folded (`foldShapes`) where it has some.
 */
export function findChannelGroups(graph: Graph): ChannelGroups {
  const flow = settledFlow(graph);
  const layers = labeledLayers(graph, flow);
  const fixed = fixedClasses(flow.labels);
  const groups: ChannelGroup[] = [];
  const refused: { name: string; reason: string }[] = [];
  const drafts = draftGroups(flow, layers);
  const unitOf = new Map<number, { draft: Draft; unit: number }>();
  for (const draft of drafts) {
    const free = draft.classes.filter((root) => !fixed.has(root));
    if (free.length > 1) {
      free.forEach((root, unit) => {
        unitOf.set(root, { draft, unit });
      });
      draft.units = free.length;
    } else {
      const reason = draft.classes.map((root) => fixed.get(root)).find((text) => text);
      refused.push({ name: draft.id, reason: reason ?? "there is only one of them" });
    }
  }
  const parts = partsByGroup(graph, flow, layers, unitOf);
  for (const draft of drafts) {
    const own = parts.get(draft);
    if (own) groups.push({ id: draft.id, kind: kindOf(flow, draft), units: draft.units, ...own });
  }
  return { groups, refused };
}

/** More ways than a Reshape has axes are not tried. */
const MOST_TRIES = 8;

/**
 * Follows the channels, and lets each Reshape that cuts channels try one way after the other until
 * none of them ends in something fixed and a product of two activations reads them as heads.
 */
function settledFlow(graph: Graph): ChannelFlow {
  const choices = new Map<string, number | null>();
  for (let tries = 0; ; tries++) {
    const flow = followChannels(graph, choices);
    const changed = tries < MOST_TRIES && nextChoices(flow, choices);
    if (!changed) return flow;
  }
}

/** Moves on every choice that did not work; false where all stay. */
function nextChoices(flow: ChannelFlow, choices: Map<string, number | null>): boolean {
  const fixed = fixedClasses(flow.labels);
  const heads = classesOf(flow, flow.batched);
  let changed = false;
  for (const { node, options, labels } of flow.splits) {
    const choice = choices.get(node) ?? 0;
    if (choices.get(node) === null) continue;
    const roots = [...labels].map((label) => rootOf(flow.labels, label));
    if (roots.every((root) => !fixed.has(root) && heads.has(root))) continue;
    choices.set(node, choice + 1 < options ? choice + 1 : null);
    changed = true;
  }
  return changed;
}

function classesOf({ labels }: ChannelFlow, axes: readonly Int32Array[]): Set<number> {
  return new Set(axes.flatMap((axis) => [...axis].map((label) => rootOf(labels, label))));
}

/** A layer and the labels of its weights. */
interface LabeledLayer {
  readonly layer: PrunableLayer;
  /** Rows and columns of W; columns by input channel, each for `area` columns. */
  readonly rows: AxisLabels;
  readonly columns: AxisLabels;
  readonly area: number;
}

function labeledLayers(graph: Graph, flow: ChannelFlow): LabeledLayer[] {
  const constants = new Map(flow.constants.map((c) => [`${c.node} ${c.input}`, c]));
  return findPrunableLayers(graph).flatMap((layer) => {
    const node = graph.nodes[layer.nodeIndex]!;
    const input = node.inputs.indexOf(layer.weightName);
    const axes = constants.get(`${node.outputs[0]!} ${input}`)?.axes;
    if (!axes) return [];
    const [first, second] = axes as [AxisLabels, AxisLabels];
    const [rows, columns] = layer.weightOrder === "rows" ? [first, second] : [second, first];
    return [{ layer, rows, columns, area: layer.kernel[0]! * layer.kernel[1]! }];
  });
}

/** A group before it is known which of its classes can go. */
interface Draft {
  readonly id: string;
  /** Roots, in the order of the rows that make them. */
  readonly classes: number[];
  units: number;
}

/** Classes that a common layer makes. Depthwise and grouped layers pass channels on, no more. */
function draftGroups(flow: ChannelFlow, layers: readonly LabeledLayer[]): Draft[] {
  const draftOf = new Map<number, Draft>();
  const drafts = new Set<Draft>();
  const makers = layers.filter(({ layer }) => layer.groups === 1);
  for (const { layer, rows } of [...makers, ...layers]) {
    if (rows === null) continue;
    const roots = [...new Set([...rows].map((label) => rootOf(flow.labels, label)))];
    const known = new Set(roots.flatMap((root) => draftOf.get(root) ?? []));
    if (layer.groups > 1 && known.size > 0) continue;
    const [draft = { id: layer.name, classes: [], units: 0 }, ...others] = known;
    drafts.add(draft);
    const added = [...others.flatMap(({ classes }) => classes), ...roots];
    for (const root of added) {
      if (draftOf.get(root) === draft) continue;
      draftOf.set(root, draft);
      draft.classes.push(root);
    }
    for (const other of others) drafts.delete(other);
  }
  return [...drafts];
}

function kindOf(flow: ChannelFlow, draft: Draft): ChannelGroup["kind"] {
  const has = (axes: readonly Int32Array[]) => {
    const classes = classesOf(flow, axes);
    return draft.classes.some((root) => classes.has(root));
  };
  if (has(flow.batched)) return "heads";
  return has(flow.sums) ? "residual" : "internal";
}

type Parts = Pick<ChannelGroup, "slices" | "sizes" | "consumers" | "producers">;
type MutableParts = { -readonly [K in keyof Parts]: Parts[K][number][] };
type UnitOf = ReadonlyMap<number, { draft: Draft; unit: number }>;

/** What belongs to each group, unit by unit. */
function partsByGroup(
  graph: Graph,
  flow: ChannelFlow,
  layers: readonly LabeledLayer[],
  unitOf: UnitOf,
): Map<Draft, MutableParts> {
  const parts = new Map<Draft, MutableParts>();
  const partsOf = (draft: Draft): MutableParts => {
    const own = parts.get(draft) ?? { slices: [], sizes: [], consumers: [], producers: [] };
    parts.set(draft, own);
    return own;
  };
  const places = (axis: AxisLabels) => placesByGroup(flow, unitOf, axis);
  const nodes = new Map(graph.nodes.map((node) => [node.outputs[0]!, node]));
  for (const constant of flow.constants) {
    const inputs = nodes.get(constant.node)!.inputs.length;
    constant.axes.forEach((labels, axis) => {
      for (const [draft, indices] of places(labels)) {
        partsOf(draft).slices.push(sliceOf(constant, axis, inputs, indices));
      }
    });
  }
  for (const { labels, sign, ...size } of flow.sizes) {
    for (const [draft, indices] of places(labels)) {
      partsOf(draft).sizes.push({ ...size, less: indices.map(({ length }) => sign * length) });
    }
  }
  for (const { layer, rows, columns, area } of layers) {
    for (const [draft, indices] of places(rows)) {
      partsOf(draft).producers.push({ layer: layer.name, rows: indices });
    }
    for (const [draft, indices] of places(columns)) {
      const wide = indices.map((own) => own.flatMap((channel) => range(channel * area, area)));
      partsOf(draft).consumers.push({ layer: layer.name, columns: wide });
    }
  }
  return parts;
}

function sliceOf(
  { node, input, initializer, axes }: LabeledConstant,
  axis: number,
  inputs: number,
  indices: readonly (readonly number[])[],
): ChannelSlice {
  const size = axes[axis]!.length;
  return { node, input, initializer, axis, size, rank: axes.length, inputs, indices };
}

/** Places of an axis, by group and unit. */
function placesByGroup(
  { labels }: ChannelFlow,
  unitOf: UnitOf,
  axis: AxisLabels,
): Map<Draft, number[][]> {
  const found = new Map<Draft, number[][]>();
  axis?.forEach((label, place) => {
    const owner = unitOf.get(rootOf(labels, label));
    if (!owner) return;
    const own = found.get(owner.draft) ?? Array.from({ length: owner.draft.units }, () => []);
    own[owner.unit]!.push(place);
    found.set(owner.draft, own);
  });
  return found;
}

function range(start: number, count: number): number[] {
  return Array.from({ length: count }, (_, i) => start + i);
}
