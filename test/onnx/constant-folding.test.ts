import assert from "node:assert/strict";
import { test } from "node:test";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import { constantValues, foldConstants } from "../../agent/onnx/constant-folding.ts";
import { floatTensor, int64Tensor } from "../../agent/onnx/tensor.ts";
import { randomValues } from "./run-graph.helpers.ts";

const GRAPH = buildModel({
  inputs: [floatValue("x", ["N", 4])],
  outputs: [floatValue("y", null)],
  nodes: [
    node("Transpose", ["w"], ["turned"], { perm: [1, 0] }),
    node("Mul", ["turned", "two"], ["doubled"]),
    node("MatMul", ["x", "doubled"], ["product"]),
    node("Equal", ["one", "one"], ["yes"]),
    node("Cast", ["yes"], ["byte"], { to: 2 }),
    node("Cast", ["byte"], ["whole"], { to: 7 }),
    node("Expand", ["two", "large"], ["wide"]),
    node("Concat", ["whole", "minus"], ["target"], { axis: 0 }),
    node("Add", ["product", "wide"], ["added"]),
    node("Reshape", ["added", "target"], ["y"]),
  ],
  initializers: {
    w: floatTensor([3, 4], randomValues(12, 1)),
    two: floatTensor([1, 1], [2]),
    one: int64Tensor([1], [1]),
    large: int64Tensor([2], [30_000, 3]),
    minus: int64Tensor([1], [-1]),
  },
});

test("constants: what the varying part reads is named, float32 and int64 alone", () => {
  assert.deepEqual(constantValues(GRAPH), ["doubled", "wide", "target"]);
});

test("constants: are folded where the file does not grow by it", () => {
  const values = new Map([
    ["doubled", floatTensor([4, 3], randomValues(12, 2))],
    ["wide", floatTensor([30_000, 3], new Float32Array(90_000))],
    ["target", int64Tensor([2], [1, -1])],
  ]);
  const folded = foldConstants(GRAPH, values);
  assert.deepEqual(
    folded.nodes.map(({ opType }) => opType),
    ["MatMul", "Expand", "Add", "Reshape"],
  );
  assert.ok(folded.initializers.has("doubled") && !folded.initializers.has("w"));
  assert.equal(foldConstants(GRAPH, new Map()), GRAPH);
});
