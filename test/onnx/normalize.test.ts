import assert from "node:assert/strict";
import { test } from "node:test";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import { removeIdentities } from "../../agent/onnx/identity.ts";
import { normalizeGraph } from "../../agent/onnx/normalize.ts";
import { unshareVectors } from "../../agent/onnx/shared-initializers.ts";
import { floatTensor, int64Tensor } from "../../agent/onnx/tensor.ts";
import { randomInput, randomValues, runGraph } from "./run-graph.helpers.ts";

test("identity: nodes that hand on what they get go, those that change it stay", async () => {
  const graph = buildModel({
    inputs: [floatValue("x", ["N", 3, 4, 4])],
    outputs: [floatValue("y", null)],
    nodes: [
      node("Pad", ["x", "nothing"], ["a"]),
      node("AveragePool", ["a"], ["b"], { kernel_shape: [1, 1], strides: [1, 1] }),
      node("Transpose", ["b"], ["c"], { perm: [0, 1, 2, 3] }),
      node("Dropout", ["c", "ratio", "training"], ["d"]),
      node("Concat", ["d"], ["e"], { axis: 1 }),
      node("MaxPool", ["e"], ["f"], { kernel_shape: [1, 1], strides: [2, 2] }),
      node("Pad", ["f", "some"], ["g"]),
      node("Transpose", ["g"], ["h"], { perm: [0, 1, 3, 2] }),
      node("Identity", ["h"], ["y"]),
    ],
    initializers: {
      nothing: int64Tensor([8], new Array<number>(8).fill(0)),
      some: int64Tensor([8], [0, 0, 1, 0, 0, 0, 0, 2]),
      ratio: floatTensor([], [0.3]),
      training: { dims: [], dataType: 9, data: new Uint8Array(1) },
    },
  });
  const short = removeIdentities(graph);
  assert.deepEqual(
    short.nodes.map(({ opType }) => opType),
    ["MaxPool", "Pad", "Transpose", "Identity"],
  );
  const feeds = { x: randomInput([2, 3, 4, 4], 3) };
  assert.deepEqual((await runGraph(short, feeds))["y"], (await runGraph(graph, feeds))["y"]);
});

test("transposes: two in a row become one, those that cancel out go", async () => {
  const graph = buildModel({
    inputs: [floatValue("x", ["N", 2, 3, 4])],
    outputs: [floatValue("y", null)],
    nodes: [
      node("Transpose", ["x"], ["a"], { perm: [0, 2, 3, 1] }),
      node("Transpose", ["a"], ["b"], { perm: [0, 3, 1, 2] }),
      node("Relu", ["b"], ["c"]),
      node("Transpose", ["c"], ["d"], { perm: [0, 2, 3, 1] }),
      node("Transpose", ["d"], ["e"], { perm: [0, 2, 3, 1] }),
      node("Transpose", ["e"], ["f"], { perm: [1, 0, 2, 3] }),
      node("ReduceMax", ["d"], ["m"], { axes: [0, 1, 2, 3], keepdims: 1 }),
      node("Add", ["f", "m"], ["y"]),
    ],
  });
  const short = normalizeGraph(graph);
  assert.deepEqual(
    short.nodes.map(({ opType }) => opType),
    ["Relu", "Transpose", "Transpose", "ReduceMax", "Add"],
  );
  const feeds = { x: randomInput([2, 2, 3, 4], 5) };
  assert.deepEqual((await runGraph(short, feeds))["y"], (await runGraph(graph, feeds))["y"]);
});

test("shared vectors: every reader gets its own, matrices and scalars stay one", async () => {
  const graph = buildModel({
    inputs: [floatValue("x", ["N", 3])],
    outputs: [floatValue("y", null)],
    nodes: [
      node("Gemm", ["x", "w", "zero"], ["a"]),
      node("Mul", ["a", "k"], ["b"]),
      node("Gemm", ["b", "w", "zero"], ["c"]),
      node("Add", ["c", "zero"], ["d"]),
      node("Mul", ["d", "k"], ["y"]),
    ],
    initializers: {
      w: floatTensor([3, 3], randomValues(9, 1)),
      zero: floatTensor([3], randomValues(3, 2)),
      k: floatTensor([], [2]),
    },
  });
  const own = unshareVectors(graph);
  const biases = [own.nodes[0]!.inputs[2], own.nodes[2]!.inputs[2], own.nodes[3]!.inputs[1]];
  assert.equal(new Set(biases).size, 3);
  assert.ok(own.nodes.every((n) => n.opType !== "Gemm" || n.inputs[1] === "w"));
  assert.equal(unshareVectors(own), own);
  const feeds = { x: randomInput([2, 3], 4) };
  assert.deepEqual(await runGraph(own, feeds), await runGraph(graph, feeds));
});
