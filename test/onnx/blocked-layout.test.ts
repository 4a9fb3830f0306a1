import assert from "node:assert/strict";
import { after, test } from "node:test";
import { createLogger } from "../../agent/log.ts";
import { toBlockedLayout } from "../../agent/onnx/blocked-layout.ts";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import { buildGradientGraph } from "../../agent/onnx/gradient/gradient-graph.ts";
import { findTrainable } from "../../agent/onnx/gradient/trainable.ts";
import { type Graph, type Node, qualifiedName } from "../../agent/onnx/graph.ts";
import { elementCount, floatTensor, int64Tensor, type Tensor } from "../../agent/onnx/tensor.ts";
import { findBlockSize } from "../../agent/specialize/block-size.ts";
import { createEngine } from "../../agent/specialize/engine.ts";
import { BENCH_ABSENT, benchPath } from "../bench-data.helpers.ts";
import { batchDims, benchGraph, randomInput, randomValues, runGraph } from "./run-graph.helpers.ts";

const engine = await createEngine({
  executionProviders: ["cpu"],
  intraOpThreads: 1,
  log: createLogger("error"),
});
after(() => engine.close());
const block = await findBlockSize(engine);
const skip = block === null ? "this processor has no blocked layout in ONNX Runtime" : false;

const PICTURES = 2;

/** A network of one input "x" and one output "y" with the weights that its nodes name. */
function network(
  dims: readonly number[],
  nodes: readonly Node[],
  weights: Readonly<Record<string, readonly number[]>>,
  constants: Readonly<Record<string, Tensor>> = {},
): Graph {
  const drawn = Object.entries(weights).map(([name, shape], i) => {
    const size = 2 / Math.sqrt(elementCount(shape.slice(1)));
    const values = randomValues(elementCount(shape), i + 1).map((value) => size * value);
    return [name, floatTensor(shape, values)] as const;
  });
  return buildModel({
    nodes,
    inputs: [floatValue("x", dims)],
    outputs: [floatValue("y", null)],
    initializers: { ...Object.fromEntries(drawn), ...constants },
    opset: 17,
  });
}

/** Gradients of Σ y · (y + r), r random, by ONNX Runtime, and the graph that computed them. */
async function gradientsOf(graph: Graph, of: readonly string[], dims: readonly number[]) {
  const y = graph.outputs[0]!.name;
  const plainY = { name: y, ...(await runGraph(graph, { x: randomInput(dims, 5) }))[y]! };
  const target = floatTensor(plainY.dims, randomValues(plainY.data.length, 9));
  const loss: Graph = {
    ...graph,
    nodes: [
      ...graph.nodes,
      node("Add", [y, "target"], ["moved"]),
      node("Mul", [y, "moved"], ["products"]),
      node("ReduceSum", ["products"], ["loss"], { keepdims: 0 }),
    ],
    initializers: new Map([...graph.initializers, ["target", target]]),
    outputs: [],
  };
  const built = buildGradientGraph(loss, { inputDims: new Map([["x", dims]]), loss: "loss", of });
  const feeds = { x: randomInput(dims, 5) };
  const weights = of.flatMap((name) => {
    const tensor = graph.initializers.get(name);
    return tensor
      ? [[name, { dims: tensor.dims, data: tensor.data as Float32Array }] as const]
      : [];
  });
  const results = await runGraph(built.graph, { ...Object.fromEntries(weights), ...feeds });
  const gradients = of.map((name) => results[built.gradients.get(name)!]!);
  return { y: plainY, gradients, graph: built.graph };
}

/** Distance of two values against the size of the second. */
function relative(a: Float32Array, b: Float32Array): number {
  assert.equal(a.length, b.length);
  const squares = (values: Float32Array) => values.reduce((sum, value) => sum + value * value, 0);
  return Math.sqrt(squares(a.map((value, i) => value - b[i]!)) / (squares(b) || 1));
}

/** Float32 sums in another order. */
const TOLERANCE = 2e-5;

/** Checks that the blocked form gives the plain one's output and gradients, also of x. */
async function assertSame(graph: Graph, dims: readonly number[]): Promise<Graph> {
  const of = ["x", ...findTrainable(graph)];
  const blocked = toBlockedLayout(graph, new Map([["x", dims]]), [], block!);
  const [expected, actual] = [
    await gradientsOf(graph, of, dims),
    await gradientsOf(blocked, of, dims),
  ];
  assert.deepEqual(actual.y.dims, expected.y.dims);
  assert.ok(relative(actual.y.data, expected.y.data) < TOLERANCE, "y");
  of.forEach((name, i) => {
    const [a, b] = [actual.gradients[i]!, expected.gradients[i]!];
    assert.deepEqual(a.dims, b.dims, `shape of the gradient of ${name}`);
    const error = relative(a.data, b.data);
    assert.ok(error < TOLERANCE, `gradient of ${name}: relative error ${error}`);
  });
  return blocked;
}

const operators = (graph: Graph) => graph.nodes.map(qualifiedName);

for (const { channels, side, kernel, stride, pads } of [
  { channels: 16, side: 9, kernel: 3, stride: 1, pads: [1, 1, 1, 1] },
  { channels: 32, side: 8, kernel: 5, stride: 1, pads: [2, 2, 2, 2] },
  { channels: 48, side: 9, kernel: 3, stride: 2, pads: [1, 1, 1, 1] },
  { channels: 32, side: 10, kernel: 3, stride: 2, pads: [0, 0, 1, 1] },
  { channels: 16, side: 11, kernel: 5, stride: 2, pads: [1, 1, 2, 2] },
  { channels: 24, side: 7, kernel: 3, stride: 1, pads: [1, 1, 1, 1] },
  { channels: 37, side: 6, kernel: 3, stride: 1, pads: [0, 0, 0, 0] },
  { channels: 20, side: 12, kernel: 3, stride: 3, pads: [1, 1, 1, 1] },
]) {
  const what = `${channels} channels of ${side}², ${kernel}×${kernel}, stride ${stride}, pads ${pads}`;
  test(`blocked layout: a depthwise convolution keeps output and gradients (${what})`, {
    skip,
  }, async () => {
    const how = {
      group: channels,
      kernel_shape: [kernel, kernel],
      strides: [stride, stride],
      pads,
    };
    const graph = network(
      [PICTURES, channels, side, side],
      [node("Conv", ["x", "w", "b"], ["y"], how)],
      {
        w: [channels, 1, kernel, kernel],
        b: [channels],
      },
    );
    const blocked = await assertSame(graph, [PICTURES, channels, side, side]);
    assert.ok(operators(blocked).includes("com.microsoft.nchwc.Conv"));
  });
}

/** Expansion, depthwise convolution, gate, projection and sum, as MobileNetV3 and EfficientNet do. */
function invertedResidual(width: number, inner: number, squeezed: number, opset: number): Graph {
  const graph = network(
    [PICTURES, width, 8, 8],
    [
      node("Conv", ["x", "w1", "b1"], ["c1"]),
      node("Sigmoid", ["c1"], ["s1"]),
      node("Mul", ["c1", "s1"], ["a1"]),
      node("Conv", ["a1", "w2", "b2"], ["c2"], { group: inner, pads: [1, 1, 1, 1] }),
      node("HardSwish", ["c2"], ["a2"]),
      opset < 18
        ? node("ReduceMean", ["a2"], ["m"], { axes: [2, 3], keepdims: 1 })
        : node("GlobalAveragePool", ["a2"], ["m"]),
      node("Conv", ["m", "w3", "b3"], ["c3"]),
      node("Relu", ["c3"], ["a3"]),
      node("Conv", ["a3", "w4", "b4"], ["c4"]),
      node("HardSigmoid", ["c4"], ["g"]),
      node("Mul", ["g", "a2"], ["gated"]),
      node("Conv", ["gated", "w5", "b5"], ["c5"]),
      node("Mul", ["c5", "scale"], ["scaled"]),
      node("Clip", ["scaled", "low", "high"], ["cut"]),
      node("Add", ["cut", "x"], ["sum"]),
      node("Conv", ["sum", "w6"], ["c6"]),
      node("GlobalAveragePool", ["c6"], ["pooled"]),
      node("Reshape", ["pooled", "flat"], ["y"]),
    ],
    {
      w1: [inner, width, 1, 1],
      b1: [inner],
      w2: [inner, 1, 3, 3],
      b2: [inner],
      w3: [squeezed, inner, 1, 1],
      b3: [squeezed],
      w4: [inner, squeezed, 1, 1],
      b4: [inner],
      w5: [width, inner, 1, 1],
      b5: [width],
      scale: [width, 1, 1],
      w6: [2 * width, width, 1, 1],
    },
    {
      low: floatTensor([], [-3]),
      high: floatTensor([], [3]),
      flat: int64Tensor([2], [0, -1]),
    },
  );
  return { ...graph, opset };
}

for (const [width, inner, squeezed, opset] of [
  [16, 96, 4, 14],
  [24, 144, 6, 17],
  [29, 57, 5, 18],
  [40, 240, 10, 21],
] as const) {
  test(`blocked layout: an inverted residual of ${width} and ${inner} channels keeps output and gradients`, {
    skip,
  }, async () => {
    const graph = invertedResidual(width, inner, squeezed, opset);
    const blocked = await assertSame(graph, [PICTURES, width, 8, 8]);
    const names = operators(blocked);
    const reorders = names.filter((name) => name.endsWith("ReorderInput")).length;
    assert.equal(reorders, 1, "what lies between convolutions stays in the blocked layout");
  });
}

test("blocked layout: what is not finite at 0 does not come out of filled channels", {
  skip,
}, async () => {
  const dims = [PICTURES, 20, 6, 6];
  const graph = network(
    dims,
    [
      node("Conv", ["x", "w1", "b1"], ["c"], { group: 20, pads: [1, 1, 1, 1] }),
      node("Mul", ["c", "c"], ["square"]),
      node("Sqrt", ["square"], ["size"]),
      node("Exp", ["c"], ["e"]),
      node("Div", ["e", "size"], ["share"]),
      node("Conv", ["share", "w2"], ["y"]),
    ],
    { w1: [20, 1, 3, 3], w2: [24, 20, 1, 1] },
    { b1: floatTensor([20], new Float32Array(20).fill(4)) },
  );
  await assertSame(graph, dims);
});

test("blocked layout: values that are kept can be read in the plain layout", { skip }, async () => {
  const graph = invertedResidual(32, 64, 8, 17);
  const dims = [PICTURES, 32, 8, 8];
  const changed = toBlockedLayout(graph, new Map([["x", dims]]), ["a2"], block!);
  const withValue = (of: Graph): Graph => ({ ...of, outputs: [floatValue("a2", null)] });
  const feeds = { x: randomInput(dims, 3) };
  const [expected, actual] = [
    await runGraph(withValue(graph), feeds),
    await runGraph(withValue(changed), feeds),
  ];
  assert.ok(relative(actual["a2"]!.data, expected["a2"]!.data) < TOLERANCE);
});

test("blocked layout: a graph without depthwise convolutions stays as it is", () => {
  const graph = network([1, 32, 4, 4], [node("Conv", ["x", "w"], ["y"])], { w: [32, 32, 1, 1] });
  assert.equal(toBlockedLayout(graph, new Map([["x", [1, 32, 4, 4]]]), [], 16), graph);
});

for (const name of [
  "graphs/mobilenet_v3_small_opset17",
  "graphs/shufflenet_v2_x0_5_opset17",
  "graphs/convnext_small_like_opset17",
  "models/efficientnet_b0_imagenet1k",
  "models/mobilenetv2_1.0_imagenet1k",
]) {
  const absent = benchPath(`${name}.onnx`) === undefined ? BENCH_ABSENT : false;
  test(`blocked layout: ${name} keeps its output`, { skip: skip || absent }, async () => {
    const graph = benchGraph(name);
    const [input, dims] = [graph.inputs[0]!.name, batchDims(graph, PICTURES)];
    const blocked = toBlockedLayout(graph, new Map([[input, dims]]), [], block!);
    assert.ok(operators(blocked).includes("com.microsoft.nchwc.Conv"));
    const feeds = { [input]: randomInput(dims, 4) };
    const output = graph.outputs[0]!.name;
    const expected = (await runGraph(graph, feeds))[output]!;
    const actual = (await runGraph(blocked, feeds))[output]!;
    assert.deepEqual(actual.dims, expected.dims);
    assert.ok(relative(actual.data, expected.data) < TOLERANCE);
  });
}
