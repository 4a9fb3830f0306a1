import { node as makeNode } from "./builder.ts";
import { removeDeadCode } from "./dead-code.ts";
import type { Graph, Node } from "./graph.ts";
import { consumersOf, freeName, type GraphIndex, indexGraph, producerOf } from "./query.ts";
import { floatTensor, isFloatType, type Tensor, toFloat32 } from "./tensor.ts";

/**
 * Writes every GELU that goes through the error function, x · ½ · (1 + erf(x / √2)), in the one
 * order of operations that ONNX Runtime fuses into a single kernel: PyTorch's. Other exporters
 * multiply in another order, or by 1/√2 in place of dividing by √2, and are then run one
 * operation at a time.
 */
export function canonicalizeGelus(graph: Graph): Graph {
  const index = indexGraph(graph);
  const gelus = new Map<string, { input: string; erf: Node }>();
  for (const erf of graph.nodes) {
    const gelu = erf.opType === "Erf" ? geluOf(graph, index, erf) : undefined;
    if (gelu && !gelu.canonical) gelus.set(gelu.output, { input: gelu.input, erf });
  }
  if (gelus.size === 0) return graph;
  const initializers = new Map<string, Tensor>(graph.initializers);
  const constant = (base: string, value: number): string => {
    const name = freeName(graph, base);
    initializers.set(name, floatTensor([], [value]));
    return name;
  };
  const root = constant("gelu_sqrt_2", Math.SQRT2);
  const one = constant("gelu_one", 1);
  const half = constant("gelu_half", 0.5);
  const nodes = graph.nodes.flatMap((node): Node[] => {
    const output = node.outputs[0] ?? "";
    const gelu = gelus.get(output);
    if (gelu === undefined) return [node];
    const { input } = gelu;
    const inner = (part: string) => freeName(graph, `${output}_${part}`);
    const [scaled, erf, shifted, product] = ["scaled", "erf", "shifted", "product"].map(inner);
    return [
      makeNode("Div", [input, root], [scaled!]),
      makeNode("Erf", [scaled!], [erf!]),
      makeNode("Add", [erf!, one], [shifted!]),
      makeNode("Mul", [input, shifted!], [product!]),
      makeNode("Mul", [product!, half], [output]),
    ];
  });
  return removeDeadCode({ ...graph, nodes, initializers });
}

interface Gelu {
  readonly input: string;
  readonly output: string;
  /** Whether it is written as ONNX Runtime wants it. */
  readonly canonical: boolean;
}

/** The GELU around an error function; undefined where it is something else. */
function geluOf(graph: Graph, index: GraphIndex, erf: Node): Gelu | undefined {
  const scaled = producerOf(graph, index, erf.inputs[0]!);
  const inner = scaled && scaledInput(graph, scaled);
  const shifted = onlyReader(graph, index, erf.outputs[0]!);
  if (!inner || shifted?.opType !== "Add" || !hasScalar(graph, shifted, 1)) return undefined;
  // From 1 + erf on, x and ½ are multiplied in, in any order, alone or together.
  let current = shifted;
  let missing = { input: true, half: true };
  const order: string[] = [];
  while (missing.input || missing.half) {
    const next = onlyReader(graph, index, current.outputs[0]!);
    if (next?.opType !== "Mul") return undefined;
    const other = next.inputs.find((name) => name !== current.outputs[0]);
    if (other === undefined) return undefined;
    const factors = factorsOf(graph, index, other, inner.input);
    if (factors === undefined) return undefined;
    if ((factors.input && !missing.input) || (factors.half && !missing.half)) return undefined;
    missing = {
      input: missing.input && !factors.input,
      half: missing.half && !factors.half,
    };
    order.push(factors.input && factors.half ? "both" : factors.input ? "input" : "half");
    current = next;
  }
  const known = order.join() === "input,half" || order.join() === "both";
  return {
    input: inner.input,
    output: current.outputs[0]!,
    canonical: known && inner.divided,
  };
}

/** x / √2, or x · 1/√2. */
function scaledInput(graph: Graph, node: Node): { input: string; divided: boolean } | undefined {
  const [a, b] = node.inputs as [string, string];
  if (node.opType === "Div" && isScalar(graph, b, Math.SQRT2)) return { input: a, divided: true };
  if (node.opType !== "Mul") return undefined;
  if (isScalar(graph, b, Math.SQRT1_2)) return { input: a, divided: false };
  return isScalar(graph, a, Math.SQRT1_2) ? { input: b, divided: false } : undefined;
}

/** Which of x and ½ a value is the product of. */
function factorsOf(
  graph: Graph,
  index: GraphIndex,
  value: string,
  input: string,
): { input: boolean; half: boolean } | undefined {
  if (value === input) return { input: true, half: false };
  if (isScalar(graph, value, 0.5)) return { input: false, half: true };
  const node = producerOf(graph, index, value);
  if (node?.opType !== "Mul" || !node.inputs.includes(input)) return undefined;
  return hasScalar(graph, node, 0.5) ? { input: true, half: true } : undefined;
}

function hasScalar(graph: Graph, node: Node, value: number): boolean {
  return node.inputs.some((name) => isScalar(graph, name, value));
}

/** Whether a name is a single constant, as exactly as exporters round it. */
function isScalar(graph: Graph, name: string, value: number): boolean {
  const tensor = graph.initializers.get(name);
  if (tensor?.data.length !== 1 || !isFloatType(tensor.dataType)) return false;
  return Math.abs(toFloat32(tensor)[0]! - value) < 2e-5 * Math.abs(value);
}

function onlyReader(graph: Graph, index: GraphIndex, value: string): Node | undefined {
  const [reader, ...others] = consumersOf(graph, index, value);
  return others.length > 0 || index.outputs.has(value) ? undefined : reader;
}
