import { create } from "@bufbuild/protobuf";
import { ValueInfoProtoSchema } from "onnx-buf";
import type { Graph, Node, ValueInfo } from "./graph.ts";
import { readsOf } from "./query.ts";
import { DataType } from "./tensor.ts";

/**
 * The part of a graph that computes some values from others: the nodes between them, with the
 * initializers they need. Nodes that depend on neither (constants) come along.
 *
 * @param inputNames values fed by the caller. Original graph inputs among them keep their type;
 * the others take the graph's stated type, or float32 of unknown shape.
 * @param outputNames values handed out; one that is itself an input is passed by an Identity.
 * @param inputInfos types of new inputs where the graph states none.
 * @throws {RangeError} if an output needs a graph input that is not among `inputNames`, or a
 * name is unknown.
 */
export function extractSubgraph(
  graph: Graph,
  inputNames: readonly string[],
  outputNames: readonly string[],
  inputInfos: ReadonlyMap<string, ValueInfo> = new Map(),
): Graph {
  const given = new Set(inputNames);
  const needed = new Set(outputNames.filter((name) => !given.has(name)));
  const kept: Node[] = [];
  for (const node of [...graph.nodes].reverse()) {
    const makes = node.outputs.filter((name) => needed.has(name));
    if (makes.length === 0) continue;
    // Its other outputs would be made a second time beside the fed values of the same name.
    kept.push(hideOutputs(node, given));
    for (const name of makes) needed.delete(name);
    for (const name of readsOf(node)) if (!given.has(name)) needed.add(name);
  }
  const initializers = new Map([...graph.initializers].filter(([name]) => needed.has(name)));
  const missing = [...needed].filter((name) => !initializers.has(name));
  if (missing.length > 0) {
    throw new RangeError(
      `[${outputNames}] cannot be computed from [${inputNames}] alone: also needs [${missing}]`,
    );
  }
  const passed = outputNames.filter((name) => given.has(name));
  const passName = (name: string): string => `${name}_passed`;
  const nodes = kept.reverse();
  for (const name of passed) nodes.push(identity(name, passName(name)));
  const info = (name: string): ValueInfo => inputInfos.get(name) ?? stated(graph, name);
  const made = new Set(nodes.flatMap(({ outputs }) => outputs));
  return {
    ...graph,
    nodes,
    initializers,
    inputs: inputNames.map(info),
    outputs: outputNames.map((name) =>
      given.has(name) ? { ...info(name), name: passName(name) } : stated(graph, name),
    ),
    valueInfos: new Map([...graph.valueInfos].filter(([name]) => made.has(name))),
  };
}

/** The graph with more values handed out, after its own outputs; repeated names are left out. */
export function withExtraOutputs(graph: Graph, names: readonly string[]): Graph {
  const outputs = [...graph.outputs];
  for (const name of names) {
    if (!outputs.some((output) => output.name === name)) outputs.push(stated(graph, name));
  }
  return { ...graph, outputs };
}

/** The graph with nothing but some values handed out, whose types are left for the runtime to infer. */
export function withOnlyOutputs(graph: Graph, names: readonly string[]): Graph {
  const outputs = names.map((name): ValueInfo => {
    return { name, dataType: DataType.UNDEFINED, dims: null, shell: create(ValueInfoProtoSchema) };
  });
  return { ...graph, outputs };
}

/** What the graph states about a value; float32 of unknown shape where it states nothing. */
function stated(graph: Graph, name: string): ValueInfo {
  const own = [...graph.inputs, ...graph.outputs].find((value) => value.name === name);
  return own ?? graph.valueInfos.get(name) ?? { name, dataType: DataType.FLOAT, dims: null };
}

function hideOutputs(node: Node, hidden: ReadonlySet<string>): Node {
  if (!node.outputs.some((name) => hidden.has(name))) return node;
  return {
    ...node,
    outputs: node.outputs.map((name) => (hidden.has(name) ? `${name}_unused` : name)),
  };
}

function identity(from: string, to: string): Node {
  return {
    name: to,
    opType: "Identity",
    domain: "",
    inputs: [from],
    outputs: [to],
    attributes: new Map(),
  };
}
