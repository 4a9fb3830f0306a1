import assert from "node:assert/strict";
import { test } from "node:test";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import type { Graph } from "../../agent/onnx/graph.ts";
import { featureGraph, findHead, type Head, readHead, replaceHead } from "../../agent/onnx/head.ts";
import { withExtraOutputs } from "../../agent/onnx/subgraph.ts";
import { floatTensor } from "../../agent/onnx/tensor.ts";
import { BENCH_ABSENT, benchPath } from "../bench-data.helpers.ts";
import {
  BENCH_GRAPHS,
  BENCH_MODELS,
  batchDims,
  benchGraph,
  largestDifference,
  randomInput,
  randomValues,
  runGraph,
} from "./run-graph.helpers.ts";

function headOf(graph: Graph): Head {
  const head = findHead(graph);
  assert.ok(!("reason" in head), "reason" in head ? head.reason : "");
  return head;
}

for (const name of [...BENCH_MODELS, ...BENCH_GRAPHS]) {
  const absent = benchPath(`${name}.onnx`) === undefined;
  test(`head: ${name} with three of its own classes answers as before for them`, {
    skip: absent && BENCH_ABSENT,
  }, async () => {
    const graph = benchGraph(name);
    const head = headOf(graph);
    const squeezenet = name.includes("squeezenet");
    assert.equal(head.kind, squeezenet ? "conv" : "linear");
    assert.equal(head.exact, !squeezenet);
    const chosen = [5, 0, 9];
    const { W, b } = readHead(graph, head);
    const few = Float32Array.from(
      chosen.flatMap((c) => [...W.slice(c * head.features, (c + 1) * head.features)]),
    );
    const small = replaceHead(
      graph,
      head,
      few,
      Float32Array.from(chosen, (c) => b[c]!),
    );
    assert.deepEqual(
      small.outputs.map(({ name: n, dims }) => [n, dims]),
      [["logits", ["N", 3]]],
    );
    const input = graph.inputs[0]!.name;
    const feeds = { [input]: randomInput(batchDims(graph, 2), 2) };
    const logits = (await runGraph(small, feeds))["logits"]!;
    assert.deepEqual(logits.dims, [2, 3]);
    const features = featureGraph(graph, head);
    const matrix = (await runGraph(features.graph, feeds))[features.featuresName]!;
    assert.deepEqual(matrix.dims, [2, head.features]);
    if (!head.exact) return;
    const whole = Object.values(await runGraph(graph, feeds))[0]!;
    const expected = [0, 1].flatMap((n) => chosen.map((c) => whole.data[n * head.classes + c]!));
    assert.ok(largestDifference(logits.data, expected) < 1e-4);
  });
}

test("head: a trailing softmax is cut off and reported", async () => {
  const graph = buildModel({
    inputs: [floatValue("x", ["N", 3])],
    outputs: [floatValue("probabilities", ["N", 2])],
    nodes: [
      node("MatMul", ["x", "W"], ["product"]),
      node("Add", ["product", "b"], ["sum"]),
      node("Softmax", ["sum"], ["probabilities"], { axis: 1 }),
    ],
    initializers: {
      W: floatTensor([3, 2], [1, 2, 3, 4, 5, 6]),
      b: floatTensor([2], [0.5, -0.5]),
    },
  });
  const head = headOf(graph);
  assert.equal(head.cut, "Softmax");
  assert.equal(head.logitsName, "sum");
  const { W, b } = readHead(graph, head);
  assert.deepEqual([...W], [1, 3, 5, 2, 4, 6]);
  const feeds = { x: randomInput([2, 3], 1) };
  const logits = (await runGraph(replaceHead(graph, head, W, b), feeds))["logits"]!.data;
  const sum = (await runGraph(withExtraOutputs(graph, ["sum"]), feeds))["sum"]!.data;
  assert.ok(largestDifference(logits, sum) < 1e-5);
});

test("head: alpha and beta of a Gemm are part of its weights", () => {
  const graph = buildModel({
    inputs: [floatValue("x", ["N", 2])],
    outputs: [floatValue("logits", ["N", 1])],
    nodes: [
      node("Gemm", ["x", "W", "b"], ["logits"], { alpha: 0.5, beta: { type: "float", value: 2 } }),
    ],
    initializers: { W: floatTensor([2, 1], [4, 6]), b: floatTensor([1], [3]) },
  });
  const { W, b } = readHead(graph, headOf(graph));
  assert.deepEqual([[...W], [...b]], [[2, 3], [6]]);
});

test("head: a 1×1 convolution behind the pool is an exact conv head", async () => {
  const graph = buildModel({
    inputs: [floatValue("x", ["N", 3, 4, 4])],
    outputs: [floatValue("y", ["N", 2])],
    nodes: [
      node("GlobalAveragePool", ["x"], ["pooled"]),
      node("Conv", ["pooled", "W"], ["conv"]),
      node("Flatten", ["conv"], ["y"]),
    ],
    initializers: { W: floatTensor([2, 3, 1, 1], randomValues(6, 8)) },
  });
  const head = headOf(graph);
  assert.deepEqual([head.kind, head.exact, head.biasName], ["conv", true, null]);
  const { W, b } = readHead(graph, head);
  const feeds = { x: randomInput([2, 3, 4, 4], 3) };
  const after = (await runGraph(replaceHead(graph, head, W, b), feeds))["logits"]!.data;
  assert.ok(largestDifference(after, (await runGraph(graph, feeds))["y"]!.data) < 1e-5);
});

test("head: a network that is no classifier is refused with the reason", () => {
  const graph = buildModel({
    inputs: [floatValue("x", ["N", 3, 4, 4])],
    outputs: [floatValue("y", null)],
    nodes: [node("Relu", ["x"], ["y"])],
  });
  const head = findHead(graph);
  assert.match("reason" in head ? head.reason : "", /comes from Relu; expected a Gemm/);
});
