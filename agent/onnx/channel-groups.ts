import { type Graph, intAttribute } from "./graph.ts";
import { findPrunableLayers, type PrunableLayer } from "./prunable-layers.ts";
import { consumersOf, indexGraph } from "./query.ts";

/**
 * A constant that shrinks with a group: along `axis` of what node input `(node, input)` reads, the
 * places `indices[u]` belong to unit u. Named by its reader, because several nodes may read one
 * initializer of which only some readers shrink.
 */
export interface ChannelSlice {
  /** First output of the reading node, and the position among its inputs. */
  readonly node: string;
  readonly input: number;
  /** Name of the constant when the group was found. */
  readonly initializer: string;
  readonly axis: number;
  /** Size of the axis when the group was found. */
  readonly size: number;
  readonly indices: readonly (readonly number[])[];
}

/**
 * A size that follows: one number of a constant (target of a Reshape, sizes of a Split, bounds of
 * a Slice, pads) or of an attribute (`group`, `split`), less `less[u]` for each unit u taken away.
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

const UNARY = new Set(["Relu", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "Clip", "Erf"]);

/** Finds the groups of channels that can be removed together. */
export function findChannelGroups(graph: Graph): ChannelGroups {
  const layers = findPrunableLayers(graph);
  const groups = layers.flatMap((layer) => chainGroup(graph, layers, layer) ?? []);
  return { groups, refused: [] };
}

/** Layer → activations → layer: the simplest group there is. */
function chainGroup(
  graph: Graph,
  layers: readonly PrunableLayer[],
  layer: PrunableLayer,
): ChannelGroup | undefined {
  const index = indexGraph(graph);
  const byNode = new Map(layers.map((l) => [l.nodeIndex, l]));
  let value = layer.biasedOutputName;
  for (;;) {
    const [reader, ...others] = consumersOf(graph, index, value);
    if (reader === undefined || others.length > 0 || index.outputs.has(value)) return undefined;
    const next = byNode.get(graph.nodes.indexOf(reader));
    if (next) return pairOf(graph, layer, next);
    if (!UNARY.has(reader.opType)) return undefined;
    value = reader.outputs[0]!;
  }
}

function pairOf(graph: Graph, a: PrunableLayer, b: PrunableLayer): ChannelGroup | undefined {
  const node = graph.nodes[a.nodeIndex]!;
  const channels =
    b.opType === "Conv"
      ? b.inFeaturesPerGroup / (b.kernel[0]! * b.kernel[1]!)
      : b.inFeaturesPerGroup;
  if (intAttribute(node, "group", 1) !== 1 || b.groups !== 1 || channels !== a.outFeatures)
    return undefined;
  const each = Array.from({ length: channels }, (_, u) => [u]);
  const area = b.inFeaturesPerGroup / channels;
  const slices: ChannelSlice[] = [
    {
      node: a.outputName,
      input: 1,
      initializer: a.weightName,
      axis: a.weightOrder === "rows" ? 0 : 1,
      size: channels,
      indices: each,
    },
    {
      node: b.outputName,
      input: 1,
      initializer: b.weightName,
      axis: b.opType === "Conv" || b.weightOrder === "rows" ? 1 : 0,
      size: channels,
      indices: each,
    },
  ];
  if (a.biasName !== null) {
    const reader = a.biasNodeIndex === null ? node : graph.nodes[a.biasNodeIndex]!;
    slices.push({
      node: reader.outputs[0]!,
      input: reader.inputs.indexOf(a.biasName),
      initializer: a.biasName,
      axis: 0,
      size: channels,
      indices: each,
    });
  }
  return {
    id: a.name,
    kind: "internal",
    units: channels,
    slices,
    sizes: [],
    producers: [{ layer: a.name, rows: each }],
    consumers: [
      {
        layer: b.name,
        columns: each.map(([u]) => Array.from({ length: area }, (_, k) => u! * area + k)),
      },
    ],
  };
}
