import { removeDeadCode } from "./dead-code.ts";
import type { Graph } from "./graph.ts";
import { activationsOf, readsOf } from "./query.ts";

/**
 * The values through which everything must pass on its way from the inputs to the output, in
 * order, inputs and outputs themselves left out. Cut there, the network falls into blocks that
 * each need one tensor: `extractSubgraph(graph, [border], [next border])`.
 *
 * Values that depend on no input (weights, constants and what is computed from them) are no
 * paths: each block takes a copy along. Shape arithmetic is a path like any other, since it reads
 * an activation; where that hides borders, fold it first (see `foldShapes`).
 *
 * In an order in which values are made before they are used, v is such a value exactly if
 * nothing else made up to that point is used afterwards.
 */
export function findBorders(graph: Graph): string[] {
  const alive = removeDeadCode(graph);
  const activations = activationsOf(alive);
  const outputs = new Set(alive.outputs.map(({ name }) => name));
  const lastUse = new Map<string, number>();
  alive.nodes.forEach((node, position) => {
    for (const name of readsOf(node)) if (activations.has(name)) lastUse.set(name, position);
  });
  for (const name of outputs) lastUse.set(name, Number.POSITIVE_INFINITY);
  const live = new Set(alive.inputs.map(({ name }) => name).filter((name) => lastUse.has(name)));
  const borders: string[] = [];
  alive.nodes.forEach((node, position) => {
    for (const name of node.outputs) if (lastUse.has(name)) live.add(name);
    for (const name of live) if (lastUse.get(name)! <= position) live.delete(name);
    const [only] = live;
    // A node of constants can run while the same value stays the only live one.
    if (live.size !== 1 || only === undefined || !node.outputs.includes(only)) return;
    if (!outputs.has(only)) borders.push(only);
  });
  return borders;
}
