import assert from "node:assert/strict";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { InferenceSession } from "onnxruntime-node";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import { canonicalizeGelus } from "../../agent/onnx/gelu.ts";
import { type Graph, type Node, readGraph, writeGraph } from "../../agent/onnx/graph.ts";
import { floatTensor } from "../../agent/onnx/tensor.ts";
import { largestDifference, randomInput, runGraph } from "./run-graph.helpers.ts";

const CONSTANTS = {
  root: floatTensor([], [Math.SQRT2]),
  inverse: floatTensor([1], [Math.SQRT1_2]),
  half: floatTensor([], [0.5]),
  one: floatTensor([], [1]),
  two: floatTensor([], [2]),
};

function build(nodes: readonly Node[]): Graph {
  return buildModel({
    inputs: [floatValue("x", ["N", 8])],
    outputs: [floatValue("y", ["N", 8])],
    nodes,
    initializers: CONSTANTS,
  });
}

const mul = (a: string, b: string, to: string): Node => node("Mul", [a, b], [to]);
const erf = (scale: Node): Node[] => [
  scale,
  node("Erf", ["u"], ["e"]),
  node("Add", ["e", "one"], ["s"]),
];
const DIVIDED = erf(node("Div", ["x", "root"], ["u"]));
const MULTIPLIED = erf(mul("inverse", "x", "u"));

for (const [what, nodes] of Object.entries({
  "x · (½ · (1 + erf))": [...DIVIDED, mul("s", "half", "h"), mul("x", "h", "y")],
  "(x / √2 by a product)": [...MULTIPLIED, mul("x", "s", "p"), mul("p", "half", "y")],
  "(½ · x) · (1 + erf), by a product": [...MULTIPLIED, mul("half", "x", "h"), mul("h", "s", "y")],
})) {
  test(`gelu: ${what} is put in the order that ONNX Runtime fuses`, async () => {
    const graph = build(nodes);
    const fused = canonicalizeGelus(graph);
    assert.deepEqual(
      fused.nodes.map(({ opType }) => opType),
      ["Div", "Erf", "Add", "Mul", "Mul"],
    );
    assert.equal(canonicalizeGelus(fused), fused, "nothing is left to do");
    const feeds = { x: randomInput([3, 8], 1) };
    const [a, b] = [await runGraph(graph, feeds), await runGraph(fused, feeds)];
    assert.ok(largestDifference(a["y"]!.data, b["y"]!.data) < 1e-6);
  });
}

test("gelu: PyTorch's order stays as it is, and so does what is no GELU", () => {
  for (const nodes of [
    [...DIVIDED, mul("x", "s", "p"), mul("p", "half", "y")],
    [...DIVIDED, mul("x", "half", "h"), mul("h", "s", "y")],
    [...MULTIPLIED, mul("x", "s", "p"), mul("p", "two", "y")],
    [...MULTIPLIED, mul("u", "s", "p"), mul("p", "half", "y")],
    [...MULTIPLIED, mul("s", "half", "h"), node("Add", ["x", "h"], ["y"])],
  ]) {
    const graph = build(nodes);
    assert.equal(canonicalizeGelus(graph), graph);
  }
});

test("gelu: ONNX Runtime runs the rewritten one as a single node, the other not", async () => {
  const folder = await mkdtemp(join(tmpdir(), "taco-gelu-"));
  try {
    const optimized = async (graph: Graph): Promise<string[]> => {
      const path = join(folder, "optimized.onnx");
      const options = { optimizedModelFilePath: path, logSeverityLevel: 3 } as const;
      await (await InferenceSession.create(writeGraph(graph), options)).release();
      return readGraph(await readFile(path)).nodes.map(({ opType }) => opType);
    };
    const written = build([...MULTIPLIED, mul("s", "half", "h"), mul("x", "h", "y")]);
    assert.equal((await optimized(written)).length, 5);
    assert.deepEqual(await optimized(canonicalizeGelus(written)), ["Gelu"]);
  } finally {
    await rm(folder, { recursive: true });
  }
});
