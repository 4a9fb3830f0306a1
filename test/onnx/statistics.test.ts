import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import type { Graph } from "../../agent/onnx/graph.ts";
import { findPrunableLayers, type PrunableLayer } from "../../agent/onnx/prunable-layers.ts";
import { appendStatistics, statisticsNames } from "../../agent/onnx/statistics.ts";
import { extractSubgraph } from "../../agent/onnx/subgraph.ts";
import { floatTensor } from "../../agent/onnx/tensor.ts";
import { BENCH_ABSENT, benchPath } from "../bench-data.helpers.ts";
import {
  BENCH_GRAPHS,
  batchDims,
  benchGraph,
  largestDifference,
  randomInput,
  randomValues,
  runGraph,
} from "./run-graph.helpers.ts";

interface ConvCase {
  readonly channels: number;
  readonly kernel: readonly [number, number];
  readonly groups?: number;
  readonly strides?: readonly [number, number];
  readonly dilations?: readonly [number, number];
  readonly pads?: readonly [number, number, number, number];
  readonly autoPad?: string;
  readonly opset?: number;
}

const SIZE = { batch: 2, height: 7, width: 6 } as const;

function convGraph(c: ConvCase): Graph {
  const groups = c.groups ?? 1;
  const dims = [groups * 2, c.channels / groups, ...c.kernel];
  const count = dims.reduce((a, b) => a * b, 1);
  const padding = c.autoPad ? { auto_pad: c.autoPad } : c.pads ? { pads: c.pads } : {};
  return buildModel({
    inputs: [floatValue("x", ["N", c.channels, "h", "w"])],
    outputs: [floatValue("y", null)],
    nodes: [
      node("Conv", ["x", "W"], ["y"], {
        group: groups,
        strides: c.strides ?? [1, 1],
        dilations: c.dilations ?? [1, 1],
        kernel_shape: c.kernel,
        ...padding,
      }),
    ],
    initializers: { W: floatTensor(dims, randomValues(count, 3)) },
    opset: c.opset ?? 13,
  });
}

/** Begin pads and output size of one axis, as the ONNX specification defines auto_pad. */
function axisGeometry(c: ConvCase, axis: 0 | 1) {
  const size = axis === 0 ? SIZE.height : SIZE.width;
  const stride = c.strides?.[axis] ?? 1;
  const reach = (c.kernel[axis] - 1) * (c.dilations?.[axis] ?? 1) + 1;
  if (c.autoPad?.startsWith("SAME")) {
    const count = Math.ceil(size / stride);
    const total = Math.max(0, (count - 1) * stride + reach - size);
    const begin = c.autoPad === "SAME_UPPER" ? Math.floor(total / 2) : Math.ceil(total / 2);
    return { begin, count, stride };
  }
  const begin = c.pads?.[axis] ?? 0;
  const end = c.pads?.[axis + 2] ?? 0;
  return { begin, count: Math.floor((size + begin + end - reach) / stride) + 1, stride };
}

/** Slow oracle: walks every position of every picture and sums x·xᵀ in double precision. */
function slowStatistics(c: ConvCase, x: Float32Array) {
  const groups = c.groups ?? 1;
  const perGroup = c.channels / groups;
  const [kh, kw] = c.kernel;
  const cols = perGroup * kh * kw;
  const gram = new Float64Array(groups * cols * cols);
  const sum = new Float64Array(groups * cols);
  const rows = axisGeometry(c, 0);
  const columns = axisGeometry(c, 1);
  const at = (n: number, channel: number, y: number, xx: number): number => {
    if (y < 0 || xx < 0 || y >= SIZE.height || xx >= SIZE.width) return 0;
    return x[((n * c.channels + channel) * SIZE.height + y) * SIZE.width + xx]!;
  };
  for (let n = 0; n < SIZE.batch; n++) {
    for (let oy = 0; oy < rows.count; oy++) {
      for (let ox = 0; ox < columns.count; ox++) {
        for (let g = 0; g < groups; g++) {
          const patch: number[] = [];
          for (let i = 0; i < cols; i++) {
            const channel = g * perGroup + Math.floor(i / (kh * kw));
            const ky = Math.floor(i / kw) % kh;
            const y = oy * rows.stride - rows.begin + ky * (c.dilations?.[0] ?? 1);
            const xx = ox * columns.stride - columns.begin + (i % kw) * (c.dilations?.[1] ?? 1);
            patch.push(at(n, channel, y, xx));
          }
          for (let i = 0; i < cols; i++) {
            sum[g * cols + i]! += patch[i]!;
            for (let j = 0; j < cols; j++)
              gram[(g * cols + i) * cols + j]! += patch[i]! * patch[j]!;
          }
        }
      }
    }
  }
  return { gram, sum, count: SIZE.batch * rows.count * columns.count };
}

async function measure(
  graph: Graph,
  layers: readonly PrunableLayer[],
  x: Float32Array,
  dims: readonly number[],
) {
  const statistics = appendStatistics(graph, layers);
  const names = statisticsNames(statistics.outputs);
  const cut = extractSubgraph(statistics.graph, [graph.inputs[0]!.name], names);
  const results = await runGraph(cut, { [graph.inputs[0]!.name]: { data: x, dims } });
  return { results, outputs: statistics.outputs, cut };
}

const CASES: Record<string, ConvCase> = {
  "1×1": { channels: 5, kernel: [1, 1] },
  "1×1 stride 2": { channels: 4, kernel: [1, 1], strides: [2, 2] },
  "1×1 stride 2 with padding": { channels: 3, kernel: [1, 1], strides: [2, 2], pads: [1, 0, 1, 1] },
  "1×1 grouped": { channels: 6, kernel: [1, 1], groups: 3 },
  "3×3 padded": { channels: 3, kernel: [3, 3], pads: [1, 1, 1, 1] },
  "3×3 stride 2, padded on one side": {
    channels: 3,
    kernel: [3, 3],
    strides: [2, 2],
    pads: [0, 0, 1, 1],
  },
  "3×2 stride 2×1 dilated": { channels: 2, kernel: [3, 2], strides: [2, 1], dilations: [1, 2] },
  "grouped 3×3": { channels: 4, kernel: [3, 3], groups: 2, pads: [1, 1, 1, 1] },
  "depthwise 3×3 stride 2": {
    channels: 3,
    kernel: [3, 3],
    groups: 3,
    strides: [2, 2],
    pads: [1, 1, 1, 1],
  },
  SAME_UPPER: { channels: 2, kernel: [3, 3], strides: [2, 2], autoPad: "SAME_UPPER" },
  SAME_LOWER: { channels: 2, kernel: [2, 2], autoPad: "SAME_LOWER" },
  VALID: { channels: 2, kernel: [3, 3], autoPad: "VALID" },
  "opset 12": { channels: 2, kernel: [3, 3], opset: 12 },
};

for (const [name, c] of Object.entries(CASES)) {
  test(`statistics: Conv ${name} equals a slow im2col`, async () => {
    const graph = convGraph(c);
    const layers = findPrunableLayers(graph);
    const x = randomValues(SIZE.batch * c.channels * SIZE.height * SIZE.width, 11);
    const dims = [SIZE.batch, c.channels, SIZE.height, SIZE.width];
    const { results, outputs } = await measure(graph, layers, x, dims);
    const expected = slowStatistics(c, x);
    const { gramName, sumName, countName } = outputs[0]!;
    const cols = layers[0]!.inFeaturesPerGroup;
    assert.deepEqual(results[gramName]!.dims, [c.groups ?? 1, cols, cols]);
    assert.deepEqual(results[sumName]!.dims, [c.groups ?? 1, cols]);
    assert.equal(results[countName]!.data[0], expected.count);
    assert.ok(largestDifference(results[gramName]!.data, expected.gram) < 1e-4);
    assert.ok(largestDifference(results[sumName]!.data, expected.sum) < 1e-4);
  });
}

for (const opType of ["Gemm", "MatMul", "MatMul with the weight on the left"]) {
  test(`statistics: ${opType} sums over all leading dimensions`, async () => {
    const gemm = opType === "Gemm";
    const left = opType.endsWith("left");
    const dims = gemm ? [4, 3] : left ? [2, 3, 5] : [2, 5, 3];
    const inputs = left ? ["W", "x"] : ["x", "W"];
    const graph = buildModel({
      inputs: [floatValue("x", null)],
      outputs: [floatValue("y", null)],
      nodes: [node(gemm ? "Gemm" : "MatMul", inputs, ["y"])],
      initializers: { W: floatTensor(left ? [2, 3] : [3, 2], randomValues(6, 5)) },
    });
    const { data: x } = randomInput(dims, 9);
    const layers = findPrunableLayers(graph);
    assert.equal(layers[0]!.inFeaturesPerGroup, 3);
    const { results, outputs } = await measure(graph, layers, x, dims);
    const count = x.length / 3;
    const value = (row: number, col: number): number =>
      left ? x[Math.floor(row / 5) * 15 + col * 5 + (row % 5)]! : x[row * 3 + col]!;
    const gram = new Float64Array(9);
    const sum = new Float64Array(3);
    for (let r = 0; r < count; r++) {
      for (let i = 0; i < 3; i++) {
        sum[i]! += value(r, i);
        for (let j = 0; j < 3; j++) gram[i * 3 + j]! += value(r, i) * value(r, j);
      }
    }
    assert.equal(results[outputs[0]!.countName]!.data[0], count);
    assert.ok(largestDifference(results[outputs[0]!.gramName]!.data, gram) < 1e-5);
    assert.ok(largestDifference(results[outputs[0]!.sumName]!.data, sum) < 1e-5);
  });
}

test("statistics: layers that see the same input share their outputs", () => {
  const graph = buildModel({
    inputs: [floatValue("x", ["N", 3])],
    outputs: [floatValue("y", null), floatValue("z", null)],
    nodes: [node("MatMul", ["x", "A"], ["y"]), node("MatMul", ["x", "B"], ["z"])],
    initializers: {
      A: floatTensor([3, 2], randomValues(6, 1)),
      B: floatTensor([3, 4], randomValues(12, 2)),
    },
  });
  const { outputs } = appendStatistics(graph, findPrunableLayers(graph));
  assert.deepEqual(outputs[0], outputs[1]);
  assert.equal(statisticsNames(outputs).length, 3);
});

const GOLDEN = join(import.meta.dirname, "..", "..", "..", "shared", "golden", "obs-family.json");

test("statistics: agree with the Hessian that the authors' OBC code builds for a convolution", {
  skip: !existsSync(GOLDEN) && "the golden values are not beside this checkout",
}, async () => {
  interface Golden {
    readonly kind: string;
    readonly shape: number[];
    readonly X: number[];
    readonly H: number[];
  }
  const { cases } = JSON.parse(readFileSync(GOLDEN, "utf8")) as { cases: Golden[] };
  const golden = cases.find(({ kind }) => kind === "obc-conv-hessian")!;
  const graph = convGraph({ channels: 3, kernel: [3, 3], strides: [2, 2], pads: [1, 1, 1, 1] });
  const layers = findPrunableLayers(graph);
  const { results, outputs } = await measure(
    graph,
    layers,
    Float32Array.from(golden.X),
    golden.shape,
  );
  // The released code divides by the number of pictures, not of positions.
  const H = results[outputs[0]!.gramName]!.data.map((value) => (2 / golden.shape[0]!) * value);
  assert.ok(largestDifference(H, golden.H) < 1e-3 * Math.max(...golden.H));
});

for (const name of BENCH_GRAPHS) {
  const absent = benchPath(`${name}.onnx`) === undefined;
  test(`statistics: every layer of ${name} can be measured`, {
    skip: absent && BENCH_ABSENT,
  }, async () => {
    const graph = benchGraph(name);
    const layers = findPrunableLayers(graph);
    const { data, dims } = randomInput(batchDims(graph, 2), 3);
    const { results, outputs } = await measure(graph, layers, data, dims);
    layers.forEach((layer, i) => {
      const { gramName, countName } = outputs[i]!;
      const cols = layer.inFeaturesPerGroup;
      assert.deepEqual(results[gramName]!.dims, [layer.groups, cols, cols], layer.name);
      assert.ok(results[gramName]!.data.every(Number.isFinite), layer.name);
      assert.ok(results[countName]!.data[0]! >= 2, layer.name);
    });
  });
}
