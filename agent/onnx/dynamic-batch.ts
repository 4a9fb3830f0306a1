import { node as makeNode } from "./builder.ts";
import { type Dim, type Graph, intAttribute, type Node, type ValueInfo } from "./graph.ts";
import { activationsOf, consumersOf, describe, indexGraph } from "./query.ts";
import { int64Tensor, integersOf, type Tensor } from "./tensor.ts";

/** What {@link withDynamicBatch} did, and what it could not. */
export interface DynamicBatch {
  readonly graph: Graph;
  /** False where the input's first dimension was free already. */
  readonly changed: boolean;
  /** Nodes, in words, whose constants still hold a batch of one; empty if all went well. */
  readonly problems: readonly string[];
}

/**
 * Frees the batch dimension of a graph exported for one picture: the first dimension of inputs
 * and outputs becomes `N`, constant Reshape targets `[1, …]` take the batch along, and constants
 * that are put beside the picture's values (class tokens) are repeated for each picture. Shapes in
 * which the batch of one stands elsewhere are named as problems: such a graph still has to be run
 * one picture at a time.
 *
 * The graph must be normalized (`normalizeGraph`).
 */
export function withDynamicBatch(graph: Graph): DynamicBatch {
  const fixed = graph.inputs.some(({ dims }) => dims?.[0] === 1);
  if (!fixed) return { graph, changed: false, problems: [] };
  const initializers = new Map(graph.initializers);
  const activations = activationsOf(graph);
  const index = indexGraph(graph);
  const problems: string[] = [];
  const nodes = graph.nodes.flatMap((node): Node[] => {
    if (!node.inputs.some((name) => activations.has(name))) return [node];
    if (node.opType === "Concat") return repeatConstants(node, activations, initializers);
    const target = node.inputs[1];
    const tensor = target ? initializers.get(target) : undefined;
    if (!target || !tensor) return [node];
    const dims = integersOf(tensor) ?? [];
    // A size of 1 in an Expand leaves what is there.
    if (node.opType === "Expand" && dims[0] !== 1)
      problems.push(`${describe(node)} has a fixed shape`);
    if (node.opType !== "Reshape") return [node];
    const free = freeTarget(dims);
    if (free === null) {
      problems.push(`${describe(node)} to [${dims}] does not keep the batch in front`);
      return [node];
    }
    if (free === dims) return [node];
    // Readers of a shared shape constant that do not depend on the input keep the old one.
    const shared = consumersOf(graph, index, target).length > 1;
    const name = shared ? `${node.outputs[0]}_shape` : target;
    initializers.set(name, int64Tensor([free.length], free));
    return [{ ...node, inputs: [node.inputs[0]!, name] }];
  });
  return {
    graph: {
      ...graph,
      nodes,
      initializers,
      inputs: graph.inputs.map(withFreeBatch),
      outputs: graph.outputs.map(withFreeBatch),
      // Stated for a batch of one, and only ever a help to readers.
      valueInfos: new Map(),
    },
    changed: true,
    problems,
  };
}

/** A Concat whose constants of a batch of one are repeated as often as its values have pictures. */
function repeatConstants(
  concat: Node,
  activations: ReadonlySet<string>,
  initializers: Map<string, Tensor>,
): Node[] {
  const values = concat.inputs.find((name) => activations.has(name))!;
  const single = concat.inputs.filter((name) => initializers.get(name)?.dims[0] === 1);
  if (intAttribute(concat, "axis", 0) === 0 || single.length === 0) return [concat];
  const base = concat.outputs[0]!;
  const [zero, one] = [`${base}_zero`, `${base}_one`];
  initializers.set(zero, int64Tensor([1], [0])).set(one, int64Tensor([1], [1]));
  const nodes = [
    makeNode("Shape", [values], [`${base}_sizes`]),
    makeNode("Slice", [`${base}_sizes`, zero, one], [`${base}_batch`]),
  ];
  const repeated = new Map<string, string>();
  for (const name of new Set(single)) {
    const dims = initializers.get(name)!.dims;
    const [ones, target, all] = ["ones", "target", "all"].map((part) => `${base}_${name}_${part}`);
    initializers.set(
      ones!,
      int64Tensor(
        [dims.length - 1],
        dims.slice(1).map(() => 1),
      ),
    );
    nodes.push(makeNode("Concat", [`${base}_batch`, ones!], [target!], { axis: 0 }));
    nodes.push(makeNode("Expand", [name, target!], [all!]));
    repeated.set(name, all!);
  }
  return [...nodes, { ...concat, inputs: concat.inputs.map((name) => repeated.get(name) ?? name) }];
}

/** The same list where it is free already; null where it cannot be freed. */
function freeTarget(dims: readonly number[]): readonly number[] | null {
  const [first, ...rest] = dims;
  if (first === 0 || first === -1) return dims;
  if (first !== 1) return null;
  // Without another −1 the first size is what is left over: N. With one, it is copied.
  return [rest.includes(-1) ? 0 : -1, ...rest];
}

function withFreeBatch(value: ValueInfo): ValueInfo {
  if (value.dims?.[0] !== 1) return value;
  return { ...value, dims: ["N" as Dim, ...value.dims.slice(1)] };
}
