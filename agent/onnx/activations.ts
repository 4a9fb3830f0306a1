import { removeDeadCode } from "./dead-code.ts";
import { floatAttribute, type Graph, type Node } from "./graph.ts";
import { freeName, indexGraph } from "./query.ts";
import type { Tensor } from "./tensor.ts";

/** A place where a network applies a swish: x·σ(x), or its piecewise relative hard-swish. */
export interface SwishSite {
  /** The value that it is applied to. */
  readonly input: string;
  /** The value that comes out. */
  readonly output: string;
  readonly kind: "swish" | "hard-swish";
}

/** What may take the place of a swish. */
export type SwishReplacement = "hard-swish" | "relu";

/**
 * Finds every swish of a graph, in order: `Mul(x, Sigmoid(x))`, `HardSwish`, and
 * `Mul(x, HardSigmoid(x))` with the slope 1/6 and the offset 1/2 of hard-swish.
 */
export function findSwishes(graph: Graph): SwishSite[] {
  const index = indexGraph(graph);
  return graph.nodes.flatMap((node): SwishSite[] => {
    if (node.domain !== "") return [];
    const output = node.outputs[0]!;
    if (node.opType === "HardSwish")
      return [{ input: node.inputs[0]!, output, kind: "hard-swish" }];
    if (node.opType !== "Mul") return [];
    const [a, b] = node.inputs as readonly [string, string];
    for (const [input, gate] of [
      [a, b],
      [b, a],
    ] as const) {
      const position = index.producer.get(gate);
      const maker = position === undefined ? undefined : graph.nodes[position];
      if (maker?.inputs[0] !== input || maker.domain !== "") continue;
      if (maker.opType === "Sigmoid") return [{ input, output, kind: "swish" }];
      if (isHardSwishGate(maker)) return [{ input, output, kind: "hard-swish" }];
    }
    return [];
  });
}

function isHardSwishGate(node: Node): boolean {
  if (node.opType !== "HardSigmoid") return false;
  const slope = floatAttribute(node, "alpha", 0.2);
  return Math.abs(slope - 1 / 6) < 1e-4 && floatAttribute(node, "beta", 0.5) === 0.5;
}

/**
 * The graph with a cheaper function in the place of its swishes; what a site makes keeps its name.
 *
 * @param outputs which sites, by what they make; all by default.
 * @throws {RangeError} if one of `outputs` is made by no swish.
 */
export function replaceSwish(
  graph: Graph,
  replacement: SwishReplacement,
  outputs?: readonly string[],
): Graph {
  const sites = new Map(findSwishes(graph).map((site) => [site.output, site]));
  for (const name of outputs ?? []) {
    if (!sites.has(name)) throw new RangeError(`expected the output of a swish, got "${name}"`);
  }
  const wanted = new Set(outputs ?? sites.keys());
  const initializers = new Map<string, Tensor>(graph.initializers);
  const nodes = graph.nodes.flatMap((node): Node[] => {
    const site = sites.get(node.outputs[0] ?? "");
    if (!site || !wanted.has(site.output)) return [node];
    return replacement === "relu" ? [plain("Relu", site)] : hardSwish(graph, site);
  });
  return removeDeadCode({ ...graph, nodes, initializers });
}

/** The graph with every HardSwish as x · HardSigmoid(x), in which form integers compute it. */
export function splitHardSwish(graph: Graph): Graph {
  const nodes = graph.nodes.flatMap((node): Node[] =>
    node.domain === "" && node.opType === "HardSwish"
      ? gatedBySlope(graph, {
          input: node.inputs[0]!,
          output: node.outputs[0]!,
          kind: "hard-swish",
        })
      : [node],
  );
  return { ...graph, nodes };
}

function plain(opType: string, { input, output }: SwishSite): Node {
  return {
    name: output,
    opType,
    domain: "",
    inputs: [input],
    outputs: [output],
    attributes: new Map(),
  };
}

/** x · HardSigmoid(x), which every opset knows; HardSwish is one node from opset 14 on. */
function hardSwish(graph: Graph, site: SwishSite): Node[] {
  return graph.opset >= 14 ? [plain("HardSwish", site)] : gatedBySlope(graph, site);
}

function gatedBySlope(graph: Graph, site: SwishSite): Node[] {
  const gate = freeName(graph, `${site.output}_gate`);
  const attributes = new Map([
    ["alpha", { type: "float", value: 1 / 6 } as const],
    ["beta", { type: "float", value: 0.5 } as const],
  ]);
  const sigmoid = plain("HardSigmoid", { ...site, output: gate });
  return [
    { ...sigmoid, attributes },
    { ...plain("Mul", site), inputs: [site.input, gate] },
  ];
}
