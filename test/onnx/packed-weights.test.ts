import assert from "node:assert/strict";
import { readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { InferenceSession } from "onnxruntime-node";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import { type Graph, readGraph, writeGraph } from "../../agent/onnx/graph.ts";
import { halveConstants } from "../../agent/onnx/half-constants.ts";
import { countParameters, replaceInitializer } from "../../agent/onnx/initializers.ts";
import { type PackedWeight, packWeights, storedScales } from "../../agent/onnx/packed-weights.ts";
import { checkTopologicalOrder } from "../../agent/onnx/query.ts";
import { floatTensor } from "../../agent/onnx/tensor.ts";
import { largestDifference, randomInput, randomValues, runGraph } from "./run-graph.helpers.ts";

const [ROWS, COLS] = [12, 18];

/** A 3×3 convolution, a Gemm and a MatMul, with weights that have as many rows and columns. */
function network(): Graph {
  const zeros = (dims: readonly number[]) => floatTensor(dims, new Float32Array(ROWS * COLS));
  return buildModel({
    inputs: [floatValue("x", [2, 2, 5, 3]), floatValue("v", [4, COLS])],
    outputs: ["conv", "gemm", "matmul"].map((name) => floatValue(name, null)),
    nodes: [
      node("Conv", ["x", "conv_w", "bias"], ["conv"]),
      node("Gemm", ["v", "gemm_w"], ["gemm"], { transB: 1 }),
      node("MatMul", ["v", "matmul_w"], ["matmul"]),
    ],
    initializers: {
      conv_w: zeros([ROWS, 2, 3, 3]),
      gemm_w: zeros([ROWS, COLS]),
      matmul_w: zeros([COLS, ROWS]),
      bias: floatTensor([ROWS], randomValues(ROWS, 9)),
    },
  });
}

/** Random codes, with as many of them 0 as wanted. */
function weightOf(
  bits: number,
  blockSize: number,
  order: "rows" | "cols",
  zeros = 0,
): PackedWeight {
  const random = randomValues(ROWS * COLS, bits + blockSize);
  const chance = randomValues(ROWS * COLS, bits);
  const count = (ROWS * COLS) / blockSize;
  const asymmetric = zeros === 0;
  const zero = Uint8Array.from({ length: count }, (_, i) =>
    asymmetric ? (i * 3) % 2 ** bits : 2 ** (bits - 1),
  );
  const codes = Uint8Array.from(random, (w, i) => {
    const wanted = Math.min(2 ** bits - 1, Math.floor(((w + 1) / 2) * 2 ** bits));
    return (chance[i]! + 1) / 2 < zeros ? zero[Math.floor(i / blockSize)]! : wanted;
  });
  const scale = Float32Array.from({ length: count }, (_, i) => 0.01 + 0.001 * i);
  return { bits, codes, rows: ROWS, cols: COLS, blockSize, scale, zero, order };
}

/** scale · (code − zero), by the definition, as the initializer lies. */
function valuesOf({ codes, scale, zero, blockSize, order }: PackedWeight): Float32Array {
  const stored = storedScales(scale);
  const W = Float32Array.from(codes, (code, i) => {
    const block = Math.floor(i / blockSize);
    return stored[block]! * (code - zero[block]!);
  });
  if (order === "rows") return W;
  return Float32Array.from(W, (_, i) => W[(i % ROWS) * COLS + Math.floor(i / ROWS)]!);
}

function withFloats(graph: Graph, weights: ReadonlyMap<string, PackedWeight>): Graph {
  return [...weights].reduce((made, [name, weight]) => {
    const { dims } = made.initializers.get(name)!;
    return replaceInitializer(made, name, floatTensor(dims, valuesOf(weight)));
  }, graph);
}

function weightsOf(bits: number, blockSize: number, zeros?: number): Map<string, PackedWeight> {
  return new Map([
    ["conv_w", weightOf(bits, blockSize, "rows", zeros)],
    ["gemm_w", weightOf(bits, blockSize, "rows", zeros)],
    ["matmul_w", weightOf(bits, blockSize, "cols", zeros)],
  ]);
}

const FEEDS = { x: randomInput([2, 2, 5, 3], 1), v: randomInput([4, COLS], 2) };

test("packed weights: ONNX Runtime decodes 2 to 8 bits, by row and by block, dense and sparse", async () => {
  for (const bits of [2, 3, 4, 5, 8]) {
    for (const [blockSize, zeros] of [
      [COLS, 0],
      [6, 0],
      [COLS, 0.6],
      [9, 0.9],
    ] as const) {
      const weights = weightsOf(bits, blockSize, zeros);
      const packed = readGraph(writeGraph(packWeights(network(), weights)));
      checkTopologicalOrder(packed);
      const float = withFloats(network(), weights);
      const [wanted, got] = [await runGraph(float, FEEDS), await runGraph(packed, FEEDS)];
      for (const name of Object.keys(wanted)) {
        const off = largestDifference(wanted[name]!.data, got[name]!.data);
        assert.ok(off < 1e-6, `${name}, ${bits} bits, blocks of ${blockSize}, ${zeros}: ${off}`);
      }
      assert.deepEqual(countParameters(packed), countParameters(float));
    }
  }
});

test("packed weights: nothing of the decoding is left in what ONNX Runtime runs", async () => {
  const path = join(tmpdir(), `taco-packed-${process.pid}.onnx`);
  for (const weights of [weightsOf(3, 6), weightsOf(4, COLS, 0.6)]) {
    const graph = packWeights(network(), weights);
    const session = await InferenceSession.create(writeGraph(graph), {
      optimizedModelFilePath: path,
      logSeverityLevel: 3,
    });
    await session.release();
    const types = readGraph(readFileSync(path)).nodes.map(({ opType }) => opType);
    rmSync(path);
    const left = types.filter((type) => !/^(Conv|Gemm|MatMul|Reorder\w+)$/.test(type));
    assert.deepEqual(left, []);
  }
});

test("packed weights: what does not fit is refused, saying what", () => {
  const weight = weightOf(4, COLS, "rows");
  const refused = (other: Partial<PackedWeight>, message: RegExp) =>
    assert.throws(
      () => packWeights(network(), new Map([["conv_w", { ...weight, ...other }]])),
      message,
    );
  refused({ codes: new Uint8Array(5) }, /expected 12 × 18 values and codes, got 216 and 5/);
  refused({ scale: new Float32Array(3) }, /expected 12 × 1 scales and zeros, got 3 and 12/);
  const old = { ...network(), opset: 10 };
  assert.throws(() => packWeights(old, new Map()), /expected opset 11 or later, got 10/);
});

test("packed weights: floats that are left take half of the bytes, unless that harms them", async () => {
  const values = randomValues(400, 4);
  const graph = buildModel({
    inputs: [floatValue("x", [400])],
    outputs: [floatValue("y", [400]), floatValue("z", [400])],
    nodes: [node("Add", ["x", "plain"], ["y"]), node("Mul", ["x", "wide"], ["z"])],
    initializers: {
      plain: floatTensor([400], values),
      wide: floatTensor(
        [400],
        values.map((v) => 1e6 * v),
      ),
    },
  });
  const halved = halveConstants(graph, new Set());
  assert.equal(writeGraph(graph).length - writeGraph(halved).length > 700, true);
  assert.deepEqual(countParameters(halved), countParameters(graph));
  const feeds = { x: randomInput([400], 5) };
  const [before, after] = [await runGraph(graph, feeds), await runGraph(halved, feeds)];
  assert.ok(largestDifference(before["y"]!.data, after["y"]!.data) < 2 ** -11);
  assert.deepEqual(before["z"], after["z"]);
  assert.equal(halveConstants(graph, new Set(["plain"])).nodes.length, graph.nodes.length);
});
