import type { Graph } from "./graph.ts";
import { isFloatType, type Tensor, toFloat32 } from "./tensor.ts";

/**
 * The graph with another constant under an existing name.
 *
 * @throws {RangeError} if the graph has no initializer of that name.
 */
export function replaceInitializer(graph: Graph, name: string, tensor: Tensor): Graph {
  if (!graph.initializers.has(name)) throw new RangeError(`the graph has no initializer "${name}"`);
  return { ...graph, initializers: new Map(graph.initializers).set(name, tensor) };
}

/** How many weights a graph has; see {@link countParameters}. */
export interface ParameterCount {
  readonly parameters: number;
  /** Those that are not zero. */
  readonly nonzero: number;
}

/**
 * Counts floating-point values of initializers and `Constant` nodes, each tensor once however
 * many nodes read it. Scalars of rank 0 are not counted: exporters write every √2 and ε so.
 */
export function countParameters(graph: Graph): ParameterCount {
  let parameters = 0;
  let nonzero = 0;
  for (const tensor of floatConstants(graph)) {
    if (tensor.dims.length === 0) continue;
    parameters += tensor.data.length;
    for (const value of toFloat32(tensor)) if (value !== 0) nonzero++;
  }
  return { parameters, nonzero };
}

function* floatConstants(graph: Graph): Generator<Tensor> {
  for (const tensor of graph.initializers.values()) if (isFloatType(tensor.dataType)) yield tensor;
  for (const node of graph.nodes) {
    if (node.opType !== "Constant") continue;
    const value = node.attributes.get("value");
    if (value?.type === "tensor" && isFloatType(value.value.dataType)) yield value.value;
  }
}
