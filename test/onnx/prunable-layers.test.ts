import assert from "node:assert/strict";
import { test } from "node:test";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import type { Graph } from "../../agent/onnx/graph.ts";
import { countParameters } from "../../agent/onnx/initializers.ts";
import {
  findPrunableLayers,
  readBias,
  readWeightMatrix,
  writeBias,
  writeWeightMatrix,
} from "../../agent/onnx/prunable-layers.ts";
import { DataType, floatTensor, toFloat32, withFloatValues } from "../../agent/onnx/tensor.ts";
import { BENCH_ABSENT, benchPath } from "../bench-data.helpers.ts";
import {
  BENCH_GRAPHS,
  BENCH_MODELS,
  batchDims,
  benchGraph,
  largestDifference,
  randomInput,
  runGraph,
} from "./run-graph.helpers.ts";

/** Layers a graph must show: Convs, Gemms and MatMuls with a constant. */
const EXPECTED: Record<string, number> = {
  "models/cifar_resnet20": 20,
  "models/cifar_resnet56": 56,
  "models/efficientnet_b0_imagenet1k": 82,
  "models/mobilenetv1_0.25_imagenet1k": 28,
  "models/mobilenetv2_1.0_imagenet1k": 53,
  "models/mobilenetv2_inat_bird": 53,
  "models/squeezenet1.1_imagenet1k": 26,
  // Patch embedding, 12 × (qkv, projection, two of the MLP), head.
  "models/vit_tiny_patch16_224_imagenet1k": 50,
};

for (const name of [...BENCH_MODELS, ...BENCH_GRAPHS]) {
  const absent = benchPath(`${name}.onnx`) === undefined;
  test(`layers: ${name} keeps its function when weights and biases are read and written`, {
    skip: absent && BENCH_ABSENT,
  }, async () => {
    const graph = benchGraph(name);
    const layers = findPrunableLayers(graph);
    const expected = EXPECTED[name];
    if (expected !== undefined) assert.equal(layers.length, expected);
    const positions = layers.map(({ nodeIndex }) => nodeIndex);
    assert.deepEqual(
      positions,
      [...positions].sort((a, b) => a - b),
    );
    let copy: Graph = graph;
    for (const layer of layers) {
      copy = writeWeightMatrix(copy, layer, readWeightMatrix(graph, layer));
      const bias = readBias(graph, layer);
      if (bias) copy = writeBias(copy, layer, bias);
    }
    const input = graph.inputs[0]!.name;
    const feeds = { [input]: randomInput(batchDims(graph, 1), 5) };
    const [before, after] = [await runGraph(graph, feeds), await runGraph(copy, feeds)];
    assert.deepEqual(Object.values(after)[0]!.data, Object.values(before)[0]!.data);
    const pruned = layers.reduce(
      (g, layer) =>
        writeWeightMatrix(g, layer, new Float32Array(layer.outFeatures * layer.inFeaturesPerGroup)),
      graph,
    );
    const weights = new Set(layers.map(({ weightName }) => weightName));
    let nonzero = 0;
    for (const weight of weights) {
      nonzero += toFloat32(graph.initializers.get(weight)!).filter((value) => value !== 0).length;
    }
    assert.equal(countParameters(graph).nonzero - countParameters(pruned).nonzero, nonzero);
    assert.equal(countParameters(pruned).parameters, countParameters(graph).parameters);
  });
}

test("layers: bench ViT reports the biases of its Linear layers", {
  skip: benchPath("models/vit_tiny_patch16_224_imagenet1k.onnx") === undefined && BENCH_ABSENT,
}, () => {
  const layers = findPrunableLayers(benchGraph("models/vit_tiny_patch16_224_imagenet1k"));
  assert.ok(layers.every(({ biasName }) => biasName !== null));
  assert.equal(layers.filter(({ biasNodeIndex }) => biasNodeIndex !== null).length, 48);
});

/** y = x·A + a; z = relu(y)·B with Gemm; the weight A is read twice. */
function sharedGraph(): Graph {
  return buildModel({
    inputs: [floatValue("x", ["N", 2, 3])],
    outputs: [floatValue("y", null), floatValue("z", null)],
    nodes: [
      node("MatMul", ["x", "A"], ["product"]),
      node("Add", ["a", "product"], ["y"]),
      node("Relu", ["y"], ["r"]),
      node("MatMul", ["r", "A"], ["z"]),
    ],
    initializers: {
      A: floatTensor([3, 3], [1, 2, 3, 4, 5, 6, 7, 8, 9]),
      a: floatTensor([3], [1, 2, 3]),
    },
  });
}

test("layers: a weight with two readers says so, and an Add behind a MatMul is its bias", () => {
  const [first, second] = findPrunableLayers(sharedGraph());
  assert.deepEqual(first!.sharedWith, ["z"]);
  assert.deepEqual(second!.sharedWith, ["product"]);
  assert.equal(first!.biasName, "a");
  assert.equal(first!.biasNodeIndex, 1);
  assert.equal(first!.biasedOutputName, "y");
  assert.equal(second!.biasName, null);
});

test("layers: W holds one output feature a row whatever the storage", () => {
  const graph = sharedGraph();
  const [layer] = findPrunableLayers(graph);
  assert.deepEqual([...readWeightMatrix(graph, layer!)], [1, 4, 7, 2, 5, 8, 3, 6, 9]);
  const written = writeWeightMatrix(graph, layer!, Float32Array.of(0, 4, 7, 2, 5, 8, 3, 6, 9));
  assert.deepEqual([...toFloat32(written.initializers.get("A")!)], [0, 2, 3, 4, 5, 6, 7, 8, 9]);
  assert.equal(toFloat32(graph.initializers.get("A")!)[0], 1, "the old graph is unchanged");
  assert.throws(
    () => writeWeightMatrix(graph, layer!, new Float32Array(8)),
    /expected 3 × 3, got 8/,
  );
});

test("layers: a MatMul without a bias gets one by an Add", async () => {
  const graph = sharedGraph();
  const second = findPrunableLayers(graph)[1]!;
  const shifted = writeBias(graph, second, Float32Array.of(10, 20, 30));
  const feeds = { x: randomInput([2, 2, 3], 4) };
  const before = (await runGraph(graph, feeds))["z"]!.data;
  const after = (await runGraph(shifted, feeds))["z"]!.data;
  assert.ok(
    largestDifference(
      after,
      before.map((value, i) => value + 10 * ((i % 3) + 1)),
    ) < 1e-5,
  );
  assert.deepEqual(readBias(shifted, findPrunableLayers(shifted)[1]!), Float32Array.of(10, 20, 30));
});

test("layers: a bias that others read too is copied before it changes", () => {
  const graph = buildModel({
    inputs: [floatValue("x", ["N", 2])],
    outputs: [floatValue("y", null), floatValue("z", null)],
    nodes: [
      node("Gemm", ["x", "A", "a"], ["y"], { transB: 1 }),
      node("Gemm", ["x", "B", "a"], ["z"], { transB: 1 }),
    ],
    initializers: {
      A: floatTensor([2, 2], [1, 2, 3, 4]),
      B: floatTensor([2, 2], [5, 6, 7, 8]),
      a: floatTensor([2], [1, 2]),
    },
  });
  const changed = writeBias(graph, findPrunableLayers(graph)[0]!, Float32Array.of(9, 9));
  const [first, second] = findPrunableLayers(changed);
  assert.deepEqual(readBias(changed, first!), Float32Array.of(9, 9));
  assert.deepEqual(readBias(changed, second!), Float32Array.of(1, 2));
});

test("layers: float16 weights are written back as float16", () => {
  const graph = sharedGraph();
  const half = withFloatValues(
    { dims: [3, 3], dataType: DataType.FLOAT16, data: new Uint16Array(9) },
    Float32Array.of(1, 2, 3, 4, 5, 6, 7, 8, 0.1),
  );
  const halved = { ...graph, initializers: new Map(graph.initializers).set("A", half) };
  const layer = findPrunableLayers(halved)[0]!;
  const again = writeWeightMatrix(halved, layer, readWeightMatrix(halved, layer));
  assert.equal(again.initializers.get("A")!.dataType, DataType.FLOAT16);
  assert.deepEqual(again.initializers.get("A")!.data, half.data);
});
