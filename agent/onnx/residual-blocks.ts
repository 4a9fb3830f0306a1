import { node as makeNode } from "./builder.ts";
import { channelShapes } from "./channel-shapes.ts";
import { removeDeadCode } from "./dead-code.ts";
import type { Graph, Node } from "./graph.ts";
import { findPrunableLayers } from "./prunable-layers.ts";
import { activationsOf, type GraphIndex, indexGraph, readsOf } from "./query.ts";
import { renameInNode } from "./rename.ts";

/** A block x + f(x): without f, the network still fits together. */
export interface ResidualBlock {
  /** Name of the Add, or of its output. */
  readonly name: string;
  /** x: what the block reads and passes by. */
  readonly input: string;
  /** f(x). */
  readonly branch: string;
  /** x + f(x). */
  readonly output: string;
  /** First outputs of the nodes of f, in order; nodes that do not depend on x are not among them. */
  readonly nodes: readonly string[];
  /** Names of the layers in f, as `findPrunableLayers` gives them; at least one. */
  readonly layers: readonly string[];
  /** Values inside f that something outside reads too: their makers stay when the block goes. */
  readonly readOutside: readonly string[];
}

/**
 * Finds the blocks x + f(x) in the order of the graph: Adds of two values of the same shape, one
 * of which is computed from the other alone (and from constants) with at least one layer of
 * weights between. A block with a projection on its shortcut is none; blocks can lie in each
 * other. The graph must be normalized.
 */
export function findResidualBlocks(graph: Graph): ResidualBlock[] {
  const index = indexGraph(graph);
  const activations = activationsOf(graph);
  const shapes = channelShapes(graph);
  const layerAt = new Map(findPrunableLayers(graph).map((l) => [l.nodeIndex, l.name]));
  const blocks: ResidualBlock[] = [];
  for (const add of graph.nodes) {
    const [a, b] = add.inputs;
    if (add.opType !== "Add" || add.domain !== "" || !a || !b || a === b) continue;
    if (!activations.has(a) || !activations.has(b)) continue;
    const [left, right] = [shapes.get(a), shapes.get(b)];
    // Where one side is broadcast, x need not have the shape of the sum.
    if (!left || !right || left.dims.join() !== right.dims.join()) continue;
    const block =
      blockOf(graph, index, activations, layerAt, add, a, b) ??
      blockOf(graph, index, activations, layerAt, add, b, a);
    if (block) blocks.push(block);
  }
  return blocks;
}

function blockOf(
  graph: Graph,
  index: GraphIndex,
  activations: ReadonlySet<string>,
  layerAt: ReadonlyMap<number, string>,
  add: Node,
  input: string,
  branch: string,
): ResidualBlock | undefined {
  const inside = between(graph, index, activations, input, branch);
  if (inside === undefined) return undefined;
  const positions = [...inside].sort((x, y) => x - y);
  const layers = positions.flatMap((position) => layerAt.get(position) ?? []);
  if (layers.length === 0) return undefined;
  const addAt = index.producer.get(add.outputs[0]!)!;
  const made = positions.flatMap((position) => graph.nodes[position]!.outputs);
  const readOutside = made.filter(
    (value) =>
      value !== "" &&
      (index.outputs.has(value) ||
        (index.consumers.get(value) ?? []).some((at) => at !== addAt && !inside.has(at))),
  );
  return {
    name: add.name || add.outputs[0]!,
    input,
    branch,
    output: add.outputs[0]!,
    nodes: positions.map((position) => graph.nodes[position]!.outputs[0]!),
    layers,
    readOutside,
  };
}

/** Nodes on the way from `input` to `branch`; undefined if `branch` needs anything else. */
function between(
  graph: Graph,
  index: GraphIndex,
  activations: ReadonlySet<string>,
  input: string,
  branch: string,
): Set<number> | undefined {
  const start = index.producer.get(input) ?? -1;
  const inside = new Set<number>();
  const open = [branch];
  for (let value = open.pop(); value !== undefined; value = open.pop()) {
    if (value === input || !activations.has(value)) continue;
    const position = index.producer.get(value);
    // What was made before x cannot have been computed from x.
    if (position === undefined || position <= start) return undefined;
    if (inside.has(position)) continue;
    inside.add(position);
    open.push(...readsOf(graph.nodes[position]!));
  }
  return inside;
}

/**
 * The graph without a block: what read x + f(x) reads x. What follows the Add (an activation)
 * stays; nodes and weights that nothing needs any more are gone. Blocks may be dropped one after
 * another: one whose input went with the block before is found anew by its Add.
 *
 * @throws {RangeError} if the graph does not have the block (any more): find the blocks anew.
 */
export function dropBlock(graph: Graph, block: ResidualBlock): Graph {
  const { input, output, name } = hasBlock(graph, block) ? block : foundAnew(graph, block);
  const position = graph.nodes.findIndex(({ outputs }) => outputs[0] === output);
  const nodes = [...graph.nodes];
  if (graph.outputs.some((value) => value.name === output)) {
    // An output keeps its name, and what reads it inside reads the same value.
    nodes[position] = makeNode("Identity", [input], [output], {}, name);
    return removeDeadCode({ ...graph, nodes });
  }
  nodes.splice(position, 1);
  const names = new Map([[output, input]]);
  return removeDeadCode({ ...graph, nodes: nodes.map((n) => renameInNode(n, names)) });
}

function hasBlock(graph: Graph, { input, branch, output }: ResidualBlock): boolean {
  const add = graph.nodes.find(({ outputs }) => outputs[0] === output);
  return add?.opType === "Add" && add.inputs.includes(input) && add.inputs.includes(branch);
}

/** The block with the same Add, in a graph from which the block before was dropped. */
function foundAnew(graph: Graph, block: ResidualBlock): ResidualBlock {
  const again = findResidualBlocks(graph).find(({ output }) => output === block.output);
  if (again) return again;
  throw new RangeError(
    `the graph has no block that ends in "${block.output}": find its blocks anew`,
  );
}
