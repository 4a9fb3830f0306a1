import assert from "node:assert/strict";
import { test } from "node:test";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import { type Graph, readGraph, writeGraph } from "../../agent/onnx/graph.ts";
import { normalizeGraph } from "../../agent/onnx/normalize.ts";
import { raiseOpset } from "../../agent/onnx/opset.ts";
import { findPrunableLayers } from "../../agent/onnx/prunable-layers.ts";
import { checkTopologicalOrder } from "../../agent/onnx/query.ts";
import { int64Tensor } from "../../agent/onnx/tensor.ts";
import { convnext } from "../../scripts/networks/convnext.ts";
import { resnet } from "../../scripts/networks/resnet.ts";
import { visionTransformer } from "../../scripts/networks/vision-transformer.ts";
import { largestDifference, randomInput, runGraph } from "./run-graph.helpers.ts";

const OPSETS = [11, 13, 17, 21];
const SMALL = { classes: 5, size: 32 };

const NETWORKS: Readonly<Record<string, (opset: number) => Graph>> = {
  resnet: (opset) => resnet("r", { ...SMALL, opset, kind: "basic", depths: [1, 1], width: 8 }),
  convnext: (opset) => convnext("c", { ...SMALL, opset, widths: [8, 16], depths: [1, 1] }),
  transformer: (opset) =>
    visionTransformer("t", { ...SMALL, opset, width: 16, depth: 2, heads: 2, patch: 8 }),
};

for (const [kind, build] of Object.entries(NETWORKS)) {
  test(`opset: a ${kind} written at ${OPSETS.join(", ")} is one network`, async () => {
    const feeds = { input: randomInput([2, 3, 32, 32], 1) };
    const first = await runGraph(build(17), feeds);
    const layers = findPrunableLayers(normalizeGraph(build(17))).map(({ name }) => name);
    for (const opset of OPSETS) {
      const graph = readGraph(writeGraph(build(opset)));
      assert.equal(graph.opset, opset);
      const normal = normalizeGraph(graph);
      checkTopologicalOrder(normal);
      assert.equal(normal.opset, Math.max(17, opset));
      assert.deepEqual(
        findPrunableLayers(normal).map(({ name }) => name),
        layers,
      );
      for (const same of [graph, normal]) {
        const result = await runGraph(same, feeds);
        assert.ok(largestDifference(result["logits"]!.data, first["logits"]!.data) < 1e-5);
      }
    }
  });
}

function single(opType: string, opset: number, attributes: Record<string, number | string>): Graph {
  return buildModel({
    inputs: [floatValue("x", ["N", 3, 4])],
    outputs: [floatValue("y", null)],
    nodes: [node(opType, ["x"], ["y"], attributes)],
    opset,
    irVersion: 6,
  });
}

test("opset: a Softmax over several axes at once has no younger form, and the graph stays", () => {
  const several = single("Softmax", 11, { axis: 1 });
  assert.equal(raiseOpset(several), several);
  const last = raiseOpset(single("Softmax", 11, { axis: 2 }));
  assert.deepEqual(last.nodes[0]!.attributes.get("axis"), { type: "int", value: -1 });
  assert.equal(last.opset, 17);
  assert.equal(last.irVersion, 8);
});

test("opset: what has changed its meaning, or is not known, keeps the graph where it is", () => {
  for (const graph of [
    single("RoiAlign", 13, {}),
    single("Scatter", 11, {}),
    single("Dropout", 11, {}),
    single("Relu", 10, {}),
  ]) {
    assert.equal(raiseOpset(graph), graph);
  }
});

test("opset: axes and sizes become inputs where they are given", async () => {
  const graph = buildModel({
    inputs: [floatValue("x", ["N", 4, 1])],
    outputs: [floatValue("y", null)],
    nodes: [
      node("Squeeze", ["x"], ["flat"], { axes: [2] }),
      node("Split", ["flat"], ["a", "b"], { axis: 1, split: [1, 3] }),
      node("Split", ["b"], ["b1", "b2", "b3"], { axis: 1 }),
      node("Unsqueeze", ["b1"], ["tall"], { axes: [0] }),
      node("ReduceSum", ["tall"], ["sum"], { axes: [0], keepdims: 0 }),
      node("Concat", ["a", "sum", "b3"], ["y"], { axis: 1 }),
    ],
    opset: 11,
    irVersion: 6,
    initializers: { flat_axes: int64Tensor([1], [7]) },
  });
  const feeds = { x: randomInput([2, 4, 1], 2) };
  const raised = raiseOpset(graph);
  assert.equal(raised.opset, 17);
  const [a, b] = [await runGraph(graph, feeds), await runGraph(raised, feeds)];
  assert.deepEqual(a["y"], b["y"]);
});
