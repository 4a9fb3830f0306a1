import assert from "node:assert/strict";
import { test } from "node:test";
import { foldBatchNorms } from "../../agent/onnx/batch-norm.ts";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import type { Graph, Node } from "../../agent/onnx/graph.ts";
import { normalizeGraph } from "../../agent/onnx/normalize.ts";
import { checkTopologicalOrder } from "../../agent/onnx/query.ts";
import { floatTensor, type Tensor } from "../../agent/onnx/tensor.ts";
import { resnet } from "../../scripts/networks/resnet.ts";
import { largestDifference, randomInput, randomValues, runGraph } from "./run-graph.helpers.ts";

function random(dims: readonly number[], seed: number): Tensor {
  return floatTensor(
    dims,
    randomValues(
      dims.reduce((a, b) => a * b, 1),
      seed,
    ),
  );
}

function positive(count: number, seed: number): Tensor {
  return floatTensor(
    [count],
    randomValues(count, seed).map((value) => 1.5 + value),
  );
}

/** Parameters of a batch norm over `channels`, under `name.…`. */
function normParts(name: string, channels: number, seed: number): Record<string, Tensor> {
  return {
    [`${name}.gamma`]: random([channels], seed),
    [`${name}.beta`]: random([channels], seed + 1),
    [`${name}.mean`]: random([channels], seed + 2),
    [`${name}.var`]: positive(channels, seed + 3),
  };
}

function norm(name: string, input: string, output: string): Node {
  const parts = ["gamma", "beta", "mean", "var"].map((part) => `${name}.${part}`);
  return node("BatchNormalization", [input, ...parts], [output], { epsilon: 1e-3 });
}

function image(nodes: readonly Node[], initializers: Record<string, Tensor>): Graph {
  return buildModel({
    inputs: [floatValue("x", ["N", 4, 6, 6])],
    outputs: [floatValue("y", null)],
    nodes,
    initializers,
  });
}

async function sameAnswers(before: Graph, after: Graph, dims: readonly number[]): Promise<void> {
  checkTopologicalOrder(after);
  const feeds = { x: randomInput(dims, 9) };
  const [a, b] = [await runGraph(before, feeds), await runGraph(after, feeds)];
  assert.ok(largestDifference(a["y"]!.data, b["y"]!.data) < 2e-5);
}

function opTypes(graph: Graph): string[] {
  return graph.nodes.map(({ opType }) => opType);
}

for (const [what, groups] of [
  ["plain", 1],
  ["grouped", 2],
  ["depthwise", 4],
] as const) {
  test(`batch norm: folds into the ${what} Conv before it and the unpadded one behind it`, async () => {
    const graph = image(
      [
        node("Conv", ["x", "w1"], ["c1"], {
          kernel_shape: [3, 3],
          pads: [1, 1, 1, 1],
          group: groups,
        }),
        norm("bn1", "c1", "n1"),
        node("Relu", ["n1"], ["r1"]),
        norm("bn2", "r1", "n2"),
        node("Conv", ["n2", "w2", "b2"], ["y"], { kernel_shape: [3, 3], group: groups }),
      ],
      {
        w1: random([8, 4 / groups, 3, 3], 1),
        w2: random([4, 8 / groups, 3, 3], 2),
        b2: random([4], 3),
        ...normParts("bn1", 8, 4),
        ...normParts("bn2", 8, 14),
      },
    );
    const folded = foldBatchNorms(graph);
    assert.deepEqual(opTypes(folded), ["Conv", "Relu", "Conv"]);
    await sameAnswers(graph, folded, [2, 4, 6, 6]);
  });
}

test("batch norm: stays before a padded Conv, whose border is zero after it", () => {
  const graph = image(
    [
      node("Relu", ["x"], ["r"]),
      norm("bn", "r", "n"),
      node("Conv", ["n", "w"], ["y"], { kernel_shape: [3, 3], pads: [1, 1, 1, 1] }),
    ],
    { w: random([4, 4, 3, 3], 1), ...normParts("bn", 4, 2) },
  );
  assert.equal(foldBatchNorms(graph), graph);
});

test("batch norm: folds into Gemm on both sides, stored either way, alpha counted", async () => {
  for (const transB of [0, 1]) {
    const graph = buildModel({
      inputs: [floatValue("x", ["N", 6])],
      outputs: [floatValue("y", null)],
      nodes: [
        norm("bn1", "x", "n1"),
        node("Gemm", ["n1", "w1", "b1"], ["g1"], { transB, alpha: 0.5 }),
        norm("bn2", "g1", "y"),
      ],
      initializers: {
        w1: random(transB ? [5, 6] : [6, 5], 1),
        b1: random([5], 2),
        ...normParts("bn1", 6, 3),
        ...normParts("bn2", 5, 13),
      },
    });
    const folded = foldBatchNorms(graph);
    assert.deepEqual(opTypes(folded), ["Gemm"]);
    await sameAnswers(graph, folded, [3, 6]);
  }
});

test("batch norm: products and sums with one constant a channel fold like it", async () => {
  const graph = image(
    [
      node("Conv", ["x", "w"], ["c"], { kernel_shape: [1, 1] }),
      node("Mul", ["c", "scale"], ["m"]),
      node("Div", ["m", "two"], ["d"]),
      node("Add", ["shift", "d"], ["a"]),
      node("Sub", ["one", "a"], ["y"]),
    ],
    {
      w: random([5, 4, 1, 1], 1),
      scale: random([5, 1, 1], 2),
      shift: random([1, 5, 1, 1], 3),
      two: floatTensor([], [2]),
      one: floatTensor([1], [1]),
    },
  );
  const folded = foldBatchNorms(graph);
  assert.deepEqual(opTypes(folded), ["Conv"]);
  await sameAnswers(graph, folded, [2, 4, 6, 6]);
});

test("batch norm: a constant a column, or one that is read elsewhere too, is left alone", () => {
  const conv = node("Conv", ["x", "w"], ["c"], { kernel_shape: [1, 1] });
  const weights = { w: random([6, 4, 1, 1], 1), row: random([6], 2), k: floatTensor([], [2]) };
  const byColumn = image([conv, node("Mul", ["c", "row"], ["y"])], weights);
  assert.equal(foldBatchNorms(byColumn), byColumn);
  const twice = image(
    [conv, node("Mul", ["c", "k"], ["m"]), node("Add", ["m", "c"], ["y"])],
    weights,
  );
  assert.equal(foldBatchNorms(twice), twice);
});

test("batch norm: a weight that serves two layers is copied, not changed for the other", async () => {
  const graph = image(
    [
      node("Conv", ["x", "w"], ["c1"], { kernel_shape: [1, 1] }),
      norm("bn1", "c1", "n1"),
      node("Conv", ["n1", "w"], ["c2"], { kernel_shape: [1, 1] }),
      norm("bn2", "c2", "y"),
    ],
    { w: random([4, 4, 1, 1], 1), ...normParts("bn1", 4, 2), ...normParts("bn2", 4, 12) },
  );
  const folded = foldBatchNorms(graph);
  assert.deepEqual(opTypes(folded), ["Conv", "Conv"]);
  await sameAnswers(graph, folded, [2, 4, 6, 6]);
});

test("batch norm: none is left in a residual network, and its answers stay", async () => {
  for (const kind of ["basic", "bottleneck"] as const) {
    const graph = resnet("tiny", { kind, depths: [1, 2], width: 8, classes: 5, size: 32 });
    const normal = normalizeGraph(graph);
    assert.ok(!opTypes(normal).includes("BatchNormalization"));
    const feeds = { input: randomInput([2, 3, 32, 32], 3) };
    const [a, b] = [await runGraph(graph, feeds), await runGraph(normal, feeds)];
    assert.ok(largestDifference(a["logits"]!.data, b["logits"]!.data) < 1e-5);
  }
});
