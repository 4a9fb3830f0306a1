import type { Graph, Node } from "./graph.ts";
import { hasSubgraphs, renameInNode } from "./rename.ts";

/**
 * Removes `Identity` nodes, and `Dropout` as inference runs it. PyTorch writes an Identity for
 * every initializer that equals another one. A node whose output the graph hands out stays.
 */
export function removeIdentities(graph: Graph): Graph {
  if (hasSubgraphs(graph)) return graph;
  const outputs = new Set(graph.outputs.map(({ name }) => name));
  const source = new Map<string, string>();
  const nodes: Node[] = [];
  for (const node of graph.nodes) {
    const [from, to] = [node.inputs[0], node.outputs[0]];
    if (isIdentity(node) && from && to && !outputs.has(to)) {
      source.set(to, source.get(from) ?? from);
    } else {
      nodes.push(renameInNode(node, source));
    }
  }
  const valueInfos = new Map([...graph.valueInfos].filter(([name]) => !source.has(name)));
  return { ...graph, nodes, valueInfos };
}

function isIdentity(node: Node): boolean {
  if (node.domain !== "") return false;
  if (node.opType === "Identity") return true;
  // Training mode (third input) or a used mask would make it something else.
  return node.opType === "Dropout" && node.inputs.length < 3 && !node.outputs[1];
}
