import type { Graph } from "./graph.ts";
import { hasSubgraphs, renameInNode } from "./rename.ts";

/**
 * Two graphs as one, so that values of both can be compared inside the runtime. Everything of the
 * second keeps its name; values of the first get the prefix, constants that both share excepted.
 *
 * @throws {RangeError} if the first has subgraphs, whose reads cannot be renamed, or a name of
 *   the second starts with the prefix.
 */
export function sideBySide(first: Graph, second: Graph, prefix: string): Graph {
  if (hasSubgraphs(first)) {
    throw new RangeError("expected a graph without branches or loops, got one with subgraphs");
  }
  const shared = (name: string): boolean =>
    first.initializers.get(name) === second.initializers.get(name);
  const names = new Map<string, string>();
  const rename = (name: string): void => {
    if (name !== "") names.set(name, prefix + name);
  };
  for (const { name } of first.inputs) rename(name);
  for (const node of first.nodes) node.outputs.forEach(rename);
  for (const name of first.initializers.keys()) if (!shared(name)) rename(name);
  const taken = [...second.initializers.keys(), ...second.nodes.flatMap(({ outputs }) => outputs)];
  const clash = taken.find((name) => name.startsWith(prefix));
  if (clash !== undefined) throw new RangeError(`"${clash}" starts with the prefix "${prefix}"`);
  const own = (name: string): string => names.get(name) ?? name;
  const initializers = new Map(second.initializers);
  for (const [name, tensor] of first.initializers) initializers.set(own(name), tensor);
  const renamed = first.nodes.map((node) => {
    const inner = renameInNode(node, names);
    return { ...inner, name: inner.name && prefix + inner.name };
  });
  const infos = [...first.inputs].map((info) => ({ ...info, name: own(info.name) }));
  return {
    ...second,
    nodes: [...renamed, ...second.nodes],
    inputs: [...infos, ...second.inputs],
    outputs: [
      ...first.outputs.map((info) => ({ ...info, name: own(info.name) })),
      ...second.outputs,
    ],
    initializers,
  };
}
