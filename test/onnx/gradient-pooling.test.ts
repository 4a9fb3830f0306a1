import assert from "node:assert/strict";
import { test } from "node:test";
import { type AttributeValue, buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import { buildGradientGraph } from "../../agent/onnx/gradient/gradient-graph.ts";
import { assertGradients, randomIn, type Values } from "./gradient.helpers.ts";
import { byReference } from "./reference.helpers.ts";
import { runGraph } from "./run-graph.helpers.ts";

type Attributes = Record<string, AttributeValue>;

/** Numbers that differ by 1/8 at least, so that no small change makes another one the largest. */
function distinct(dims: readonly number[], seed: number): Values {
  const random = randomIn(dims, seed);
  const order = Array.from(random.data, (_, i) => i).sort(
    (a, b) => random.data[a]! - random.data[b]!,
  );
  const data = new Float32Array(order.length);
  order.forEach((place, rank) => {
    data[place] = (rank - order.length / 2) / 8;
  });
  return { dims, data };
}

/** Windows that overlap, leave gaps, are dilated, padded, cut off at the end, wider than X. */
const WINDOWS: readonly Attributes[] = [
  { kernel_shape: [3, 3], strides: [2, 2], pads: [1, 1, 1, 1] },
  { kernel_shape: [2, 3], strides: [1, 2] },
  { kernel_shape: [2, 2], strides: [3, 3] },
  { kernel_shape: [2, 2], strides: [2, 2], ceil_mode: 1 },
  { kernel_shape: [3, 3], strides: [2, 3], pads: [1, 0, 0, 1], ceil_mode: 1 },
  { kernel_shape: [7, 9], strides: [1, 1], pads: [2, 3, 2, 3] },
];

test("gradient of MaxPool: windows of any size, stride, dilation and padding", async () => {
  const dilated = { kernel_shape: [3, 2], strides: [1, 2], dilations: [2, 3], pads: [1, 1, 2, 0] };
  for (const [seed, attributes] of [...WINDOWS, dilated].entries()) {
    const nodes = [node("MaxPool", ["x"], ["y"], attributes)];
    const opset = seed % 2 === 0 ? 13 : 17;
    await assertGradients(
      byReference({ nodes, inputs: { x: distinct([2, 3, 5, 7], seed) }, opset }),
      seed,
    );
  }
});

test("gradient of MaxPool: automatic padding, and along one axis", async () => {
  const x = distinct([1, 2, 5, 6], 1);
  const geometry = { kernel_shape: [3, 3], strides: [2, 2] };
  const stated = [node("MaxPool", ["x"], ["y"], { ...geometry, pads: [1, 0, 1, 1] })];
  const nodes = [node("MaxPool", ["x"], ["y"], { ...geometry, auto_pad: "SAME_UPPER" })];
  await assertGradients({ ...byReference({ nodes: stated, inputs: { x } }), nodes });
  const line = { kernel_shape: [3], strides: [2], pads: [1, 0] };
  await assertGradients({
    nodes: [node("MaxPool", ["x"], ["y"], line)],
    inputs: { x: distinct([2, 2, 7], 2) },
    oracle: ([x]) => {
      const data = [0, 1, 2, 3].flatMap((plane) =>
        [0, 1, 2].map((window) => {
          const places = [-1, 0, 1].map((tap) => 2 * window + tap).filter((at) => at >= 0);
          return Math.max(...places.map((at) => x!.data[plane * 7 + at]!));
        }),
      );
      return { dims: [2, 2, 3], data };
    },
  });
});

/** Gradient of the sum of what a node makes of x. */
async function gradientOfSum(opType: string, attributes: Attributes, x: Values): Promise<number[]> {
  const forward = buildModel({
    inputs: [floatValue("x", x.dims)],
    outputs: [],
    nodes: [
      node(opType, ["x"], ["y"], attributes),
      node("ReduceSum", ["y"], ["loss"], { keepdims: 0 }),
    ],
  });
  const inputDims = new Map([["x", x.dims]]);
  const { graph, gradients } = buildGradientGraph(forward, { inputDims, loss: "loss", of: ["x"] });
  const data = Float32Array.from(x.data);
  const results = await runGraph(graph, { x: { dims: x.dims, data } });
  return [...results[gradients.get("x")!]!.data];
}

test("gradient of MaxPool and GlobalMaxPool: the first of equal elements gets it all", async () => {
  const x = { dims: [1, 1, 2, 4], data: [3, 3, 1, 3, 3, 2, 3, 3] };
  const attributes = { kernel_shape: [2, 2], strides: [1, 1] };
  // Windows start at columns 0, 1 and 2; their first 3 in row-major order is at 0, 1 and 3.
  assert.deepEqual(await gradientOfSum("MaxPool", attributes, x), [1, 1, 0, 1, 0, 0, 0, 0]);
  assert.deepEqual(await gradientOfSum("GlobalMaxPool", {}, x), [1, 0, 0, 0, 0, 0, 0, 0]);
});

test("gradient of AveragePool: over what is there, or over the padding too", async () => {
  for (const [seed, attributes] of WINDOWS.entries()) {
    for (const count_include_pad of [0, 1]) {
      const nodes = [node("AveragePool", ["x"], ["y"], { ...attributes, count_include_pad })];
      const inputs = { x: randomIn([2, 3, 5, 7], seed) };
      await assertGradients(byReference({ nodes, inputs }), seed);
    }
  }
});

test("gradient of AveragePool: automatic padding counts as its pads do", async () => {
  const x = randomIn([1, 2, 5, 6], 1);
  const geometry = { kernel_shape: [3, 3], strides: [2, 2], count_include_pad: 1 };
  const stated = [node("AveragePool", ["x"], ["y"], { ...geometry, pads: [1, 1, 1, 0] })];
  const nodes = [node("AveragePool", ["x"], ["y"], { ...geometry, auto_pad: "SAME_LOWER" })];
  await assertGradients({ ...byReference({ nodes: stated, inputs: { x } }), nodes });
});

test("gradient of GlobalAveragePool and GlobalMaxPool", async () => {
  const planes = (x: Values) =>
    [0, 1, 2, 3, 4, 5].map((plane) => Array.from(x.data).slice(plane * 20, (plane + 1) * 20));
  await assertGradients({
    nodes: [node("GlobalAveragePool", ["x"], ["y"])],
    inputs: { x: randomIn([2, 3, 4, 5], 1) },
    oracle: ([x]) => ({
      dims: [2, 3, 1, 1],
      data: planes(x!).map((plane) => plane.reduce((a, b) => a + b, 0) / 20),
    }),
  });
  await assertGradients({
    nodes: [node("GlobalMaxPool", ["x"], ["y"])],
    inputs: { x: distinct([2, 3, 4, 5], 2) },
    oracle: ([x]) => ({ dims: [2, 3, 1, 1], data: planes(x!).map((plane) => Math.max(...plane)) }),
  });
});
