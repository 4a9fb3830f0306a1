import type { Graph, Node } from "./graph.ts";
import { freeName } from "./query.ts";
import { isFloatType, type Tensor } from "./tensor.ts";

/**
 * Gives every reader of a shared vector (a bias, the weights of a norm) one of its own. PyTorch
 * stores equal initializers once, so the zero biases of all layers are one; where one layer is
 * then narrowed or corrected, the others must not follow. Matrices stay shared: they are large,
 * and one that serves two layers may be meant to.
 */
export function unshareVectors(graph: Graph): Graph {
  const initializers = new Map(graph.initializers);
  const read = new Set<string>();
  const taken = new Set<string>();
  const nodes = graph.nodes.map((node): Node => {
    let changed = false;
    const inputs = node.inputs.map((name) => {
      const tensor = graph.initializers.get(name);
      if (tensor === undefined || !isVector(tensor)) return name;
      if (!read.has(name)) {
        read.add(name);
        return name;
      }
      const own = freeName(graph, `${name}_${node.outputs[0]}`, taken);
      taken.add(own);
      initializers.set(own, tensor);
      changed = true;
      return own;
    });
    return changed ? { ...node, inputs } : node;
  });
  return taken.size === 0 ? graph : { ...graph, nodes, initializers };
}

/** One value a channel: a single dimension is larger than 1. */
function isVector({ dims, dataType }: Tensor): boolean {
  return isFloatType(dataType) && dims.filter((size) => size !== 1).length === 1;
}
