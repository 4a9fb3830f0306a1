import assert from "node:assert/strict";
import { test } from "node:test";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import type { Graph, Node } from "../../agent/onnx/graph.ts";
import { recognizeLayerNorms } from "../../agent/onnx/layer-norm.ts";
import { floatTensor, int64Tensor } from "../../agent/onnx/tensor.ts";
import { largestDifference, randomInput, randomValues, runGraph } from "./run-graph.helpers.ts";

const CONSTANTS = {
  gamma: floatTensor([6], randomValues(6, 1)),
  beta: floatTensor([6], randomValues(6, 2)),
  two: floatTensor([], [2]),
  epsilon: floatTensor([], [1e-3]),
  last: int64Tensor([1], [-1]),
};

function build(nodes: readonly Node[], opset = 17): Graph {
  return buildModel({
    inputs: [floatValue("x", ["N", 4, 6])],
    outputs: [floatValue("y", ["N", 4, 6])],
    nodes,
    initializers: CONSTANTS,
    opset,
  });
}

const mean = (from: string, to: string): Node =>
  node("ReduceMean", [from], [to], { axes: [-1], keepdims: 1 });
const add = (a: string, b: string, to: string): Node => node("Add", [a, b], [to]);
const mul = (a: string, b: string, to: string): Node => node("Mul", [a, b], [to]);

const CENTERED = [mean("x", "mean"), node("Sub", ["x", "mean"], ["c"])];
const ROOT = [mean("sq", "var"), add("var", "epsilon", "safe"), node("Sqrt", ["safe"], ["root"])];
const SCALED = [node("Div", ["c", "root"], ["n"]), mul("n", "gamma", "g"), add("g", "beta", "y")];

const WRITTEN: Readonly<Record<string, readonly Node[]>> = {
  PyTorch: [...CENTERED, node("Pow", ["c", "two"], ["sq"]), ...ROOT, ...SCALED],
  "PyTorch with the difference taken twice": [
    ...CENTERED,
    mean("x", "mean2"),
    node("Sub", ["x", "mean2"], ["c2"]),
    mul("c2", "c2", "sq"),
    ...ROOT,
    ...SCALED,
  ],
  "a reciprocal": [
    ...CENTERED,
    mul("c", "c", "sq"),
    ...ROOT,
    node("Reciprocal", ["root"], ["inverse"]),
    mul("inverse", "c", "n"),
    mul("gamma", "n", "g"),
    add("beta", "g", "y"),
  ],
  TensorFlow: [
    ...CENTERED,
    mul("c", "c", "sq"),
    ...ROOT,
    node("Reciprocal", ["root"], ["inverse"]),
    mul("inverse", "gamma", "gain"),
    mul("x", "gain", "scaled"),
    mul("mean", "gain", "moved"),
    node("Sub", ["beta", "moved"], ["rest"]),
    add("scaled", "rest", "y"),
  ],
  "no scale": [
    ...CENTERED,
    mul("c", "c", "sq"),
    ...ROOT,
    node("Div", ["c", "root"], ["n"]),
    add("n", "beta", "y"),
  ],
};

for (const [exporter, nodes] of Object.entries(WRITTEN)) {
  test(`layer norm: as ${exporter} writes it becomes one node with the same answers`, async () => {
    const graph = build(nodes);
    const short = recognizeLayerNorms(graph);
    assert.deepEqual(
      short.nodes.map(({ opType }) => opType),
      ["LayerNormalization"],
    );
    const feeds = { x: randomInput([2, 4, 6], 3) };
    const [a, b] = [await runGraph(graph, feeds), await runGraph(short, feeds)];
    assert.ok(largestDifference(a["y"]!.data, b["y"]!.data) < 1e-5);
  });
}

test("layer norm: the axis is found as an input too (opset 18)", () => {
  const nodes = WRITTEN["PyTorch"]!.map((n) =>
    n.opType === "ReduceMean" ? node("ReduceMean", [n.inputs[0]!, "last"], n.outputs) : n,
  );
  const short = recognizeLayerNorms(build(nodes, 18));
  assert.equal(short.nodes[0]!.opType, "LayerNormalization");
});

test("layer norm: what only looks like one stays", () => {
  const over = (axis: number) =>
    WRITTEN["PyTorch"]!.map((n) =>
      n.opType === "ReduceMean" ? node("ReduceMean", n.inputs, n.outputs, { axes: [axis] }) : n,
    );
  const other = build(over(1));
  assert.equal(recognizeLayerNorms(other), other, "over another axis");
  const older = build(WRITTEN["PyTorch"]!, 13);
  assert.equal(recognizeLayerNorms(older), older, "an opset without the operator");
  const cubed = WRITTEN["PyTorch"]!.map((n) =>
    n.opType === "Pow" ? node("Pow", ["c", "epsilon"], ["sq"]) : n,
  );
  const third = build(cubed);
  assert.equal(recognizeLayerNorms(third), third, "another power");
});
