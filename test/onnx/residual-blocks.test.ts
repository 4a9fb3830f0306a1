import assert from "node:assert/strict";
import { test } from "node:test";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import type { Graph, Node } from "../../agent/onnx/graph.ts";
import {
  findPrunableLayers,
  readBias,
  writeBias,
  writeWeightMatrix,
} from "../../agent/onnx/prunable-layers.ts";
import {
  dropBlock,
  findResidualBlocks,
  type ResidualBlock,
} from "../../agent/onnx/residual-blocks.ts";
import { floatTensor } from "../../agent/onnx/tensor.ts";
import { BENCH_ABSENT, benchPath } from "../bench-data.helpers.ts";
import { outputDifference } from "./channel-cuts.helpers.ts";
import { foldedBenchGraph } from "./folded-graph.helpers.ts";
import { randomValues } from "./run-graph.helpers.ts";

/** Blocks of each network: those without a projection on the shortcut. */
const BLOCKS: Record<string, number> = {
  "models/cifar_resnet20": 7,
  "models/cifar_resnet56": 25,
  "models/efficientnet_b0_imagenet1k": 9,
  "models/mobilenetv1_0.25_imagenet1k": 0,
  "models/mobilenetv2_1.0_imagenet1k": 10,
  "models/mobilenetv2_inat_bird": 10,
  "models/squeezenet1.1_imagenet1k": 0,
  // Attention and FFN of 12 layers.
  "models/vit_tiny_patch16_224_imagenet1k": 24,
  "graphs/convnext_small_like_opset17": 9,
  "graphs/deit_small_like_opset13": 8,
  "graphs/deit_small_like_opset17": 8,
  "graphs/mobilenet_v3_small_opset17": 6,
  "graphs/resnet_bottleneck_small_opset17": 4,
  "graphs/resnet_bottleneck_small_unfused_bn_opset13": 4,
  "graphs/shufflenet_v2_x0_5_opset17": 0,
  "graphs/torchvision_vit_small_like_opset17": 6,
};

/** The graph with f(x) = 0: weights and bias of the last layer of a block set to zero. */
function silenced(graph: Graph, block: ResidualBlock): Graph {
  const layer = findPrunableLayers(graph).find(({ name }) => name === block.layers.at(-1))!;
  const zeros = new Float32Array(layer.outFeatures * layer.inFeaturesPerGroup);
  const quiet = writeWeightMatrix(graph, layer, zeros);
  return readBias(quiet, layer)
    ? writeBias(quiet, layer, new Float32Array(layer.outFeatures))
    : quiet;
}

for (const [name, count] of Object.entries(BLOCKS)) {
  const absent = benchPath(`${name}.onnx`) === undefined;
  test(`residual blocks: ${name} has ${count}, and without one it does what it does with f = 0`, {
    skip: absent && BENCH_ABSENT,
  }, async () => {
    const graph = await foldedBenchGraph(name);
    const blocks = findResidualBlocks(graph);
    assert.equal(blocks.length, count);
    // Behind a batch norm that is not folded, f is not zero where its last layer is.
    if (count === 0 || name.includes("unfused_bn") || name.includes("torchvision")) return;
    assert.ok(blocks.every(({ readOutside }) => readOutside.length === 0));
    // Two in a row, found on the whole graph: the second is found anew behind the first.
    const chosen = blocks.slice(-2);
    const dropped = chosen.reduce(dropBlock, graph);
    const quiet = chosen.reduce(silenced, graph);
    assert.ok((await outputDifference(quiet, dropped, 2)) < 1e-4);
    assert.equal(findResidualBlocks(dropped).length, count - 2);
    const gone = new Set(chosen.flatMap(({ layers }) => layers));
    const left = findPrunableLayers(dropped).map((layer) => layer.name);
    const before = findPrunableLayers(graph).map((layer) => layer.name);
    assert.deepEqual(
      left,
      before.filter((layer) => !gone.has(layer)),
    );
  });
}

/** input [N, 4, 3, 3] → `output`, with 1×1 convolutions `w1`, `w2`, … of 4 channels. */
function network(nodes: readonly Node[], outputs: readonly string[] = ["output"]): Graph {
  const initializers = Object.fromEntries(
    [1, 2, 3].map((i) => [`w${i}`, floatTensor([4, 4, 1, 1], randomValues(16, i))]),
  );
  return buildModel({
    inputs: [floatValue("input", ["N", 4, 3, 3])],
    outputs: outputs.map((name) => floatValue(name, null)),
    nodes,
    initializers: { ...initializers, cube: floatTensor([], [3]) },
  });
}

test("residual blocks: an activation behind the Add stays, weights of the block go", async () => {
  const graph = network([
    node("Conv", ["input", "w1"], ["x"]),
    node("Conv", ["x", "w2"], ["f"]),
    node("Add", ["f", "x"], ["sum"]),
    node("Relu", ["sum"], ["output"]),
  ]);
  const [block, ...others] = findResidualBlocks(graph);
  assert.deepEqual(others, []);
  assert.deepEqual(block, {
    name: "sum",
    input: "x",
    branch: "f",
    output: "sum",
    nodes: ["f"],
    layers: ["f"],
    readOutside: [],
  });
  const dropped = dropBlock(graph, block);
  assert.deepEqual(
    dropped.nodes.map(({ opType }) => opType),
    ["Conv", "Relu"],
  );
  assert.deepEqual([...dropped.initializers.keys()], ["w1"]);
  const plain = network([node("Conv", ["input", "w1"], ["x"]), node("Relu", ["x"], ["output"])]);
  assert.equal(await outputDifference(plain, dropped, 2), 0);
});

test("residual blocks: what is read outside is named, and stays when the block goes", async () => {
  const graph = network([
    node("Conv", ["input", "w1"], ["x"]),
    node("Conv", ["x", "w2"], ["inner"]),
    node("Conv", ["inner", "w3"], ["f"]),
    node("Add", ["x", "f"], ["sum"]),
    node("Mul", ["sum", "inner"], ["output"]),
  ]);
  const [block] = findResidualBlocks(graph);
  assert.deepEqual(block!.readOutside, ["inner"]);
  const plain = network([
    node("Conv", ["input", "w1"], ["x"]),
    node("Conv", ["x", "w2"], ["inner"]),
    node("Mul", ["x", "inner"], ["output"]),
  ]);
  assert.equal(await outputDifference(plain, dropBlock(graph, block!), 2), 0);
});

test("residual blocks: a block at the output of the network leaves the output's name", async () => {
  const graph = network([
    node("Conv", ["input", "w1"], ["x"]),
    node("Conv", ["x", "w2"], ["f"]),
    node("Add", ["x", "f"], ["output"]),
  ]);
  const [block] = findResidualBlocks(graph);
  const plain = network([node("Conv", ["input", "w1"], ["output"])]);
  assert.equal(await outputDifference(plain, dropBlock(graph, block!), 2), 0);
  assert.throws(() => dropBlock(plain, block!), /no block that ends in "output"/);
});

test("residual blocks: neither projections, broadcasts nor activations are any", () => {
  const projected = network([
    node("Conv", ["input", "w1"], ["a"]),
    node("Conv", ["input", "w2"], ["b"]),
    node("Add", ["a", "b"], ["output"]),
  ]);
  const broadcast = network([
    node("GlobalAveragePool", ["input"], ["x"]),
    node("Conv", ["x", "w1"], ["c"]),
    node("Mul", ["c", "input"], ["f"]),
    node("Add", ["x", "f"], ["output"]),
  ]);
  // As GELU by tanh starts: no layer between.
  const activation = network([
    node("Conv", ["input", "w1"], ["x"]),
    node("Pow", ["x", "cube"], ["f"]),
    node("Add", ["x", "f"], ["output"]),
  ]);
  for (const graph of [projected, broadcast, activation]) {
    assert.deepEqual(findResidualBlocks(graph), []);
  }
});
