import { node } from "./builder.ts";
import type { Graph, Node } from "./graph.ts";
import type { PrunableLayer } from "./prunable-layers.ts";
import { freeName } from "./query.ts";
import { DataType, int64Tensor, type Tensor } from "./tensor.ts";

/** Where the moments of one layer's output come out of a graph: float32 `[outFeatures]` each. */
export interface MomentOutputs {
  /** Σ y over pictures and positions. */
  readonly sumName: string;
  /** Σ y². */
  readonly squareName: string;
}

/**
 * Appends nodes that sum each layer's output, bias included, and its square over pictures and
 * positions: one value an output feature. Layers whose weight stands on the left of a MatMul have
 * their features on another axis and get null.
 */
export function appendOutputMoments(
  graph: Graph,
  layers: readonly PrunableLayer[],
): { readonly graph: Graph; readonly outputs: readonly (MomentOutputs | null)[] } {
  const nodes: Node[] = [];
  const constants = new Map<string, Tensor>();
  const outputs = layers.map((layer, index): MomentOutputs | null => {
    if (layer.weightSide === "left") return null;
    const base = freeName(graph, `taco_moments_${index}`);
    const shape = `${base}_shape`;
    // [N, C, h, w] → [N, C, h·w]; [N, …, C] → [1, N·…, C]: two reductions serve both.
    const conv = layer.opType === "Conv";
    const target = conv ? [0, layer.outFeatures, -1] : [1, -1, layer.outFeatures];
    constants.set(shape, int64Tensor([3], target));
    nodes.push(node("Reshape", [layer.biasedOutputName, shape], [`${base}_flat`]));
    nodes.push(node("Mul", [`${base}_flat`, `${base}_flat`], [`${base}_flat2`]));
    const axes = conv ? [0, 2] : [0, 1];
    const sum = (from: string, to: string): void => {
      if (graph.opset < 13) {
        nodes.push(node("ReduceSum", [from], [to], { axes, keepdims: 0 }));
        return;
      }
      constants.set(`${base}_axes`, int64Tensor([2], axes));
      nodes.push(node("ReduceSum", [from, `${base}_axes`], [to], { keepdims: 0 }));
    };
    sum(`${base}_flat`, `${base}_sum`);
    sum(`${base}_flat2`, `${base}_square`);
    return { sumName: `${base}_sum`, squareName: `${base}_square` };
  });
  const infos = outputs.flatMap((names, index) =>
    names
      ? [names.sumName, names.squareName].map((name) => ({
          name,
          dataType: DataType.FLOAT,
          dims: [layers[index]!.outFeatures],
        }))
      : [],
  );
  return {
    graph: {
      ...graph,
      nodes: [...graph.nodes, ...nodes],
      initializers: new Map([...graph.initializers, ...constants]),
      outputs: [...graph.outputs, ...infos],
    },
    outputs,
  };
}
