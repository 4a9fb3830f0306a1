import { node } from "./builder.ts";
import type { Graph, Node, ValueInfo } from "./graph.ts";
import { type SampleStart, sliceFrom } from "./layer-samples.ts";
import type { PrunableLayer } from "./prunable-layers.ts";
import { freeName } from "./query.ts";
import { DataType, int64Tensor, type Tensor } from "./tensor.ts";

/** Where the moments of one layer's output come out of a graph: float32 `[outFeatures]` each. */
export interface MomentOutputs {
  /** Σ y over pictures and positions. */
  readonly sumName: string;
  /** Σ y². */
  readonly squareName: string;
  /** Null where every position is taken. */
  readonly start: SampleStart | null;
}

/**
 * Appends nodes that sum each layer's output, bias included, and its square over pictures and
 * positions: one value an output feature. Layers whose weight stands on the left of a MatMul have
 * their features on another axis and get null.
 *
 * @param steps which positions, as for `appendSamples`, fed with the same starts; all by default.
 */
export function appendOutputMoments(
  graph: Graph,
  layers: readonly PrunableLayer[],
  steps: readonly number[] = layers.map(() => 1),
): { readonly graph: Graph; readonly outputs: readonly (MomentOutputs | null)[] } {
  const draft = { nodes: [] as Node[], constants: new Map<string, Tensor>(), inputs: [] };
  const infos: ValueInfo[] = [];
  const outputs = layers.map((layer, index): MomentOutputs | null => {
    if (layer.weightSide === "left") return null;
    const base = freeName(graph, `taco_moments_${index}`);
    const names = appendLayer(draft, graph.opset, layer, base, steps[index]!);
    for (const name of [names.sumName, names.squareName]) {
      infos.push({ name, dataType: DataType.FLOAT, dims: [layer.outFeatures] });
    }
    return names;
  });
  return {
    graph: {
      ...graph,
      nodes: [...graph.nodes, ...draft.nodes],
      initializers: new Map([...graph.initializers, ...draft.constants]),
      inputs: [...graph.inputs, ...draft.inputs],
      outputs: [...graph.outputs, ...infos],
    },
    outputs,
  };
}

function appendLayer(
  draft: { nodes: Node[]; constants: Map<string, Tensor>; inputs: ValueInfo[] },
  opset: number,
  layer: PrunableLayer,
  base: string,
  step: number,
): MomentOutputs {
  const { nodes, constants } = draft;
  const conv = layer.opType === "Conv";
  const axes = conv ? [2, 3] : [1];
  const start = step === 1 ? null : { name: `${base}_start`, step, strides: axes.map(() => 1) };
  const taken = (value: string): string =>
    start === null
      ? value
      : sliceFrom(
          draft,
          value,
          start,
          axes,
          axes.map(() => step),
          `${base}_taken`,
        );
  // [N, C, h, w] → [N, C, h·w]; [N, …, C] → [1, N·…, C]: two reductions serve both.
  const target = conv ? [0, layer.outFeatures, -1] : [1, -1, layer.outFeatures];
  constants.set(`${base}_shape`, int64Tensor([3], target));
  const from = conv ? taken(layer.biasedOutputName) : layer.biasedOutputName;
  nodes.push(node("Reshape", [from, `${base}_shape`], [`${base}_flat`]));
  const flat = conv ? `${base}_flat` : taken(`${base}_flat`);
  nodes.push(node("Mul", [flat, flat], [`${base}_flat2`]));
  const reduced = conv ? [0, 2] : [0, 1];
  const sum = (value: string, to: string): void => {
    if (opset < 13) {
      nodes.push(node("ReduceSum", [value], [to], { axes: reduced, keepdims: 0 }));
      return;
    }
    constants.set(`${base}_axes`, int64Tensor([2], reduced));
    nodes.push(node("ReduceSum", [value, `${base}_axes`], [to], { keepdims: 0 }));
  };
  sum(flat, `${base}_sum`);
  sum(`${base}_flat2`, `${base}_square`);
  return { sumName: `${base}_sum`, squareName: `${base}_square`, start };
}
