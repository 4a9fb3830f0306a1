import { floatAttribute, type Graph, type Node } from "./graph.ts";
import { consumersOf, type GraphIndex, indexGraph } from "./query.ts";
import { isFloatType } from "./tensor.ts";

/** Nodes that multiply by constant weights: the ones for whose sake a network is quantized. */
export function isLinear(graph: Graph, node: Node): boolean {
  if (node.domain !== "") return false;
  const constant = (place: number): boolean => {
    const tensor = graph.initializers.get(node.inputs[place] ?? "");
    return tensor !== undefined && isFloatType(tensor.dataType);
  };
  const bias = !node.inputs[2] || constant(2);
  switch (node.opType) {
    case "Conv":
      return constant(1) && bias && !graph.initializers.has(node.inputs[0]!);
    case "Gemm":
      // Integer kernels know no other scalings, and a bias of one value a row only.
      return (
        constant(1) &&
        bias &&
        !graph.initializers.has(node.inputs[0]!) &&
        floatAttribute(node, "alpha", 1) === 1 &&
        floatAttribute(node, "beta", 1) === 1
      );
    case "MatMul":
      return (
        constant(1) &&
        !graph.initializers.has(node.inputs[0]!) &&
        graph.initializers.get(node.inputs[1]!)!.dims.length === 2
      );
    default:
      return false;
  }
}

/** Nodes that integer kernels exist for and that cost precision and time where left in float. */
const BETWEEN = new Set([
  "Add",
  "Mul",
  "Sigmoid",
  "GlobalAveragePool",
  "AveragePool",
  "MaxPool",
  "Concat",
  "Flatten",
  "Reshape",
  "Transpose",
]);

/**
 * The nodes of a graph that can compute on integers, by the name of their first output: linear
 * ones, and those between them whose every activation comes from or goes to an integer node.
 */
export function integerNodes(graph: Graph, left: ReadonlySet<string> = new Set()): Set<string> {
  const index = indexGraph(graph);
  const chosen = new Set<string>();
  for (const node of graph.nodes) {
    const name = node.outputs[0]!;
    if (isLinear(graph, node) && !left.has(name)) chosen.add(name);
  }
  for (let grown = true; grown; ) {
    grown = false;
    for (const node of graph.nodes) {
      const name = node.outputs[0]!;
      if (chosen.has(name) || left.has(name) || node.domain !== "") continue;
      if (!BETWEEN.has(node.opType) || !fed(graph, index, node, chosen)) continue;
      chosen.add(name);
      grown = true;
    }
  }
  return chosen;
}

/** Whether everything that changes and goes into a node is made by integer nodes. */
function fed(graph: Graph, index: GraphIndex, node: Node, chosen: ReadonlySet<string>): boolean {
  return node.inputs.every((name) => {
    if (name === "" || graph.initializers.has(name)) return true;
    const producer = index.producer.get(name);
    return producer !== undefined && chosen.has(graph.nodes[producer]!.outputs[0]!);
  });
}

/**
 * Lets the integers saturate in place of a Relu or Clip: removes it where it alone reads what an
 * integer node makes, and gives that node its output. Rounding to the range of the removed
 * node's output then cuts exactly as it did.
 *
 * @param nodes the integer nodes, by first output. @returns the graph, and the same nodes in it.
 */
export function absorbClipping(
  graph: Graph,
  nodes: ReadonlySet<string>,
): { readonly graph: Graph; readonly nodes: Set<string> } {
  const index = indexGraph(graph);
  const renamed = new Map<string, string>();
  const removed = new Set<string>();
  for (const node of graph.nodes) {
    const output = node.outputs[0]!;
    if (!nodes.has(output) || index.outputs.has(output)) continue;
    const [next, ...others] = consumersOf(graph, index, output);
    if (others.length > 0 || next === undefined || !clips(graph, next)) continue;
    renamed.set(output, next.outputs[0]!);
    removed.add(next.outputs[0]!);
  }
  const kept = graph.nodes.flatMap((node) => {
    const output = node.outputs[0]!;
    if (removed.has(output) && !renamed.has(output)) return [];
    const name = renamed.get(output);
    return [name === undefined ? node : { ...node, outputs: [name] }];
  });
  const names = [...nodes].map((name) => renamed.get(name) ?? name);
  return { graph: { ...graph, nodes: kept }, nodes: new Set(names) };
}

/** Relu, or Clip between constants (or none). */
function clips(graph: Graph, node: Node): boolean {
  if (node.domain !== "") return false;
  if (node.opType === "Relu") return true;
  if (node.opType !== "Clip") return false;
  return node.inputs.slice(1).every((name) => name === "" || graph.initializers.has(name));
}
