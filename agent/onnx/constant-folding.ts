import { removeDeadCode } from "./dead-code.ts";
import { type Graph, intAttribute, type Node } from "./graph.ts";
import { activationsOf, readsOf } from "./query.ts";
import { DataType, elementCount, type Tensor } from "./tensor.ts";

/** Nodes that give something else at every run, or whose constants mean more than their value. */
const LEFT_ALONE = new Set([
  "RandomNormal",
  "RandomUniform",
  "RandomNormalLike",
  "RandomUniformLike",
  "Multinomial",
  "Bernoulli",
  // A quantized weight is to stay one.
  "DequantizeLinear",
]);

/** Types that several weights may be packed into, each of which takes a bit at least. */
const WORD_BITS = new Map([
  [DataType.UINT8, 8],
  [DataType.UINT64, 64],
]);

/** A constant this small may come out larger than what it was made from (an Expand, a Range). */
const SMALL = 16_384;

/**
 * Values that are the same in every run but are computed by nodes: what the rest of the graph
 * reads of them, float32 and int64 alone. Run the graph with these as its only outputs, without
 * input, then call {@link foldConstants}.
 */
export function constantValues(graph: Graph): string[] {
  const constants = constantNodes(graph);
  const types = typesOf(graph, constants);
  const inside = new Set(constants);
  const wanted = new Set<string>();
  for (const node of graph.nodes) {
    if (inside.has(node)) continue;
    for (const name of readsOf(node)) if (isPlain(types.get(name))) wanted.add(name);
  }
  return [...wanted];
}

function isPlain(type: DataType | undefined): boolean {
  return type === DataType.FLOAT || type === DataType.INT64;
}

function constantNodes(graph: Graph): Node[] {
  const varying = activationsOf(graph);
  const constants: Node[] = [];
  for (const node of graph.nodes) {
    const own = !readsOf(node).some((name) => varying.has(name));
    if (own && node.domain === "" && !LEFT_ALONE.has(node.opType) && node.opType !== "Constant") {
      constants.push(node);
    } else {
      for (const name of node.outputs) varying.add(name);
    }
  }
  return constants;
}

/** Types of what constant nodes make, as far as the operator says. */
function typesOf(graph: Graph, constants: readonly Node[]): Map<string, DataType> {
  const known = new Map<string, DataType>();
  for (const [name, { dataType }] of graph.initializers) known.set(name, dataType);
  const made = new Map<string, DataType>();
  for (const node of constants) {
    const type = resultType(node, known);
    if (type === undefined) continue;
    for (const name of node.outputs) {
      known.set(name, type);
      made.set(name, type);
    }
  }
  return made;
}

function resultType(node: Node, known: ReadonlyMap<string, DataType>): DataType | undefined {
  switch (node.opType) {
    case "Cast":
      return intAttribute(node, "to", DataType.FLOAT) as DataType;
    case "Shape":
    case "Size":
    case "ArgMax":
    case "ArgMin":
    case "NonZero":
      return DataType.INT64;
    case "Where":
      return known.get(node.inputs[1] ?? "");
    case "ConstantOfShape": {
      const value = node.attributes.get("value");
      return value?.type === "tensor" ? value.value.dataType : DataType.FLOAT;
    }
    case "TopK":
    case "QuantizeLinear":
    case "DynamicQuantizeLinear":
      return undefined;
    default:
      return LOGICAL.test(node.opType) ? DataType.BOOL : known.get(node.inputs[0] ?? "");
  }
}

const LOGICAL = /^(Equal|Greater|Less|GreaterOrEqual|LessOrEqual|And|Or|Xor|Not|IsNaN|IsInf)$/;

/**
 * Replaces computed constants by initializers. A constant much larger than what it is computed
 * from stays as it is: a file should not grow by what a node makes in no time. Packed weights (see
 * `packWeights`) are unpacked: as initializers they can be worked on.
 *
 * @param values results of {@link constantValues}, by name; missing ones stay computed.
 */
export function foldConstants(graph: Graph, values: ReadonlyMap<string, Tensor>): Graph {
  const initializers = new Map(graph.initializers);
  const folded = new Set<string>();
  const sources = sourceSizes(graph);
  for (const name of constantValues(graph)) {
    const tensor = values.get(name);
    if (tensor === undefined) continue;
    if (elementCount(tensor.dims) > Math.max(SMALL, sources.get(name) ?? 0)) continue;
    initializers.set(name, tensor);
    folded.add(name);
  }
  if (folded.size === 0) return graph;
  const nodes = graph.nodes.map((node): Node => {
    if (!node.outputs.some((name) => folded.has(name))) return node;
    // What was folded is made no more; the node goes once nothing else needs it.
    return { ...node, outputs: node.outputs.map((name) => (folded.has(name) ? "" : name)) };
  });
  return removeDeadCode({ ...graph, nodes, initializers });
}

/** Elements of the initializers that each value is computed from; of words, their bits. */
function sourceSizes(graph: Graph): Map<string, number> {
  const sizes = new Map<string, number>();
  for (const [name, { dims, dataType }] of graph.initializers) {
    sizes.set(name, elementCount(dims) * (WORD_BITS.get(dataType) ?? 1));
  }
  for (const node of constantNodes(graph)) {
    const total = readsOf(node).reduce((sum, name) => sum + (sizes.get(name) ?? 0), 0);
    for (const name of node.outputs) sizes.set(name, total);
  }
  return sizes;
}
