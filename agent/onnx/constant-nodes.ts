import type { Graph, Node } from "./graph.ts";
import { floatTensor, int64Tensor, type Tensor } from "./tensor.ts";

/** Turns `Constant` nodes into initializers, where every other function here looks for weights. */
export function constantsToInitializers(graph: Graph): Graph {
  const initializers = new Map(graph.initializers);
  const outputs = new Set(graph.outputs.map(({ name }) => name));
  const nodes = graph.nodes.filter((node) => {
    const tensor =
      node.opType === "Constant" && node.domain === "" ? constantValue(node) : undefined;
    const name = node.outputs[0] ?? "";
    // An output must be made by a node: not every runtime hands an initializer out.
    if (tensor === undefined || outputs.has(name)) return true;
    initializers.set(name, tensor);
    return false;
  });
  return { ...graph, nodes, initializers };
}

/** undefined for the forms that are no dense numbers (strings, sparse). */
function constantValue(node: Node): Tensor | undefined {
  for (const [name, attribute] of node.attributes) {
    if (name === "value" && attribute.type === "tensor") return attribute.value;
    if (name === "value_float" && attribute.type === "float")
      return floatTensor([], [attribute.value]);
    if (name === "value_int" && attribute.type === "int") return int64Tensor([], [attribute.value]);
    if (name === "value_floats" && attribute.type === "floats") {
      return floatTensor([attribute.value.length], attribute.value);
    }
    if (name === "value_ints" && attribute.type === "ints") {
      return int64Tensor([attribute.value.length], attribute.value);
    }
  }
  return undefined;
}
