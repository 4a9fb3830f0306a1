import { removeDeadCode } from "./dead-code.ts";
import { type Graph, intAttribute, type Node } from "./graph.ts";
import { inferShapes } from "./infer-shapes.ts";
import { activationsOf, readsOf } from "./query.ts";
import { int64Tensor, integersOf, type Tensor } from "./tensor.ts";

/**
 * The results of shape arithmetic that steer other operators (targets of Reshape, sizes of Slice
 * and the like): values that depend on the input only through `Shape`. Run the graph with these
 * as extra outputs at two batch sizes, then call {@link foldShapes}.
 */
export function shapeValues(graph: Graph): string[] {
  const shapes = new Set(shapeOnly(graph));
  const steering = new Set<string>();
  for (const node of graph.nodes) {
    if (node.outputs.every((name) => name === "" || shapes.has(name))) continue;
    for (const name of readsOf(node)) if (shapes.has(name)) steering.add(name);
  }
  return [...steering];
}

function shapeOnly(graph: Graph): Set<string> {
  const activations = activationsOf(graph);
  const shapes = new Set<string>();
  for (const node of graph.nodes) {
    const reads = readsOf(node).filter((name) => activations.has(name));
    const fromShape = node.opType === "Shape" || node.opType === "Size";
    if (reads.length === 0 || !(fromShape || reads.every((name) => shapes.has(name)))) continue;
    for (const name of node.outputs) if (name !== "") shapes.add(name);
  }
  return shapes;
}

/**
 * Replaces shape arithmetic by constants, from its measured results at two batch sizes: what came
 * out equal is constant; in the target of a Reshape, one size that follows the batch becomes −1, or
 * 0 (what the input has there) where a −1 stands already and the input begins with the batch.
 * All else stays as it is. The input's height and width must be the only ones the graph is used
 * with from now on.
 *
 * @param atFirst, atSecond int64 results of {@link shapeValues} at two batch sizes, by name.
 * @param batches the two batch sizes; they must differ.
 */
export function foldShapes(
  graph: Graph,
  atFirst: ReadonlyMap<string, Tensor>,
  atSecond: ReadonlyMap<string, Tensor>,
  batches: readonly [number, number],
): Graph {
  if (batches[0] === batches[1]) throw new RangeError(`expected two batch sizes, got ${batches}`);
  const initializers = new Map(graph.initializers);
  const constants = new Map<string, string>();
  const targets = new Map<string, string>();
  const copying = new Map<string, string>();
  for (const name of shapeValues(graph)) {
    const [first, second] = [atFirst.get(name), atSecond.get(name)];
    if (first === undefined || second === undefined) continue;
    const [a, b] = [integersOf(first), integersOf(second)];
    if (a === null || b === null || a.length !== b.length) continue;
    const folded = `${name}_folded`;
    if (a.every((value, i) => value === b[i])) {
      initializers.set(folded, first);
      constants.set(name, folded);
    } else {
      const target = withFreeSize(a, b, batches);
      if (target === null) continue;
      initializers.set(folded, int64Tensor([target.length], target));
      (target[0] === 0 ? copying : targets).set(name, folded);
    }
  }
  const batched = copying.size > 0 ? beginWithBatch(graph, batches) : new Set<string>();
  const nodes = graph.nodes.map((node): Node => {
    const copies = batched.has(node.inputs[0] ?? "") && intAttribute(node, "allowzero", 0) === 0;
    const inputs = node.inputs.map((name, i) => {
      const free = targets.get(name) ?? (copies ? copying.get(name) : undefined);
      const target = node.opType === "Reshape" && i === 1 ? free : undefined;
      return constants.get(name) ?? target ?? name;
    });
    return inputs.some((name, i) => name !== node.inputs[i]) ? { ...node, inputs } : node;
  });
  return removeDeadCode({ ...graph, nodes, initializers });
}

/** Values whose first size is the batch, as far as their shapes can be told. */
function beginWithBatch(graph: Graph, batches: readonly [number, number]): Set<string> {
  const [first, second] = batches.map((batch) => {
    const sizes = graph.inputs.flatMap(({ name, dims }) => {
      const rest = dims?.slice(1) ?? [null];
      return rest.every((size) => typeof size === "number")
        ? [[name, [batch, ...rest]] as const]
        : [];
    });
    return inferShapes(graph, new Map(sizes));
  });
  const found = [...first!].filter(
    ([name, { dims }]) => dims[0] === batches[0] && second!.get(name)?.dims[0] === batches[1],
  );
  return new Set(found.map(([name]) => name));
}

function withFreeSize(
  a: readonly number[],
  b: readonly number[],
  batches: readonly [number, number],
): number[] | null {
  const moving = a.flatMap((value, i) => (value === b[i] ? [] : [i]));
  const [at] = moving;
  if (at === undefined || moving.length > 1 || a.includes(0)) return null;
  if (a[at]! * batches[1] !== b[at]! * batches[0]) return null;
  if (a.includes(-1)) return at === 0 && a[0] === batches[0] ? [0, ...a.slice(1)] : null;
  return a.map((value, i) => (i === at ? -1 : value));
}
