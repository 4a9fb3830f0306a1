import assert from "node:assert/strict";
import { test } from "node:test";
import { splitHardSwish } from "../../agent/onnx/activations.ts";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import type { Graph } from "../../agent/onnx/graph.ts";
import { type ActivationEncoding, quantizeGraph } from "../../agent/onnx/qdq.ts";
import {
  absorbClipping,
  encodedValues,
  gateOffsets,
  integerNodes,
} from "../../agent/onnx/qdq-nodes.ts";
import { checkTopologicalOrder } from "../../agent/onnx/query.ts";
import { withExtraOutputs } from "../../agent/onnx/subgraph.ts";
import { floatTensor } from "../../agent/onnx/tensor.ts";
import { fusedNodes } from "./fused-nodes.helpers.ts";
import { randomInput, randomValues, runGraph } from "./run-graph.helpers.ts";

const X: ActivationEncoding = { type: "uint8", scale: Math.fround(2 / 255), zeroPoint: 128 };
const Y: ActivationEncoding = { type: "uint8", scale: Math.fround(6 / 255), zeroPoint: 0 };
const BIAS = [0.1, -0.2, 0.3, 0];
/** Of 7 bits, since not every processor that runs these tests adds two products of 8 exactly. */
const CODES = Int8Array.from(randomValues(4 * 3 * 9, 1), (w) => Math.round(w * 63));
const SCALES = Float32Array.of(0.02, 0.04, 0.01, 0.02);
const CONV = buildModel({
  inputs: [floatValue("x", ["N", 3, 8, 8])],
  outputs: [floatValue("z", ["N", 4, 6, 6])],
  nodes: [node("Conv", ["x", "w", "b"], ["y"]), node("Relu", ["y"], ["z"])],
  initializers: {
    w: floatTensor(
      [4, 3, 3, 3],
      Array.from(CODES, (code, i) => code * SCALES[Math.floor(i / 27)]!),
    ),
    b: floatTensor([4], BIAS),
  },
});

function integerConv(): Graph {
  const { graph, nodes } = absorbClipping(CONV, integerNodes(CONV));
  return quantizeGraph(graph, {
    nodes,
    activations: new Map([
      ["x", X],
      ["z", Y],
    ]),
    weights: new Map([["w", { values: CODES, scales: SCALES, axis: 0 }]]),
  });
}

function code(value: number, { scale, zeroPoint }: ActivationEncoding): number {
  const q = value / scale;
  const even = Math.abs(q % 1) === 0.5 ? 2 * Math.round(q / 2) : Math.round(q);
  return Math.max(0, Math.min(255, even + zeroPoint));
}

/** The convolution in plain integers, its bias rounded to the scale of the products. */
function convolveIntegers(x: Float32Array): number[] {
  const q = Array.from(x, (value) => code(value, X) - X.zeroPoint);
  return Array.from({ length: 4 * 36 }, (_, at) => {
    const [o, row, col] = [Math.floor(at / 36), Math.floor(at / 6) % 6, at % 6] as const;
    const scale = Math.fround(SCALES[o]! * X.scale);
    let sum = Math.round(BIAS[o]! / scale);
    for (let c = 0; c < 3; c++) {
      for (let k = 0; k < 9; k++) {
        const pixel = q[c * 64 + (row + Math.floor(k / 3)) * 8 + col + (k % 3)]!;
        sum += pixel * CODES[o * 27 + c * 9 + k]!;
      }
    }
    return (code(sum * scale, Y) - Y.zeroPoint) * Y.scale;
  });
}

test("qdq: a convolution gives what plain integers give, its Relu done by saturation", async () => {
  const x = randomInput([1, 3, 8, 8], 2);
  const { z } = await runGraph(integerConv(), { x });
  const expected = convolveIntegers(x.data);
  assert.ok(expected.some((value) => value === 0) && expected.some((value) => value > 1));
  expected.forEach((value, i) => {
    // A sum that lies on the border between two codes may fall to either side.
    assert.ok(Math.abs(z!.data[i]! - value) <= Y.scale * 1.001, `${z!.data[i]} for ${value}`);
  });
  const off = expected.filter((value, i) => Math.abs(z!.data[i]! - value) > 1e-4).length;
  assert.ok(off <= 2, `${off} codes differ`);
});

test("qdq: ONNX Runtime fuses a convolution and its Relu into one integer node", async () => {
  const counts = await fusedNodes(integerConv());
  assert.equal(counts["QLinearConv"], 1);
  assert.equal(counts["Conv"] ?? counts["Relu"], undefined);
  assert.equal(counts["QuantizeLinear"], 1);
  assert.equal(counts["DequantizeLinear"], 1);
});

test("qdq: a hard-swish is a cut and a product of integers, exact but for the rounding", async () => {
  const weights = (seed: number) => floatTensor([4, 4, 1, 1], randomValues(16, seed));
  const graph = splitHardSwish(
    buildModel({
      inputs: [floatValue("x", ["N", 4, 6, 6])],
      outputs: [floatValue("y", ["N", 4, 6, 6])],
      nodes: [
        node("Conv", ["x", "w0"], ["c"]),
        node("HardSwish", ["c"], ["h"]),
        node("Conv", ["h", "w1"], ["y"]),
      ],
      initializers: { w0: weights(11), w1: weights(12) },
    }),
  );
  const nodes = integerNodes(graph);
  assert.equal(nodes.size, 4);
  assert.deepEqual([...gateOffsets(graph, nodes)], [["c", 3]]);
  const names = encodedValues(graph, nodes);
  assert.deepEqual(names.sort(), ["c", "h", "x", "y"]);
  assert.ok(!integerNodes(graph, new Set(), false).has("h"), "symmetric integers cannot cut at −3");
  const identity = floatTensor([4, 4, 1, 1], [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]);
  const plain = { ...graph, initializers: new Map([["w0", identity] as const, ["w1", identity]]) };
  const codes = Int8Array.from(identity.data as Float32Array, (w) => 127 * w);
  const weight = { values: codes, scales: new Float32Array(4).fill(1 / 127), axis: 0 };
  const signed = { type: "uint8", scale: 16 / 255, zeroPoint: 128 } as const;
  const integers = quantizeGraph(plain, {
    nodes,
    activations: new Map<string, ActivationEncoding>([
      ["x", signed],
      ["c", { type: "uint8", scale: Math.fround(3 / 70), zeroPoint: 70 }],
      ["h", { type: "uint8", scale: 8.4 / 255, zeroPoint: 12 }],
      ["y", { type: "uint8", scale: 8.4 / 255, zeroPoint: 12 }],
    ]),
    weights: new Map([
      ["w0", weight],
      ["w1", weight],
    ]),
  });
  const data = Float32Array.from({ length: 144 }, (_, i) => (i - 72) / 9);
  const { y } = await runGraph(integers, { x: { data, dims: [1, 4, 6, 6] } });
  data.forEach((x, i) => {
    const expected = (x * Math.min(6, Math.max(0, x + 3))) / 6;
    assert.ok(Math.abs(y!.data[i]! - expected) < 0.1, `${y!.data[i]} for ${expected} at ${x}`);
  });
  const counts = await fusedNodes(integers);
  for (const [type, count] of [
    ["QLinearConv", 2],
    ["Clip", 1],
    ["QLinearMul", 1],
    ["QuantizeLinear", 1],
    ["DequantizeLinear", 1],
  ] as const) {
    assert.equal(counts[type], count, type);
  }
  const wrong = new Map<string, ActivationEncoding>(names.map((name) => [name, signed]));
  assert.throws(
    () => quantizeGraph(plain, { nodes, activations: wrong, weights: new Map() }),
    RangeError,
  );
});

test("qdq: a gate whose input is read elsewhere too, or that never closes, stays in float", () => {
  const gated = (others: readonly ReturnType<typeof node>[], beta: number) =>
    buildModel({
      inputs: [floatValue("x", ["N", 4, 6, 6])],
      outputs: [floatValue("y", ["N", 4, 6, 6])],
      nodes: [
        node("Conv", ["x", "w0"], ["c"]),
        node("HardSigmoid", ["c"], ["g"], { beta }),
        node("Mul", ["c", "g"], ["h"]),
        ...others,
      ],
      initializers: { w0: floatTensor([4, 4, 1, 1], randomValues(16, 11)) },
    });
  const same = node("Identity", ["h"], ["y"]);
  assert.ok(integerNodes(gated([same], 0.5)).has("g"));
  assert.ok(!integerNodes(gated([same], -0.5)).has("g"));
  assert.ok(!integerNodes(gated([node("Add", ["h", "c"], ["y"])], 0.5)).has("g"));
});

const BLOCK = buildModel({
  inputs: [floatValue("x", ["N", 4, 6, 6])],
  outputs: [floatValue("y", ["N", 2])],
  nodes: [
    node("Conv", ["x", "w0", "b0"], ["c0"], { pads: [1, 1, 1, 1] }),
    node("Sigmoid", ["c0"], ["s0"]),
    node("Mul", ["c0", "s0"], ["swish"]),
    node("Conv", ["swish", "w1"], ["c1"]),
    node("Add", ["c1", "swish"], ["sum"]),
    node("Softplus", ["sum"], ["float"]),
    node("Conv", ["float", "w1"], ["c2"]),
    node("Clip", ["c2", "zero", "six"], ["clipped"]),
    node("GlobalAveragePool", ["clipped"], ["pool"]),
    node("Flatten", ["pool"], ["flat"]),
    node("Gemm", ["flat", "w2", "b2"], ["y"]),
  ],
  initializers: {
    w0: floatTensor([4, 4, 3, 3], randomValues(144, 3)),
    b0: floatTensor([4], randomValues(4, 4)),
    w1: floatTensor([4, 4, 1, 1], randomValues(16, 5)),
    w2: floatTensor([4, 2], randomValues(8, 6)),
    b2: floatTensor([2], randomValues(2, 7)),
    zero: floatTensor([], [0]),
    six: floatTensor([], [6]),
  },
});

test("qdq: what lies between integer nodes becomes integer, and nothing else does", () => {
  const nodes = integerNodes(BLOCK);
  const expected = ["c0", "s0", "swish", "c1", "sum", "c2", "pool", "flat", "y"];
  assert.deepEqual([...nodes].sort(), [...expected].sort());
  const { graph } = absorbClipping(BLOCK, nodes);
  assert.ok(!graph.nodes.some(({ opType }) => opType === "Clip"));
  const left = integerNodes(BLOCK, new Set(["c0"]));
  assert.ok(!left.has("swish") && left.has("c1") && !left.has("sum"));
});

test("qdq: shared weights, values read by integers and floats, and outputs keep their names", async () => {
  const { graph, nodes } = absorbClipping(BLOCK, integerNodes(BLOCK));
  const names = encodedValues(graph, nodes);
  assert.ok(!names.includes("y"), "the last Gemm hands out floats");
  const seen = await runGraph(withExtraOutputs(BLOCK, names), { x: randomInput([3, 4, 6, 6], 8) });
  const rangeOf = (name: string): ActivationEncoding => {
    const data = name === "x" ? [-1, 1] : seen[name]!.data;
    const [low, high] = [Math.min(0, ...data), Math.max(0, ...data)];
    const scale = (high - low) / 255;
    return { type: "uint8", scale, zeroPoint: Math.round(-low / scale) };
  };
  const encode = (name: string, axis: number) => {
    const { dims, data } = BLOCK.initializers.get(name)!;
    const scales = new Float32Array(dims[axis]!).fill(1 / 63);
    return {
      values: Int8Array.from(data as Float32Array, (w) => Math.round(w * 63)),
      scales,
      axis,
    };
  };
  const quantized = quantizeGraph(graph, {
    nodes,
    activations: new Map(names.map((name) => [name, rangeOf(name)])),
    weights: new Map([
      ["w0", encode("w0", 0)],
      ["w1", encode("w1", 0)],
      ["w2", encode("w2", 1)],
    ]),
  });
  checkTopologicalOrder(quantized);
  assert.equal([...quantized.initializers.keys()].filter((n) => n.startsWith("w1_")).length, 3);
  assert.deepEqual(
    quantized.outputs.map(({ name }) => name),
    ["y"],
  );
  for (const batch of [1, 3]) {
    const x = randomInput([batch, 4, 6, 6], 8);
    const [exact, rounded] = [await runGraph(BLOCK, { x }), await runGraph(quantized, { x })];
    assert.deepEqual(rounded["y"]!.dims, [batch, 2]);
    rounded["y"]!.data.forEach((value, i) => {
      assert.ok(Math.abs(value - exact["y"]!.data[i]!) < 0.03, `${value}`);
    });
  }
  const counts = await fusedNodes(quantized);
  assert.equal(counts["QLinearConv"], 3);
  assert.equal(counts["QLinearSigmoid"], 1);
  assert.equal(counts["QLinearMul"], 1);
  assert.equal(counts["QLinearAdd"], 1);
  assert.equal(counts["QLinearGlobalAveragePool"], 1);
  assert.equal(counts["QGemm"], 1);
});

test("qdq: encodings that are missing or make no sense are refused by name", () => {
  const weights = new Map([["w", { values: CODES, scales: SCALES, axis: 0 }]]);
  const attempt = (x: ActivationEncoding) => () =>
    quantizeGraph(CONV, { nodes: new Set(["y"]), activations: new Map([["x", x]]), weights });
  assert.throws(attempt({ ...X, scale: 0 }), /"x": expected a positive, finite scale/);
  assert.throws(attempt({ ...X, zeroPoint: 256 }), /zero point that fits uint8/);
  assert.throws(
    () => quantizeGraph(CONV, { nodes: new Set(["y"]), activations: new Map(), weights }),
    /encoding of "x"/,
  );
  assert.throws(
    () =>
      quantizeGraph({ ...CONV, opset: 12 }, { nodes: new Set(), activations: new Map(), weights }),
    /expected opset 13/,
  );
});
