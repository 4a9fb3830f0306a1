import assert from "node:assert/strict";
import { test } from "node:test";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import type { Graph } from "../../agent/onnx/graph.ts";
import { withInputSize } from "../../agent/onnx/input-size.ts";
import { resampleGrid } from "../../agent/onnx/resample-grid.ts";
import { floatTensor, int64Tensor, toFloat32 } from "../../agent/onnx/tensor.ts";
import { visionTransformer } from "../../scripts/networks/vision-transformer.ts";
import { BENCH_ABSENT, benchPath } from "../bench-data.helpers.ts";
import {
  benchGraph,
  largestDifference,
  randomInput,
  randomValues,
  runGraph,
} from "./run-graph.helpers.ts";

const SIZES = [
  [48, 48],
  [96, 80],
] as const;

function resized(graph: Graph, height: number, width: number): Graph {
  const result = withInputSize(graph, height, width);
  if ("reason" in result) assert.fail(result.reason);
  return result;
}

function reasonFor(graph: Graph, height: number, width: number): string {
  const result = withInputSize(graph, height, width);
  return "reason" in result ? result.reason : assert.fail("expected a refusal");
}

for (const name of [
  "graphs/convnext_small_like_opset17",
  "graphs/mobilenet_v3_small_opset17",
  "graphs/resnet_bottleneck_small_unfused_bn_opset13",
  "graphs/shufflenet_v2_x0_5_opset17",
]) {
  const skip = benchPath(`${name}.onnx`) ? false : BENCH_ABSENT;
  test(`input size: ${name} gives what it gave with its size left open`, { skip }, async () => {
    const graph = benchGraph(name);
    assert.equal(withInputSize(graph, 64, 64), graph);
    const [input] = graph.inputs;
    const open: Graph = { ...graph, inputs: [{ ...input!, dims: ["N", 3, "h", "w"] }] };
    for (const [height, width] of SIZES) {
      const feeds = { [input!.name]: randomInput([2, 3, height, width], 1) };
      const ours = await runGraph(resized(graph, height, width), feeds);
      const theirs = await runGraph(open, feeds);
      const out = graph.outputs[0]!.name;
      assert.ok(largestDifference(ours[out]!.data, theirs[out]!.data) < 1e-6);
    }
  });
}

const TINY = { width: 24, depth: 2, heads: 2, patch: 8, classes: 5, size: 64 };

for (const batch of ["free", "one"] as const) {
  test(`input size: a transformer (batch ${batch}) becomes the one built for the new size`, async () => {
    const graph = visionTransformer("tiny", { ...TINY, batch });
    const positions = toFloat32(graph.initializers.get("pos_embed")!);
    for (const [height, width] of SIZES) {
      const grid = [height / 8, width / 8] as const;
      const tokens = grid[0] * grid[1] + 1;
      const moved = resampleGrid(positions.subarray(24), { outer: 1, inner: 24 }, [8, 8], grid);
      const wanted = new Float32Array(tokens * 24);
      wanted.set(positions.subarray(0, 24));
      wanted.set(moved, 24);
      // The network of the new size, written out again from the start.
      const built = visionTransformer("tiny", { ...TINY, batch });
      const again = writtenFor(built, tokens, wanted, [height, width]);
      const feeds = { input: randomInput([1, 3, height, width], 2) };
      const ours = await runGraph(resized(graph, height, width), feeds);
      const theirs = await runGraph(again, feeds);
      assert.equal(largestDifference(ours["logits"]!.data, theirs["logits"]!.data), 0);
    }
  });
}

/** The transformer with every constant that names its 65 tokens replaced by hand. */
function writtenFor(
  graph: Graph,
  tokens: number,
  positions: Float32Array,
  [height, width]: readonly [number, number],
): Graph {
  const initializers = new Map(graph.initializers);
  for (const [name, tensor] of initializers) {
    if (!name.startsWith("integers_") || !(tensor.data instanceof BigInt64Array)) continue;
    const sizes = Array.from(tensor.data, Number).map((size) =>
      size === 65 ? tokens : size === 64 ? tokens - 1 : size,
    );
    initializers.set(name, int64Tensor(tensor.dims, sizes));
  }
  initializers.set("pos_embed", floatTensor([1, tokens, 24], positions));
  const inputs = graph.inputs.map((input) => ({
    ...input,
    dims: [input.dims![0]!, 3, height, width],
  }));
  return { ...graph, initializers, inputs };
}

test("input size: a pool over the whole picture stays one over the whole picture", async () => {
  const graph = buildModel({
    inputs: [floatValue("x", ["N", 3, 8, 8])],
    outputs: [floatValue("y", ["N", 3])],
    nodes: [
      node("AveragePool", ["x"], ["pooled"], { kernel_shape: [8, 8] }),
      node("Flatten", ["pooled"], ["y"], { axis: 1 }),
    ],
  });
  const input = randomInput([1, 3, 6, 10], 3);
  const { y } = await runGraph(resized(graph, 6, 10), { x: input });
  const means = [0, 1, 2].map((c) => {
    const plane = input.data.subarray(c * 60, (c + 1) * 60);
    return plane.reduce((sum, value) => sum + value, 0) / 60;
  });
  assert.ok(largestDifference(y!.data, means) < 1e-6);
});

test("input size: a position embedding on rows and columns is resampled too", async () => {
  const places = randomValues(2 * 4 * 4, 4);
  const graph = buildModel({
    inputs: [floatValue("x", ["N", 2, 4, 4])],
    outputs: [floatValue("y", ["N", 2, 1, 1])],
    nodes: [node("Add", ["x", "places"], ["sum"]), node("GlobalAveragePool", ["sum"], ["y"])],
    initializers: { places: floatTensor([1, 2, 4, 4], places) },
  });
  const zero = { data: new Float32Array(2 * 6 * 5), dims: [1, 2, 6, 5] };
  const { y } = await runGraph(resized(graph, 6, 5), { x: zero });
  const moved = resampleGrid(places, { outer: 2, inner: 1 }, [4, 4], [6, 5]);
  const means = [0, 1].map(
    (c) => moved.subarray(c * 30, (c + 1) * 30).reduce((sum, value) => sum + value, 0) / 30,
  );
  assert.ok(largestDifference(y!.data, means) < 1e-6);
});

test("input size: says why it refuses", () => {
  const flat = buildModel({
    inputs: [floatValue("x", ["N", 3, 4, 4])],
    outputs: [floatValue("y", ["N", 2])],
    nodes: [
      node("Flatten", ["x"], ["flat"], { axis: 1 }),
      node("Gemm", ["flat", "w"], ["y"], {}, "fc"),
    ],
    initializers: { w: floatTensor([48, 2], randomValues(96, 5)) },
  });
  assert.match(reasonFor(flat, 8, 8), /at 8×8: Gemm "fc": 192 features for weights of 48/);

  const rows = buildModel({
    inputs: [floatValue("x", ["N", 3, 4, 4])],
    outputs: [floatValue("y", ["N", 3, 1, 1])],
    nodes: [node("Mul", ["x", "row"], ["scaled"]), node("GlobalAveragePool", ["scaled"], ["y"])],
    initializers: { row: floatTensor([4, 1], randomValues(4, 6)) },
  });
  assert.match(reasonFor(rows, 6, 4), /Mul "scaled" has a constant \[4,1\].*no grid/);

  const features = buildModel({
    inputs: [floatValue("x", ["N", 3, 4, 4])],
    outputs: [floatValue("y", ["N", 48])],
    nodes: [node("Flatten", ["x"], ["y"], { axis: 1 })],
  });
  assert.match(reasonFor(features, 2, 2), /"y" would be \[N, 12\] in place of \[N, 48\]/);

  const open = { ...flat, inputs: [floatValue("x", ["N", 3, null, null])] };
  assert.match(reasonFor(open, 8, 8), /does not state the size/);
});

test("input size: windows that the new picture does not fill are refused", () => {
  const graph = buildModel({
    inputs: [floatValue("x", ["N", 3, 8, 8])],
    outputs: [floatValue("y", null)],
    nodes: [node("Reshape", ["x", "windows"], ["y"], {}, "windows")],
    initializers: { windows: int64Tensor([6], [0, 3, 2, 4, 2, 4]) },
  });
  assert.match(reasonFor(graph, 12, 12), /Reshape "windows" splits 12 places into \[2,4\]/);
});
