import { node } from "./builder.ts";
import type { Graph, Node, ValueInfo } from "./graph.ts";
import { freeName } from "./query.ts";
import { DataType } from "./tensor.ts";

/** Where the smallest and the largest element of a value come out of a graph: float32 scalars. */
export interface RangeOutputs {
  readonly minName: string;
  readonly maxName: string;
}

/** Appends nodes that find the smallest and the largest element of each value, one pair a name. */
export function appendRanges(
  graph: Graph,
  names: readonly string[],
): { readonly graph: Graph; readonly outputs: readonly RangeOutputs[] } {
  const nodes: Node[] = [];
  const infos: ValueInfo[] = [];
  const outputs = names.map((name, index): RangeOutputs => {
    const minName = freeName(graph, `taco_min_${index}`);
    const maxName = freeName(graph, `taco_max_${index}`);
    nodes.push(node("ReduceMin", [name], [minName], { keepdims: 0 }));
    nodes.push(node("ReduceMax", [name], [maxName], { keepdims: 0 }));
    for (const output of [minName, maxName]) {
      infos.push({ name: output, dataType: DataType.FLOAT, dims: [] });
    }
    return { minName, maxName };
  });
  return {
    graph: {
      ...graph,
      nodes: [...graph.nodes, ...nodes],
      outputs: [...graph.outputs, ...infos],
    },
    outputs,
  };
}
