import { type Graph, intsAttribute, type Node } from "./graph.ts";
import { hasSubgraphs } from "./rename.ts";

/**
 * Makes one Transpose of two in a row; those that cancel out are left as one that keeps every
 * axis, for `removeIdentities`, and the first of the two, if nobody else reads it, for
 * `removeDeadCode`. Converters of channels-last frameworks put pairs around every convolution.
 */
export function mergeTransposes(graph: Graph): Graph {
  if (hasSubgraphs(graph)) return graph;
  const turned = new Map<string, { input: string; perm: readonly number[] }>();
  let changed = false;
  const nodes = graph.nodes.map((node): Node => {
    const perm = node.opType === "Transpose" ? intsAttribute(node, "perm", []) : [];
    if (node.domain !== "" || perm.length === 0) return node;
    const before = turned.get(node.inputs[0]!);
    // Axis i of the second is axis perm[i] of the first, which is axis before.perm[perm[i]] of x.
    const both = before ? perm.map((axis) => before.perm[axis]!) : perm;
    const input = before?.input ?? node.inputs[0]!;
    turned.set(node.outputs[0]!, { input, perm: both });
    if (before === undefined) return node;
    changed = true;
    const attributes = new Map(node.attributes).set("perm", { type: "ints", value: both });
    return { ...node, inputs: [input], attributes };
  });
  return changed ? { ...graph, nodes } : graph;
}
