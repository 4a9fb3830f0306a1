import type { Graph } from "./graph.ts";
import { readsOf } from "./query.ts";

/**
 * Removes nodes and initializers that no output depends on. Graph inputs stay, used or not.
 * ONNX Runtime prints a warning for each unused initializer.
 */
export function removeDeadCode(graph: Graph): Graph {
  const used = new Set(graph.outputs.map(({ name }) => name));
  const nodes = [];
  for (const node of [...graph.nodes].reverse()) {
    if (!node.outputs.some((name) => used.has(name))) continue;
    for (const name of readsOf(node)) used.add(name);
    nodes.push(node);
  }
  const made = new Set(nodes.flatMap(({ outputs }) => outputs));
  return {
    ...graph,
    nodes: nodes.reverse(),
    initializers: new Map([...graph.initializers].filter(([name]) => used.has(name))),
    valueInfos: new Map([...graph.valueInfos].filter(([name]) => made.has(name))),
  };
}
