import assert from "node:assert/strict";
import { test } from "node:test";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import { buildGradientGraph } from "../../agent/onnx/gradient/gradient-graph.ts";
import type { Node } from "../../agent/onnx/graph.ts";
import { DataType, elementCount, floatTensor, type Tensor } from "../../agent/onnx/tensor.ts";
import { randomIn } from "./gradient.helpers.ts";
import { runGraph } from "./run-graph.helpers.ts";

const zeroPoint = (
  dataType: DataType,
  values: readonly number[],
  dims: readonly number[],
): Tensor => {
  const array = {
    [DataType.INT8]: Int8Array,
    [DataType.UINT8]: Uint8Array,
    [DataType.UINT16]: Uint16Array,
  }[dataType as DataType.INT8 | DataType.UINT8 | DataType.UINT16];
  return { dims, dataType, data: array.from(values) };
};

/** Gradient of Σ w · y, y made of x by `nodes`, in ONNX Runtime. */
async function gradientOf(
  nodes: readonly Node[],
  x: { dims: readonly number[]; data: Float32Array },
  weights: Float32Array,
  constants: Readonly<Record<string, Tensor>>,
  opset = 17,
): Promise<Float32Array> {
  const forward = buildModel({
    inputs: [floatValue("x", x.dims)],
    outputs: [floatValue("y", x.dims)],
    nodes: [
      ...nodes,
      node("Mul", ["y", "w"], ["product"]),
      node("ReduceSum", ["product"], ["loss"], { keepdims: 0 }),
    ],
    initializers: { ...constants, w: floatTensor(x.dims, weights) },
    opset,
  });
  const inputDims = new Map([["x", x.dims]]);
  const { graph, gradients } = buildGradientGraph(forward, { inputDims, loss: "loss", of: ["x"] });
  const { data } = (await runGraph(graph, { x }))[gradients.get("x")!]!;
  return data.map((value) => value + 0); // −0 + 0 is 0
}

const PAIR = (attributes = {}, zero = true): Node[] => {
  const parameters = zero ? ["scale", "zero"] : ["scale"];
  return [
    node("QuantizeLinear", ["x", ...parameters], ["q"], attributes),
    node("DequantizeLinear", ["q", ...parameters], ["y"], attributes),
  ];
};

const DIMS = [2, 3, 4, 5];
const COUNT = elementCount(DIMS);
const x = { dims: DIMS, data: Float32Array.from(randomIn(DIMS, 1, -4, 4).data) };
const weights = Float32Array.from(randomIn(DIMS, 2).data);

/** Straight-through gradient: w where the code before it is cut off is in the range. */
function expected(code: (x: number, place: number) => number, least: number, largest: number) {
  return weights.map((weight, i) => {
    const value = code(x.data[i]!, i);
    return value >= least && value <= largest ? weight : 0;
  });
}

test("gradient of quantization: straight through inside the codes, 0 outside, a tensor", async () => {
  for (const [type, zero, least, largest] of [
    [DataType.INT8, 0, -128, 127],
    [DataType.INT8, -100, -128, 127],
    [DataType.UINT8, 128, 0, 255],
    [DataType.UINT8, 0, 0, 255],
  ] as const) {
    const scale = 0.02;
    const gradient = await gradientOf(PAIR(), x, weights, {
      scale: floatTensor([], [scale]),
      zero: zeroPoint(type, [zero], []),
    });
    const wanted = expected((value) => value / scale + zero, least, largest);
    assert.deepEqual(gradient, wanted);
    const passed = wanted.filter((value) => value !== 0).length;
    assert.ok(passed > COUNT / 10 && passed < (9 * COUNT) / 10, `${passed} of ${COUNT} pass`);
  }
});

test("gradient of quantization: each channel has its range, along any axis", async () => {
  for (const axis of [1, -1, 0, 2]) {
    const size = DIMS.at(axis)!;
    const behind = elementCount(DIMS.slice(axis === -1 ? 4 : axis + 1));
    const channel = (place: number) => Math.floor(place / behind) % size;
    const scales = Array.from({ length: size }, (_, i) => 0.01 * (i + 1));
    const zeros = scales.map((_, i) => 10 * i - 20);
    const gradient = await gradientOf(PAIR({ axis }), x, weights, {
      scale: floatTensor([size], scales),
      zero: zeroPoint(DataType.INT8, zeros, [size]),
    });
    const code = (value: number, i: number) => value / scales[channel(i)]! + zeros[channel(i)]!;
    assert.deepEqual(gradient, expected(code, -128, 127), `axis ${axis}`);
  }
});

test("gradient of quantization: without a zero point, codes of the type that is stated", async () => {
  const scale = floatTensor([], [0.01]);
  const code = (value: number) => value / Math.fround(0.01);
  const unsigned = await gradientOf(PAIR({}, false), x, weights, { scale });
  assert.deepEqual(unsigned, expected(code, 0, 255));
  const quantize = node("QuantizeLinear", ["x", "scale"], ["q"], { output_dtype: DataType.INT8 });
  const nodes = [quantize, node("DequantizeLinear", ["q", "scale"], ["y"])];
  assert.deepEqual(await gradientOf(nodes, x, weights, { scale }, 21), expected(code, -128, 127));
});

test("gradient of quantization: the estimate is that of the value without its rounding", async () => {
  const [scale, zero] = [0.5, 3];
  const constants = {
    scale: floatTensor([], [scale]),
    zero: zeroPoint(DataType.UINT16, [zero], []),
  };
  const gradient = await gradientOf(PAIR(), x, weights, constants, 21);
  const smooth = (value: number) =>
    (Math.min(Math.max(value / scale + zero, 0), 65535) - zero) * scale;
  gradient.forEach((value, i) => {
    const [more, less] = [smooth(x.data[i]! + 1e-4), smooth(x.data[i]! - 1e-4)];
    assert.ok(Math.abs(value - (weights[i]! * (more - less)) / 2e-4) < 1e-6);
  });
});

test("gradient of quantization: refused where a scale is trained, or comes in blocks", () => {
  const build = (nodes: readonly Node[], of: string, constants: Record<string, Tensor>) =>
    buildGradientGraph(
      buildModel({
        inputs: [floatValue("x", [2, 4])],
        outputs: [],
        nodes: [...nodes, node("ReduceSum", ["y"], ["loss"], { keepdims: 0 })],
        initializers: constants,
        opset: 21,
      }),
      { inputDims: new Map([["x", [2, 4]]]), loss: "loss", of: [of] },
    );
  const scale = floatTensor([], [1]);
  assert.throws(
    () => build(PAIR({}, false), "scale", { scale }),
    /DequantizeLinear "y".*scale is not constant/,
  );
  const blocks = { scale: floatTensor([2, 2], [1, 1, 1, 1]) };
  assert.throws(
    () => build(PAIR({ block_size: 2 }, false), "x", blocks),
    /QuantizeLinear "q".*got blocks/,
  );
  const small: Tensor = { dims: [], dataType: DataType.INT4, data: Uint8Array.of(0) };
  assert.throws(() => build(PAIR(), "x", { scale, zero: small }), /8 or 16 bits, got INT4/);
});
