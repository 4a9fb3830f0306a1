import { floatAttribute, type Graph, type Node } from "./graph.ts";
import { consumersOf, type GraphIndex, indexGraph } from "./query.ts";
import { isFloatType, toFloat32 } from "./tensor.ts";

/** Nodes that multiply by constant weights: the ones for whose sake a network is quantized. */
export function isLinear(graph: Graph, node: Node): boolean {
  if (node.domain !== "") return false;
  const constant = (place: number): boolean => {
    const tensor = graph.initializers.get(node.inputs[place] ?? "");
    return tensor !== undefined && isFloatType(tensor.dataType);
  };
  const bias = !node.inputs[2] || constant(2);
  switch (node.opType) {
    case "Conv":
      return constant(1) && bias && !graph.initializers.has(node.inputs[0]!);
    case "Gemm":
      // Integer kernels know no other scalings, and a bias of one value a row only.
      return (
        constant(1) &&
        bias &&
        !graph.initializers.has(node.inputs[0]!) &&
        floatAttribute(node, "alpha", 1) === 1 &&
        floatAttribute(node, "beta", 1) === 1
      );
    case "MatMul":
      return (
        constant(1) &&
        !graph.initializers.has(node.inputs[0]!) &&
        graph.initializers.get(node.inputs[1]!)!.dims.length === 2
      );
    default:
      return false;
  }
}

/** Nodes that integer kernels exist for and that cost precision and time where left in float. */
const BETWEEN = new Set([
  "Add",
  "Mul",
  "Sigmoid",
  "GlobalAveragePool",
  "AveragePool",
  "MaxPool",
  "Concat",
  "Flatten",
  "Reshape",
  "Transpose",
]);

/**
 * The nodes of a graph that can compute on integers, by the name of their first output: linear
 * ones, and those between them whose every activation is made by integer nodes. MatMul hands out
 * floats, as what is around it (LayerNorm, GELU, attention) is no work for integers.
 *
 * @param left nodes that stay in float. @param throughClipping whether a Relu or Clip behind an
 *   integer node counts as a part of it, as {@link absorbClipping} makes it.
 */
export function integerNodes(
  graph: Graph,
  left: ReadonlySet<string> = new Set(),
  throughClipping = true,
): Set<string> {
  const index = indexGraph(graph);
  const chosen = new Set<string>();
  const integers = new Set<string>();
  for (const node of graph.nodes) {
    const name = node.outputs[0]!;
    if (node.domain !== "" || left.has(name)) continue;
    const linear = isLinear(graph, node);
    const between =
      BETWEEN.has(node.opType) || (throughClipping && gateOffset(graph, index, node) !== undefined);
    if (linear || (between && fed(graph, node, integers))) chosen.add(name);
    if (!chosen.has(name) || (linear && node.opType === "MatMul")) continue;
    integers.add(name);
    const clipping = throughClipping ? clippingBehind(graph, index, name) : undefined;
    if (clipping) integers.add(clipping.outputs[0]!);
  }
  return chosen;
}

/**
 * Where a HardSigmoid clip(α·x + β, 0, 1) begins to open, as β/α > 0: x ≤ −β/α gives 0. Only of one
 * that integers can take the place of by cutting x there, which is where x goes nowhere else but
 * into a product with this gate.
 */
function gateOffset(graph: Graph, index: GraphIndex, node: Node): number | undefined {
  if (node.domain !== "" || node.opType !== "HardSigmoid") return undefined;
  const slope = floatAttribute(node, "alpha", 0.2);
  const offset = floatAttribute(node, "beta", 0.5) / slope;
  const [input, output] = [node.inputs[0]!, node.outputs[0]!];
  if (!(slope > 0 && offset > 0 && Number.isFinite(offset)) || index.outputs.has(input)) return;
  const gated = consumersOf(graph, index, input).every(
    (reader) => reader === node || (reader.opType === "Mul" && reader.inputs.includes(output)),
  );
  return gated ? offset : undefined;
}

/** By value that an integer HardSigmoid reads: β/α, see {@link integerNodes}. */
export function gateOffsets(graph: Graph, nodes: ReadonlySet<string>): Map<string, number> {
  const index = indexGraph(graph);
  return new Map(
    graph.nodes.flatMap((node) => {
      const offset = nodes.has(node.outputs[0]!) ? gateOffset(graph, index, node) : undefined;
      return offset === undefined ? [] : [[node.inputs[0]!, offset] as const];
    }),
  );
}

/** Whether everything that changes and goes into a node is made by integer nodes. */
function fed(graph: Graph, node: Node, integers: ReadonlySet<string>): boolean {
  const changing = node.inputs.filter((name) => name !== "" && !graph.initializers.has(name));
  return changing.length > 0 && changing.every((name) => integers.has(name));
}

/**
 * What an integer form of a graph needs encodings of: everything that integer nodes read or make,
 * but weights, biases, shapes, gates (which have that of their input) and the floats that matrix products, or convolutions in front of a
 * Relu or Clip, hand out.
 */
export function encodedValues(graph: Graph, nodes: ReadonlySet<string>): string[] {
  const names = new Set<string>();
  const gates = new Set<string>();
  const index = indexGraph(graph);
  for (const node of graph.nodes) {
    const output = node.outputs[0]!;
    if (!nodes.has(output)) continue;
    const linear = isLinear(graph, node);
    for (const name of linear ? node.inputs.slice(0, 1) : node.inputs) {
      const constant = graph.initializers.get(name);
      if (name !== "" && (!constant || isFloatType(constant.dataType))) names.add(name);
    }
    if (node.opType === "HardSigmoid") gates.add(output);
    const clipped = node.opType === "Conv" && clippingBehind(graph, index, output) !== undefined;
    if (!clipped && !handsOutFloats(graph, index, node, output, nodes)) names.add(output);
  }
  return [...names].filter((name) => !gates.has(name));
}

/** Matrix products scale their sums themselves: rounding those is worth it for integers only. */
function handsOutFloats(
  graph: Graph,
  index: GraphIndex,
  node: Node,
  output: string,
  nodes: ReadonlySet<string>,
): boolean {
  if (!isLinear(graph, node) || node.opType === "Conv") return false;
  if (node.opType === "MatMul" || index.outputs.has(output)) return true;
  return !consumersOf(graph, index, output).every((reader) => nodes.has(reader.outputs[0]!));
}

/**
 * Lets the integers saturate in place of a Relu or Clip: removes it where it alone reads what an
 * integer node makes, and gives that node its output. Rounding to the range of the removed
 * node's output then cuts exactly as it did.
 *
 * @param nodes the integer nodes, by first output. @returns the graph, and the same nodes in it.
 */
export function absorbClipping(
  graph: Graph,
  nodes: ReadonlySet<string>,
): { readonly graph: Graph; readonly nodes: Set<string> } {
  const index = indexGraph(graph);
  const renamed = new Map<string, string>();
  const removed = new Set<string>();
  for (const node of graph.nodes) {
    const output = node.outputs[0]!;
    if (!nodes.has(output)) continue;
    const next = clippingBehind(graph, index, output);
    if (next === undefined || handsOutFloats(graph, index, node, next.outputs[0]!, nodes)) continue;
    renamed.set(output, next.outputs[0]!);
    removed.add(next.outputs[0]!);
  }
  const kept = graph.nodes.flatMap((node) => {
    const output = node.outputs[0]!;
    if (removed.has(output) && !renamed.has(output)) return [];
    const name = renamed.get(output);
    return [name === undefined ? node : { ...node, outputs: [name] }];
  });
  const names = [...nodes].map((name) => renamed.get(name) ?? name);
  return { graph: { ...graph, nodes: kept }, nodes: new Set(names) };
}

/** The Relu or Clip that alone reads a value. */
function clippingBehind(graph: Graph, index: GraphIndex, value: string): Node | undefined {
  if (index.outputs.has(value)) return undefined;
  const [next, ...others] = consumersOf(graph, index, value);
  return others.length === 0 && next !== undefined && clips(graph, next) ? next : undefined;
}

/** Relu, or Clip between constants (or none) that lets zero through. */
function clips(graph: Graph, node: Node): boolean {
  if (node.domain !== "") return false;
  if (node.opType === "Relu") return true;
  if (node.opType !== "Clip") return false;
  const [low, high] = node.inputs.slice(1).map((name) => graph.initializers.get(name));
  const known = node.inputs.slice(1).every((name) => name === "" || graph.initializers.has(name));
  // A range to round to always holds zero, so only a Clip that does can be a part of rounding.
  return known && !(low && toFloat32(low)[0]! > 0) && !(high && toFloat32(high)[0]! < 0);
}
