import type { Graph } from "../graph.ts";
import { DataType } from "../tensor.ts";

/** Inputs of each operator that a network learns; `all` where it may be any of them. */
const LEARNED: Readonly<Record<string, readonly number[] | "all">> = {
  Conv: [1, 2],
  Gemm: "all",
  MatMul: "all",
  LayerNormalization: [1, 2],
  BatchNormalization: [1, 2],
  PRelu: [1],
  Add: "all",
  Sub: "all",
  Mul: "all",
  Div: "all",
  Concat: "all",
  Expand: [0],
};

/**
 * Initializers that training may change: float32 weights, biases, scales, embeddings and tokens of
 * a normalized graph. Single numbers are left out: they belong to a formula (GELU, hard-swish), not
 * to what was learned.
 *
 * @returns names, in the order in which the graph reads them.
 */
export function findTrainable(graph: Graph): string[] {
  const names = new Set<string>();
  for (const { opType, domain, inputs } of graph.nodes) {
    const learned = domain === "" ? LEARNED[opType] : undefined;
    if (learned === undefined) continue;
    inputs.forEach((name, i) => {
      const tensor = graph.initializers.get(name);
      if (tensor?.dataType !== DataType.FLOAT || tensor.data.length <= 1) return;
      if (learned === "all" || learned.includes(i)) names.add(name);
    });
  }
  return [...names];
}
