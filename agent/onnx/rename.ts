import type { Graph, Node } from "./graph.ts";

/** A node that reads and makes values under new names; names not in the map stay. */
export function renameInNode(node: Node, names: ReadonlyMap<string, string>): Node {
  const rename = (name: string): string => names.get(name) ?? name;
  return { ...node, inputs: node.inputs.map(rename), outputs: node.outputs.map(rename) };
}

/** True if some subgraph of the graph may read values by name, which renaming does not reach. */
export function hasSubgraphs(graph: Graph): boolean {
  return graph.nodes.some((node) =>
    [...node.attributes.values()].some(
      (a) => a.type === "other" && (a.proto.g !== undefined || a.proto.graphs.length > 0),
    ),
  );
}
