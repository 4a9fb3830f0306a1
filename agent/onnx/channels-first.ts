import { node } from "./builder.ts";
import type { Graph } from "./graph.ts";
import { freeName } from "./query.ts";
import { DataType } from "./tensor.ts";

/**
 * Lets a graph that takes pictures channels last, `[N, height, width, 3]`, take them channels
 * first: a Transpose in front of it, under an input of the same name. Runtimes cancel it against
 * the Transpose that converters of channels-last frameworks begin with.
 *
 * @throws {RangeError} if the graph has not exactly one input.
 */
export function withChannelsFirst(
  graph: Graph,
  size: { readonly height: number; readonly width: number },
): Graph {
  const [input, ...others] = graph.inputs;
  if (input === undefined || others.length > 0) {
    throw new RangeError(`expected one input, got ${graph.inputs.length}`);
  }
  const inner = freeName(graph, `${input.name}_channels_last`);
  const turn = node("Transpose", [input.name], [inner], { perm: [0, 2, 3, 1] });
  const nodes = graph.nodes.map((n) => ({
    ...n,
    inputs: n.inputs.map((name) => (name === input.name ? inner : name)),
  }));
  const batch = input.dims?.[0] ?? "N";
  return {
    ...graph,
    nodes: [turn, ...nodes],
    inputs: [
      { name: input.name, dataType: DataType.FLOAT, dims: [batch, 3, size.height, size.width] },
    ],
    valueInfos: new Map([...graph.valueInfos].filter(([name]) => name !== input.name)),
  };
}
