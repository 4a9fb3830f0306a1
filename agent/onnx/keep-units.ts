import { type ChannelGroup, type ChannelSize, findChannelGroups } from "./channel-groups.ts";
import { removeDeadCode } from "./dead-code.ts";
import type { Graph, Node } from "./graph.ts";
import { describe, freeName, readsOf } from "./query.ts";
import { DataType, int64Tensor, integersOf, type Tensor } from "./tensor.ts";

/**
 * The graph with only some units of a group: an exact cut of everything that belongs to the other
 * units, no refit. All that stays keeps its name, its values and its order.
 *
 * Groups may be cut one after another. A group found before another was cut still fits unless
 * both have a part of one axis (two branches behind a Concat); then it is found anew in `graph`
 * by its `id`, with the same units in the same order.
 *
 * @param keep ascending unit numbers, at least one.
 * @throws {RangeError} if `keep` is no such list, or the graph has no such group (any more).
 */
export function keepUnits(graph: Graph, group: ChannelGroup, keep: readonly number[]): Graph {
  checkKeep(group, keep);
  if (keep.length === group.units) return graph;
  const kept = new Set(keep);
  const removed = Array.from({ length: group.units }, (_, u) => u).filter((u) => !kept.has(u));
  return applyEdits(graph, editsOf(graph, fitting(graph, group), removed));
}

function checkKeep(group: ChannelGroup, keep: readonly number[]): void {
  const ascending = keep.every((u, i) => Number.isInteger(u) && u > (keep[i - 1] ?? -1));
  if (keep.length === 0 || !ascending || keep.at(-1)! >= group.units) {
    throw new RangeError(
      `"${group.id}": expected ascending units in 0..${group.units - 1}, at least one, got [${keep}]`,
    );
  }
}

/** The group itself where all sizes are those it was found with, else the same one found anew. */
function fitting(graph: Graph, group: ChannelGroup): ChannelGroup {
  const nodes = new Map(graph.nodes.map((node) => [node.outputs[0], node]));
  const fits =
    group.slices.every(({ node, input, axis, size, rank, inputs }) => {
      const names = nodes.get(node)?.inputs ?? [];
      const dims = graph.initializers.get(names[input] ?? "")?.dims ?? [];
      return names.length === inputs && dims.length === rank && dims[axis] === size;
    }) &&
    group.sizes.every((size) => {
      const node = nodes.get(size.node);
      return node !== undefined && heldValues(graph, node, size)[size.at] === size.values[size.at];
    });
  if (fits) return group;
  const { groups } = findChannelGroups(graph);
  const again = groups.find(({ id, kind }) => id === group.id && kind === group.kind);
  if (again?.units !== group.units) {
    throw new RangeError(
      `the graph has no group "${group.id}" of ${group.units} units (now ${again?.units ?? "none"}): find the groups of this graph anew`,
    );
  }
  return again;
}

/** The numbers of a list now; where nodes compute them from constants, what they always are. */
function heldValues(graph: Graph, node: Node, { holder, values }: ChannelSize): readonly number[] {
  if (typeof holder === "string") {
    const attribute = node.attributes.get(holder);
    if (attribute?.type === "int") return [attribute.value];
    return attribute?.type === "ints" ? attribute.value : values;
  }
  const tensor = graph.initializers.get(node.inputs[holder] ?? "");
  return (tensor && integersOf(tensor)) ?? values;
}

/** What happens to one input of one node. */
interface InputEdit {
  readonly node: Node;
  readonly input: number;
  /** Places to take out, by axis. */
  readonly drop: Map<number, Set<number>>;
  /** New numbers of a list of sizes, or null. */
  values: number[] | null;
}

/** What happens to the lists of one node that are attributes. */
type AttributeEdits = Map<string, number[]>;

interface Edits {
  readonly inputs: readonly InputEdit[];
  /** By first output of the node. */
  readonly attributes: ReadonlyMap<string, AttributeEdits>;
}

function editsOf(graph: Graph, group: ChannelGroup, removed: readonly number[]): Edits {
  const nodes = new Map(graph.nodes.map((node) => [node.outputs[0]!, node]));
  const inputs = new Map<string, InputEdit>();
  const attributes = new Map<string, AttributeEdits>();
  const edit = (name: string, input: number): InputEdit => {
    const key = `${name} ${input}`;
    const found = inputs.get(key) ?? {
      node: nodes.get(name)!,
      input,
      drop: new Map<number, Set<number>>(),
      values: null,
    };
    inputs.set(key, found);
    return found;
  };
  for (const { node, input, axis, indices } of group.slices) {
    const { drop } = edit(node, input);
    const places = drop.get(axis) ?? new Set();
    for (const u of removed) for (const place of indices[u]!) places.add(place);
    drop.set(axis, places);
  }
  for (const size of group.sizes) {
    const less = removed.reduce((sum, u) => sum + size.less[u]!, 0);
    const now = () => [...heldValues(graph, nodes.get(size.node)!, size)];
    let values: number[];
    if (typeof size.holder === "number") {
      const found = edit(size.node, size.holder);
      values = found.values ??= now();
    } else {
      const own = attributes.get(size.node) ?? new Map<string, number[]>();
      values = own.get(size.holder) ?? now();
      attributes.set(size.node, own.set(size.holder, values));
    }
    values[size.at] = values[size.at]! - less;
  }
  return { inputs: [...inputs.values()], attributes };
}

/**
 * Writes the edits. An initializer all of whose readers want the same keeps its name; otherwise
 * those that shrink get a copy of their own.
 */
function applyEdits(graph: Graph, { inputs, attributes }: Edits): Graph {
  const initializers = new Map(graph.initializers);
  const readers = countReaders(graph);
  const names = new Map<string, Map<number, string>>();
  const taken = new Set<string>();
  for (const same of sameWishes(inputs)) {
    const first = same[0]!;
    const name = first.node.inputs[first.input] ?? "";
    const old = graph.initializers.get(name);
    const own = old !== undefined && readers.get(name) === same.length;
    const base = name === "" ? `${first.node.outputs[0]}_sizes` : `${name}_kept`;
    const target = own ? name : freeName(graph, base, taken);
    taken.add(target);
    initializers.set(target, edited(old, first));
    for (const { node, input } of same) {
      const key = node.outputs[0]!;
      names.set(key, (names.get(key) ?? new Map<number, string>()).set(input, target));
    }
  }
  const nodes = graph.nodes.map((node) => {
    const key = node.outputs[0]!;
    return editedNode(node, names.get(key), attributes.get(key));
  });
  // Stated shapes are those of the whole network, and only ever a help to readers. Nodes that
  // computed a list of sizes from constants are dead now.
  return removeDeadCode({ ...graph, nodes, initializers, valueInfos: new Map() });
}

/** Edits that turn the same constant into the same other one. */
function sameWishes(edits: readonly InputEdit[]): InputEdit[][] {
  const wishes = new Map<string, InputEdit[]>();
  for (const edit of edits) {
    const name = edit.node.inputs[edit.input] ?? "";
    const drop = [...edit.drop].map(([axis, places]) => [axis, [...places].sort((a, b) => a - b)]);
    // A list that is not there yet is nobody else's.
    const wish = JSON.stringify([name || edit.node.outputs[0], drop, edit.values]);
    wishes.set(wish, [...(wishes.get(wish) ?? []), edit]);
  }
  return [...wishes.values()];
}

function editedNode(
  node: Node,
  names: ReadonlyMap<number, string> | undefined,
  lists: AttributeEdits | undefined,
): Node {
  if (!names && !lists) return node;
  const inputs = [...node.inputs];
  for (const [input, name] of names ?? []) inputs[input] = name;
  const attributes = new Map(node.attributes);
  for (const [name, values] of lists ?? []) {
    const single = node.attributes.get(name)?.type === "int";
    attributes.set(
      name,
      single ? { type: "int", value: values[0]! } : { type: "ints", value: values },
    );
  }
  // Stated sizes and a number of equal parts exclude each other.
  if (node.opType === "Split" && names?.has(1)) attributes.delete("num_outputs");
  return { ...node, inputs, attributes };
}

function countReaders(graph: Graph): Map<string, number> {
  const readers = new Map<string, number>();
  for (const node of graph.nodes) {
    const captured = readsOf(node).filter((name) => !node.inputs.includes(name));
    for (const name of [...node.inputs, ...captured]) {
      readers.set(name, (readers.get(name) ?? 0) + 1);
    }
  }
  return readers;
}

function edited(old: Tensor | undefined, { drop, values, node, input }: InputEdit): Tensor {
  if (values) {
    if (old?.dataType !== DataType.INT32) return int64Tensor(old?.dims ?? [values.length], values);
    return { ...old, data: Int32Array.from(values) };
  }
  if (old === undefined) {
    throw new RangeError(`${describe(node)} does not read a constant at input ${input}`);
  }
  let tensor = old;
  for (const [axis, places] of drop) tensor = without(tensor, axis, places, node);
  return tensor;
}

/** A tensor without some places of one axis. */
function without(tensor: Tensor, axis: number, places: ReadonlySet<number>, reader: Node): Tensor {
  const { dims, data } = tensor;
  const size = dims[axis]!;
  const inner = dims.slice(axis + 1).reduce((a, b) => a * b, 1);
  const outer = dims.slice(0, axis).reduce((a, b) => a * b, 1);
  const kept = Array.from({ length: size }, (_, i) => i).filter((i) => !places.has(i));
  if (kept.length === 0) {
    throw new RangeError(`${describe(reader)} would keep no channel: keep one that it reads`);
  }
  const result = data.slice(0, outer * kept.length * inner);
  let at = 0;
  for (let o = 0; o < outer; o++) {
    for (const i of kept) {
      const from = (o * size + i) * inner;
      for (let k = 0; k < inner; k++) result[at + k] = data[from + k]!;
      at += inner;
    }
  }
  return {
    ...tensor,
    dims: [...dims.slice(0, axis), kept.length, ...dims.slice(axis + 1)],
    data: result,
  };
}
