import assert from "node:assert/strict";
import { test } from "node:test";
import {
  convertTfjsGraphModel,
  type TfjsGraphModel,
  type TfjsNode,
} from "../../agent/onnx/tfjs-graph-model.ts";
import { decodeTfjsWeights, type TfjsWeightSpec } from "../../agent/onnx/tfjs-weights.ts";
import { largestDifference, randomInput, randomValues, runGraph } from "./run-graph.helpers.ts";

type Constants = Record<string, { shape: number[]; values: Float32Array | Int32Array }>;

/** A model as the TensorFlow.js converter writes it: nodes, and constants as one weight file. */
function tfjsModel(nodes: readonly TfjsNode[], constants: Constants) {
  const weights = Object.entries(constants).map(([name, { shape, values }]): TfjsWeightSpec => {
    return { name, shape, dtype: values instanceof Float32Array ? "float32" : "int32" };
  });
  const bytes = Buffer.concat(
    Object.values(constants).map(({ values: { buffer, byteOffset, byteLength } }) =>
      Buffer.from(buffer, byteOffset, byteLength),
    ),
  );
  const all = [...Object.keys(constants).map((name) => ({ name, op: "Const" })), ...nodes];
  const model: TfjsGraphModel = {
    modelTopology: { node: [{ name: "image", op: "Placeholder" }, ...all] },
    weightsManifest: [{ paths: ["all.bin"], weights }],
  };
  return { model, bytes };
}

const text = (s: string) => ({ s: btoa(s) });
const ints = (...i: number[]) => ({ list: { i } });
const floats = (shape: number[], seed: number) => ({
  shape,
  values: randomValues(
    shape.reduce((a, b) => a * b, 1),
    seed,
  ),
});

/** Convolution in TensorFlow's layout and padding, the slow way; filter [kh, kw, C, O]. */
function slowConv(
  x: Float32Array,
  [height, width, channels]: [number, number, number],
  filter: Float32Array,
  [kh, kw, , outs]: [number, number, number, number],
  stride: number,
  depthwise: boolean,
): { values: number[]; height: number; width: number } {
  const [oh, ow] = [Math.ceil(height / stride), Math.ceil(width / stride)];
  const top = Math.floor(Math.max(0, (oh - 1) * stride + kh - height) / 2);
  const left = Math.floor(Math.max(0, (ow - 1) * stride + kw - width) / 2);
  const count = depthwise ? channels * outs : outs;
  const values: number[] = [];
  for (let y = 0; y < oh; y++) {
    for (let xx = 0; xx < ow; xx++) {
      for (let o = 0; o < count; o++) {
        let sum = 0;
        for (let i = 0; i < kh * kw; i++) {
          const sy = y * stride - top + Math.floor(i / kw);
          const sx = xx * stride - left + (i % kw);
          if (sy < 0 || sx < 0 || sy >= height || sx >= width) continue;
          for (let c = 0; c < channels; c++) {
            const pixel = x[(sy * width + sx) * channels + c]!;
            if (!depthwise) sum += pixel * filter[(i * channels + c) * outs + o]!;
            else if (Math.floor(o / outs) === c)
              sum += pixel * filter[(i * channels + c) * outs + (o % outs)]!;
          }
        }
        values.push(sum);
      }
    }
  }
  return { values, height: oh, width: ow };
}

/** [h, w, c] → [c, h, w]. */
function channelsFirst(
  values: ArrayLike<number>,
  height: number,
  width: number,
  channels: number,
): Float32Array {
  return Float32Array.from({ length: values.length }, (_, i) => {
    const [c, p] = [Math.floor(i / (height * width)), i % (height * width)];
    return values[p * channels + c]!;
  });
}

for (const [what, depthwise, stride, kernel] of [
  ["Conv2D, stride 2, odd padding", false, 2, 3],
  ["Conv2D, even kernel", false, 1, 2],
  ["depthwise with two outputs a channel", true, 2, 3],
] as const) {
  test(`tfjs: ${what}, batch norm folded, equals a slow convolution`, async () => {
    const size: [number, number, number] = [6, 8, 3];
    const shape: [number, number, number, number] = [kernel, kernel, 3, 2];
    const outs = depthwise ? 6 : 2;
    const constants: Constants = {
      filter: floats(shape, 1),
      scale: floats([outs], 2),
      offset: floats([outs], 3),
      mean: floats([outs], 4),
      variance: { shape: [outs], values: randomValues(outs, 5).map((value) => value + 1.5) },
    };
    const nodes: TfjsNode[] = [
      {
        name: "conv",
        op: depthwise ? "DepthwiseConv2dNative" : "Conv2D",
        input: ["image", "filter"],
        attr: {
          strides: ints(1, stride, stride, 1),
          dilations: ints(1, 1, 1, 1),
          padding: text("SAME"),
          data_format: text("NHWC"),
        },
      },
      {
        name: "norm",
        op: "FusedBatchNormV3",
        input: ["conv", "scale", "offset", "mean", "variance"],
        attr: { epsilon: { f: 0.001 } },
      },
      { name: "relu", op: "Relu6", input: ["norm:0", "^image"] },
    ];
    const { model, bytes } = tfjsModel(nodes, constants);
    const graph = convertTfjsGraphModel(model, bytes, { height: 6, width: 8 });
    assert.deepEqual(
      graph.nodes.map(({ opType }) => opType),
      ["Conv", "Clip"],
    );
    const picture = randomValues(6 * 8 * 3, 9);
    const slow = slowConv(
      picture,
      size,
      constants["filter"]!.values as Float32Array,
      shape,
      stride,
      depthwise,
    );
    const expected = slow.values.map((value, i) => {
      const of = (name: string) => constants[name]!.values[i % outs]!;
      const normal =
        ((value - of("mean")) / Math.sqrt(of("variance") + 0.001)) * of("scale") + of("offset");
      return Math.min(Math.max(normal, 0), 6);
    });
    const input = { data: channelsFirst(picture, 6, 8, 3), dims: [1, 3, 6, 8] };
    const { data, dims } = (await runGraph(graph, { input }))["logits"]!;
    assert.deepEqual(dims, [1, outs, slow.height, slow.width]);
    assert.ok(
      largestDifference(data, channelsFirst(expected, slow.height, slow.width, outs)) < 1e-5,
    );
  });
}

test("tfjs: flattening keeps TensorFlow's order of height, width, channel", async () => {
  const constants: Constants = {
    flat: { shape: [2], values: Int32Array.of(-1, 12) },
    weight: {
      shape: [12, 12],
      values: Float32Array.from({ length: 144 }, (_, i) => (i % 13 === 0 ? 1 : 0)),
    },
    half: { shape: [3], values: Float32Array.of(1, 2, 3) },
  };
  const nodes: TfjsNode[] = [
    { name: "scaled", op: "Mul", input: ["image", "half"] },
    { name: "flattened", op: "Reshape", input: ["scaled", "flat"] },
    { name: "product", op: "MatMul", input: ["flattened", "weight"] },
  ];
  const { model, bytes } = tfjsModel(nodes, constants);
  const graph = convertTfjsGraphModel(model, bytes, { height: 2, width: 2 });
  const picture = randomValues(12, 3);
  const input = { data: channelsFirst(picture, 2, 2, 3), dims: [1, 3, 2, 2] };
  const { data } = (await runGraph(graph, { input }))["logits"]!;
  assert.ok(
    largestDifference(
      data,
      picture.map((value, i) => value * ((i % 3) + 1)),
    ) < 1e-6,
  );
});

test("tfjs: pooling, concatenation and squeezing follow TensorFlow", async () => {
  const constants: Constants = {
    axis: { shape: [], values: Int32Array.of(-1) },
    space: { shape: [2], values: Int32Array.of(1, 2) },
  };
  const window = { ksize: ints(1, 2, 2, 1), strides: ints(1, 2, 2, 1), padding: text("SAME") };
  const nodes: TfjsNode[] = [
    { name: "highest", op: "MaxPool", input: ["image"], attr: window },
    { name: "average", op: "AvgPool", input: ["image"], attr: window },
    { name: "both", op: "ConcatV2", input: ["highest", "average", "axis"] },
    { name: "mean", op: "Mean", input: ["both", "space"], attr: { keep_dims: { b: true } } },
    { name: "out", op: "Squeeze", input: ["mean"], attr: { squeeze_dims: ints(1, 2) } },
  ];
  const { model, bytes } = tfjsModel(nodes, constants);
  const graph = convertTfjsGraphModel(model, bytes, { height: 3, width: 3 });
  const input = randomInput([1, 3, 3, 3], 7);
  const { data, dims } = (await runGraph(graph, { input }))["logits"]!;
  assert.deepEqual(dims, [1, 6]);
  // Windows of SAME padding on three pixels: {0, 1} and {2}; padding counts for nothing.
  const windows = [[0, 1, 3, 4], [2, 5], [6, 7], [8]];
  const expected = [0, 1, 2].map((c) => windows.map((w) => w.map((i) => input.data[c * 9 + i]!)));
  const mean = (values: number[]) => values.reduce((a, b) => a + b, 0) / values.length;
  const highest = expected.map((parts) => mean(parts.map((w) => Math.max(...w))));
  const average = expected.map((parts) => mean(parts.map(mean)));
  assert.ok(largestDifference(data, [...highest, ...average]) < 1e-6);
});

test("tfjs: operations that are not known are named, all at once", () => {
  const nodes: TfjsNode[] = [
    { name: "a", op: "FFT", input: ["image"] },
    { name: "b", op: "WhereIsWaldo", input: ["a"] },
  ];
  const { model, bytes } = tfjsModel(nodes, {});
  assert.throws(() => convertTfjsGraphModel(model, bytes, { height: 2, width: 2 }), {
    name: "RangeError",
    message: /cannot be converted: FFT, WhereIsWaldo/,
  });
});

test("tfjs: quantized weights are decoded by scale and minimum", () => {
  const specs: TfjsWeightSpec[] = [
    {
      name: "a",
      shape: [2],
      dtype: "float32",
      quantization: { dtype: "uint8", scale: 0.5, min: -1 },
    },
    {
      name: "b",
      shape: [2],
      dtype: "float32",
      quantization: { dtype: "uint16", scale: 0.25, min: 2 },
    },
    { name: "c", shape: [1], dtype: "float32", quantization: { dtype: "float16" } },
    { name: "d", shape: [1], dtype: "int32", quantization: { dtype: "uint8", scale: 1, min: -3 } },
    { name: "e", shape: [], dtype: "bool" },
  ];
  const bytes = Uint8Array.of(0, 255, 4, 0, 0, 1, 0x00, 0x3e, 5, 1);
  const weights = decodeTfjsWeights(specs, bytes);
  assert.deepEqual([...weights.get("a")!.values], [-1, 126.5]);
  assert.deepEqual([...weights.get("b")!.values], [3, 66]);
  assert.deepEqual([...weights.get("c")!.values], [1.5]);
  assert.deepEqual([...weights.get("d")!.values], [2]);
  assert.deepEqual([...weights.get("e")!.values], [1]);
  assert.throws(
    () => decodeTfjsWeights(specs, bytes.subarray(0, 9)),
    /weight "e": expected 1 bytes at 9, got 0/,
  );
  assert.throws(
    () => decodeTfjsWeights(specs, Uint8Array.of(...bytes, 1)),
    /expected 10 bytes of weights, got 11/,
  );
});
