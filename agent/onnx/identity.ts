import { type Graph, intAttribute, intsAttribute, type Node } from "./graph.ts";
import { hasSubgraphs, renameInNode } from "./rename.ts";
import { integersOf, type Tensor } from "./tensor.ts";

/**
 * Removes nodes that hand on what they get: `Identity`, `Dropout` as inference runs it, a `Pad`
 * of nothing, a `Transpose` that keeps every axis, a pool of single values, a `Concat` or sum of
 * one. PyTorch writes an Identity for every initializer that equals another one, and a Pad and a
 * pool of nothing for layers that adapt to a size. A node whose output the graph hands out stays.
 */
export function removeIdentities(graph: Graph): Graph {
  if (hasSubgraphs(graph)) return graph;
  const outputs = new Set(graph.outputs.map(({ name }) => name));
  const source = new Map<string, string>();
  const nodes: Node[] = [];
  for (const node of graph.nodes) {
    const [from, to] = [node.inputs[0], node.outputs[0]];
    if (from && to && !outputs.has(to) && handsOn(node, graph.initializers)) {
      source.set(to, source.get(from) ?? from);
    } else {
      nodes.push(renameInNode(node, source));
    }
  }
  const valueInfos = new Map([...graph.valueInfos].filter(([name]) => !source.has(name)));
  return { ...graph, nodes, valueInfos };
}

function handsOn(node: Node, constants: ReadonlyMap<string, Tensor>): boolean {
  if (node.domain !== "") return false;
  switch (node.opType) {
    case "Identity":
      return true;
    case "Dropout":
      return isInference(node, constants);
    case "Pad":
      return isZero(
        node.inputs[1] ? integersAt(node, 1, constants) : intsAttribute(node, "pads", [1]),
      );
    case "Transpose":
      return intsAttribute(node, "perm", [-1]).every((axis, i) => axis === i);
    case "MaxPool":
    case "AveragePool":
      return isPoolOfOne(node);
    case "Concat":
    case "Sum":
    case "Mean":
    case "Max":
    case "Min":
      return node.inputs.length === 1;
    default:
      return false;
  }
}

/** Training mode (third input) or a used mask would make it something else. */
function isInference(node: Node, constants: ReadonlyMap<string, Tensor>): boolean {
  if (node.outputs[1]) return false;
  return !node.inputs[2] || isZero(integersAt(node, 2, constants));
}

function integersAt(
  node: Node,
  at: number,
  constants: ReadonlyMap<string, Tensor>,
): readonly number[] | null {
  const tensor = constants.get(node.inputs[at] ?? "");
  return tensor ? integersOf(tensor) : null;
}

function isZero(values: readonly number[] | null): boolean {
  return values?.every((value) => value === 0) ?? false;
}

function isPoolOfOne(node: Node): boolean {
  const one = (name: string) => intsAttribute(node, name, [1]).every((size) => size === 1);
  const unpadded = intsAttribute(node, "pads", []).every((pad) => pad === 0);
  const whole = intsAttribute(node, "kernel_shape", [0]).every((size) => size === 1);
  return (
    whole &&
    one("strides") &&
    unpadded &&
    !node.outputs[1] &&
    intAttribute(node, "ceil_mode", 0) === 0
  );
}
