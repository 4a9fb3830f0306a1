import { type ChannelGroup, type ChannelSize, findChannelGroups } from "./channel-groups.ts";
import type { Attribute, Graph, Node } from "./graph.ts";
import { freeName } from "./query.ts";
import { int64Tensor, integersOf, type Tensor } from "./tensor.ts";

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
      return node !== undefined && heldValue(graph, node, size) === size.values[size.at];
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

/** undefined where the list is not there; a list computed by nodes is what it was. */
function heldValue(graph: Graph, node: Node, size: ChannelSize): number | undefined {
  if (typeof size.holder === "string") {
    const attribute = node.attributes.get(size.holder);
    if (attribute?.type === "int") return attribute.value;
    return attribute?.type === "ints" ? attribute.value[size.at] : undefined;
  }
  const tensor = graph.initializers.get(node.inputs[size.holder] ?? "");
  return tensor ? integersOf(tensor)?.[size.at] : size.values[size.at];
}

/** What happens to one input of one node. */
interface InputEdit {
  readonly node: string;
  readonly input: number;
  /** Places to take out, by axis. */
  readonly drop: Map<number, Set<number>>;
  /** New numbers of an integer list, or null. */
  values: number[] | null;
}

interface Edits {
  readonly inputs: ReadonlyMap<string, InputEdit>;
  /** New attributes, by node. */
  readonly attributes: ReadonlyMap<string, ReadonlyMap<string, Attribute>>;
}

function editsOf(graph: Graph, group: ChannelGroup, removed: readonly number[]): Edits {
  const nodes = new Map(graph.nodes.map((node) => [node.outputs[0]!, node]));
  const inputs = new Map<string, InputEdit>();
  const attributes = new Map<string, Map<string, Attribute>>();
  const edit = (node: string, input: number): InputEdit => {
    const key = JSON.stringify([node, input]);
    const found = inputs.get(key) ?? { node, input, drop: new Map(), values: null };
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
    if (typeof size.holder === "number") {
      const found = edit(size.node, size.holder);
      found.values ??= [...size.values];
      found.values[size.at] = size.values[size.at]! - less;
    } else {
      const own = attributes.get(size.node) ?? new Map<string, Attribute>();
      const old = own.get(size.holder) ?? nodes.get(size.node)!.attributes.get(size.holder)!;
      own.set(size.holder, lessened(old, size.at, less));
      attributes.set(size.node, own);
    }
  }
  return { inputs, attributes };
}

function lessened(attribute: Attribute, at: number, less: number): Attribute {
  if (attribute.type === "int") return { type: "int", value: attribute.value - less };
  if (attribute.type !== "ints") throw new RangeError(`expected integers, got ${attribute.type}`);
  return { type: "ints", value: attribute.value.map((v, i) => (i === at ? v - less : v)) };
}

/**
 * Writes the edits. An initializer all of whose readers want the same keeps its name; otherwise
 * those that shrink get a copy of their own.
 */
function applyEdits(graph: Graph, edits: Edits): Graph {
  const initializers = new Map(graph.initializers);
  const readers = countReaders(graph);
  const nodeOf = new Map(graph.nodes.map((node) => [node.outputs[0]!, node]));
  const byWish = new Map<string, InputEdit[]>();
  for (const edit of edits.inputs.values()) {
    const name = nodeOf.get(edit.node)!.inputs[edit.input]!;
    const drop = [...edit.drop].map(([axis, places]) => [axis, [...places].sort((a, b) => a - b)]);
    const wish = JSON.stringify([name, drop, edit.values]);
    byWish.set(wish, [...(byWish.get(wish) ?? []), edit]);
  }
  const renamed = new Map<string, Map<number, string>>();
  const taken = new Set<string>();
  for (const same of byWish.values()) {
    const [first] = same;
    const name = nodeOf.get(first!.node)!.inputs[first!.input]!;
    const old = graph.initializers.get(name);
    const tensor = edited(old, first!);
    const own = old !== undefined && readers.get(name) === same.length;
    const target = own ? name : freeName(graph, `${name}_kept`, taken);
    taken.add(target);
    initializers.set(target, tensor);
    for (const { node, input } of same) {
      renamed.set(node, (renamed.get(node) ?? new Map<number, string>()).set(input, target));
    }
  }
  const nodes = graph.nodes.map((node): Node => {
    const names = renamed.get(node.outputs[0]!);
    const own = edits.attributes.get(node.outputs[0]!);
    if (!names && !own) return node;
    const inputs = node.inputs.map((name, i) => names?.get(i) ?? name);
    return { ...node, inputs, attributes: new Map([...node.attributes, ...(own ?? [])]) };
  });
  // Stated shapes are those of the whole network, and only ever a help to readers.
  return { ...graph, nodes, initializers, valueInfos: new Map() };
}

function countReaders(graph: Graph): Map<string, number> {
  const readers = new Map<string, number>();
  for (const node of graph.nodes) {
    for (const name of node.inputs) readers.set(name, (readers.get(name) ?? 0) + 1);
  }
  return readers;
}

function edited(old: Tensor | undefined, { drop, values, node }: InputEdit): Tensor {
  if (values) return int64Tensor(old?.dims ?? [values.length], values);
  if (old === undefined) throw new RangeError(`"${node}" does not read a constant where it did`);
  let tensor = old;
  for (const [axis, places] of drop) tensor = without(tensor, axis, places);
  return tensor;
}

/** A tensor without some places of one axis. */
function without(tensor: Tensor, axis: number, places: ReadonlySet<number>): Tensor {
  const { dims, data } = tensor;
  const size = dims[axis]!;
  const inner = dims.slice(axis + 1).reduce((a, b) => a * b, 1);
  const outer = dims.slice(0, axis).reduce((a, b) => a * b, 1);
  const kept = Array.from({ length: size }, (_, i) => i).filter((i) => !places.has(i));
  const shrunk = [...dims.slice(0, axis), kept.length, ...dims.slice(axis + 1)];
  const result = data.slice(0, outer * kept.length * inner);
  let at = 0;
  for (let o = 0; o < outer; o++) {
    for (const i of kept) {
      const from = (o * size + i) * inner;
      result.set(data.subarray(from, from + inner) as never, at);
      at += inner;
    }
  }
  return { ...tensor, dims: shrunk, data: result };
}
