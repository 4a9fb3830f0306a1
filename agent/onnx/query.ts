import type { GraphProto } from "onnx-buf";
import type { Graph, Node } from "./graph.ts";

/** Who makes and who reads each value of one graph. Good only for the graph it was made from. */
export interface GraphIndex {
  /** Position in `graph.nodes` of the node that makes a value; absent for inputs and constants. */
  readonly producer: ReadonlyMap<string, number>;
  /** Positions of the nodes that read a value, ascending, subgraphs included. */
  readonly consumers: ReadonlyMap<string, readonly number[]>;
  /** Names of the graph's outputs. */
  readonly outputs: ReadonlySet<string>;
}

/** Indexes a graph by value. */
export function indexGraph(graph: Graph): GraphIndex {
  const producer = new Map<string, number>();
  const consumers = new Map<string, number[]>();
  graph.nodes.forEach((node, position) => {
    for (const name of node.outputs) if (name !== "") producer.set(name, position);
    for (const name of readsOf(node)) {
      const list = consumers.get(name);
      if (list) list.push(position);
      else consumers.set(name, [position]);
    }
  });
  return { producer, consumers, outputs: new Set(graph.outputs.map(({ name }) => name)) };
}

/** The node that makes a value; undefined for graph inputs and constants. */
export function producerOf(graph: Graph, index: GraphIndex, value: string): Node | undefined {
  const position = index.producer.get(value);
  return position === undefined ? undefined : graph.nodes[position];
}

/** The nodes that read a value, in order. */
export function consumersOf(graph: Graph, index: GraphIndex, value: string): Node[] {
  return (index.consumers.get(value) ?? []).map((position) => graph.nodes[position]!);
}

/** Every value that a node reads, each once: its inputs and what its subgraphs take from outside. */
export function readsOf(node: Node): string[] {
  const names = new Set(node.inputs.filter((name) => name !== ""));
  for (const attribute of node.attributes.values()) {
    if (attribute.type !== "other") continue;
    const { g, graphs } = attribute.proto;
    for (const inner of g ? [g, ...graphs] : graphs) {
      for (const name of capturedBy(inner)) names.add(name);
    }
  }
  return [...names];
}

function capturedBy(graph: GraphProto): Set<string> {
  const own = new Set([...graph.input, ...graph.initializer].map(({ name }) => name));
  const captured = new Set<string>();
  const read = (name: string) => {
    if (name !== "" && !own.has(name)) captured.add(name);
  };
  for (const node of graph.node) {
    node.input.forEach(read);
    for (const { g, graphs } of node.attribute) {
      for (const inner of g ? [g, ...graphs] : graphs) capturedBy(inner).forEach(read);
    }
    for (const name of node.output) own.add(name);
  }
  for (const { name } of graph.output) read(name);
  return captured;
}

/**
 * Checks that every value is made once and before it is used, as ONNX demands.
 *
 * @throws {RangeError} naming the node and the value that break it.
 */
export function checkTopologicalOrder(graph: Graph): void {
  const known = new Set([...graph.initializers.keys(), ...graph.inputs.map(({ name }) => name)]);
  for (const node of graph.nodes) {
    for (const name of readsOf(node)) {
      if (known.has(name)) continue;
      throw new RangeError(`${describe(node)} reads "${name}" before it is made`);
    }
    for (const name of node.outputs) {
      if (name === "") continue;
      if (known.has(name)) throw new RangeError(`${describe(node)} makes "${name}" again`);
      known.add(name);
    }
  }
  for (const { name } of graph.outputs) {
    if (!known.has(name)) throw new RangeError(`nothing makes the output "${name}"`);
  }
}

/** How a node is named in messages: `Conv "stem"`. */
export function describe(node: Node): string {
  return `${node.opType} "${node.name || (node.outputs[0] ?? "")}"`;
}

/** Values that depend on a graph input; all others are the same in every run. */
export function activationsOf(graph: Graph): Set<string> {
  const names = new Set(graph.inputs.map(({ name }) => name));
  for (const node of graph.nodes) {
    if (!readsOf(node).some((name) => names.has(name))) continue;
    for (const name of node.outputs) if (name !== "") names.add(name);
  }
  return names;
}

/** A name that no value of the graph has yet: `base`, `base_1`, … */
export function freeName(graph: Graph, base: string, alsoTaken?: ReadonlySet<string>): string {
  const taken = new Set<string>([...graph.initializers.keys(), ...(alsoTaken ?? [])]);
  for (const { name } of [...graph.inputs, ...graph.outputs]) taken.add(name);
  for (const node of graph.nodes) for (const name of node.outputs) taken.add(name);
  let name = base;
  for (let i = 1; taken.has(name); i++) name = `${base}_${i}`;
  return name;
}
