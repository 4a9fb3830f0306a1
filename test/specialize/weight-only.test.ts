import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { createLogger } from "../../agent/log.ts";
import { createRandom } from "../../agent/math/random.ts";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import { type Graph, readGraph, writeGraph } from "../../agent/onnx/graph.ts";
import { countParameters, replaceInitializer } from "../../agent/onnx/initializers.ts";
import { findPrunableLayers, readWeightMatrix } from "../../agent/onnx/prunable-layers.ts";
import { floatTensor, toFloat32 } from "../../agent/onnx/tensor.ts";
import { createEngine, type Engine } from "../../agent/specialize/engine.ts";
import type { Calibration, CompressEnvironment } from "../../agent/specialize/environment.ts";
import { compareOutputs, outputsOf } from "../../agent/specialize/output-difference.ts";
import { storeWeights } from "../../agent/specialize/weight-only.ts";
import { environmentOf } from "./environment.helpers.ts";

let engine: Engine;
let workDir: string;

before(async () => {
  const log = createLogger("error");
  engine = await createEngine({ executionProviders: ["cpu"], intraOpThreads: 1, log });
  workDir = mkdtempSync(join(tmpdir(), "taco-weights-"));
});

after(async () => {
  await engine.close();
  rmSync(workDir, { recursive: true });
});

function values(count: number, seed: number, size = 1): Float32Array {
  const random = createRandom(seed);
  return Float32Array.from({ length: count }, () => size * (2 * random.uniform() - 1));
}

function pictures(batches: number, from = 50): Calibration {
  return {
    batches,
    read: (batch) =>
      Promise.resolve({ data: values(4 * 3 * 144, from + batch), dims: [4, 3, 12, 12] }),
  };
}

function environment(): CompressEnvironment {
  return environmentOf(engine, workDir, pictures(6));
}

/** A stem, an inverted residual block of 3×3, depthwise and 1×1, and matrix products behind. */
function network(): Graph {
  const weights = (seed: number, ...dims: number[]) => {
    const count = dims.reduce((product, dim) => product * dim, 1);
    return floatTensor(dims, values(count, seed, Math.sqrt(3 / (count / dims[0]!))));
  };
  const same = { pads: [1, 1, 1, 1] };
  return buildModel({
    inputs: [floatValue("x", ["N", 3, 12, 12])],
    outputs: [floatValue("features", ["N", 24])],
    nodes: [
      node("Conv", ["x", "stem", "stem_bias"], ["a"], { ...same, strides: [2, 2] }),
      node("Relu", ["a"], ["ar"]),
      node("Conv", ["ar", "expand"], ["b"], same),
      node("Relu", ["b"], ["br"]),
      node("Conv", ["br", "depthwise"], ["c"], { ...same, group: 64 }),
      node("Relu", ["c"], ["cr"]),
      node("Conv", ["cr", "project"], ["d"]),
      node("Add", ["d", "ar"], ["e"]),
      node("GlobalAveragePool", ["e"], ["pooled"]),
      node("Flatten", ["pooled"], ["flat"]),
      node("MatMul", ["flat", "hidden"], ["f"]),
      node("Relu", ["f"], ["fr"]),
      node("Gemm", ["fr", "last"], ["features"], { transB: 1 }),
    ],
    initializers: {
      stem: weights(1, 32, 3, 3, 3),
      stem_bias: floatTensor([32], values(32, 2, 0.2)),
      expand: weights(3, 64, 32, 3, 3),
      depthwise: weights(4, 64, 1, 3, 3),
      project: weights(6, 32, 64, 1, 1),
      hidden: weights(7, 32, 64),
      last: weights(8, 24, 64),
    },
  });
}

async function errorOf(dense: Graph, other: Graph): Promise<number> {
  const { signal } = new AbortController();
  const held = pictures(3, 90);
  const wanted = await outputsOf(dense, held, engine, signal);
  return compareOutputs(wanted, await outputsOf(other, held, engine, signal)).relativeError;
}

/** Every weight matrix rounded to nearest, one symmetric scale a row by its largest weight. */
function rounded(dense: Graph, bits: number): Graph {
  let graph = dense;
  for (const layer of findPrunableLayers(dense)) {
    const W = readWeightMatrix(dense, layer);
    const { inFeaturesPerGroup: cols, weightName, weightOrder, outFeatures: rows } = layer;
    const levels = 2 ** (bits - 1) - 1;
    const Q = W.map((w, i) => {
      const row = W.subarray(i - (i % cols), i - (i % cols) + cols);
      const scale = row.reduce((most, v) => Math.max(most, Math.abs(v)), 0) / levels;
      return Math.round(w / scale) * scale;
    });
    const stored =
      weightOrder === "rows" ? Q : Q.map((_, i) => Q[(i % rows) * cols + Math.floor(i / rows)]!);
    const { dims } = dense.initializers.get(weightName)!;
    graph = replaceInitializer(graph, weightName, floatTensor(dims, stored));
  }
  return graph;
}

test("weight-only: 4 and 3 bits, smaller than bytes and closer than rounding to nearest", async () => {
  const dense = network();
  const floats = writeGraph(dense).length;
  const sizes: number[] = [];
  for (const bits of [4, 3]) {
    const { graph, reports, refused } = await storeWeights(dense, { ...environment(), bits });
    assert.deepEqual(refused, []);
    const file = writeGraph(graph);
    sizes.push(file.length);
    const error = await errorOf(dense, readGraph(file));
    assert.ok(error < 0.5 * (await errorOf(dense, rounded(dense, bits))), `${bits}: ${error}`);
    assert.equal(countParameters(graph).parameters, countParameters(dense).parameters + 96);
    const of = new Map(reports.map((report) => [report.name, report]));
    assert.deepEqual([...of.keys()], ["a", "b", "c", "d", "f", "features"]);
    for (const name of ["a", "c"]) assert.equal(of.get(name)!.method, "int8 weights");
    for (const name of ["b", "d", "f", "features"]) {
      const { method, relativeLoss } = of.get(name)!;
      const own = Number(/^int(\d) weights, a scale for /.exec(method)?.[1]);
      assert.ok(name === "b" ? own === bits : own > bits && own < 8, `${name}: ${method}`);
      assert.ok(relativeLoss! > 0 && relativeLoss! < (bits === 4 ? 0.02 : 0.06), `${relativeLoss}`);
    }
  }
  assert.ok(sizes[0]! < floats / 5 && sizes[1]! < sizes[0]!, `${floats} → ${sizes}`);
});

test("weight-only: zeros and codes in one pass; pruned weights stay exactly zero", async () => {
  const dense = network();
  const half = { kind: "unstructured", sparsity: 0.5 } as const;
  const patterns = new Map(["b", "d"].map((name) => [name, half]));
  const { graph, reports } = await storeWeights(dense, { ...environment(), bits: 4, patterns });
  const plain = await storeWeights(dense, { ...environment(), bits: 4 });
  assert.ok(
    writeGraph(graph).length < 0.95 * writeGraph(plain.graph).length,
    "zeros take no codes",
  );
  const missing = countParameters(plain.graph).nonzero - countParameters(graph).nonzero;
  assert.ok(missing > 0.35 * (64 * 288 + 32 * 64), `${missing} zeros`);
  const b = reports.find(({ name }) => name === "b")!;
  assert.match(b.method, /^unstructured:0\.5\+int4 weights/);
  assert.ok(b.sparsity >= 0.5 && b.relativeLoss! > 0.01);
  assert.ok((await errorOf(dense, graph)) < 0.2);
});

test("weight-only: weights of two layers stay float, and an old operator set is refused", async () => {
  const dense = network();
  const shared = {
    ...dense,
    nodes: [
      ...dense.nodes.slice(0, -1),
      node("MatMul", ["flat", "hidden"], ["f2"]),
      node("Add", ["f2", "fr"], ["sum"]),
      node("Gemm", ["sum", "last"], ["features"], { transB: 1 }),
    ],
  };
  const { graph, reports } = await storeWeights(shared, { ...environment(), bits: 4 });
  assert.match(reports.find(({ name }) => name === "f")!.method, /its weights serve f2 too/);
  assert.ok((await errorOf(shared, graph)) < 0.05);
  const old = { ...dense, opset: 10 };
  const { graph: same, refused } = await storeWeights(old, { ...environment(), bits: 4 });
  assert.equal(same, old);
  assert.match(refused[0]!.reason, /need opset 11/);
});

test("weight-only: constant inputs and empty rows give no NaN", async () => {
  const dense = network();
  const dead = toFloat32(dense.initializers.get("expand")!)
    .slice()
    .fill(0, 0, 5 * 288);
  const graph = replaceInitializer(dense, "expand", floatTensor([64, 32, 3, 3], dead));
  const still = { batches: 1, read: () => pictures(1).read(0) };
  const one = await storeWeights(graph, { ...environment(), calibration: still, bits: 3 });
  assert.ok(Number.isFinite(await errorOf(graph, one.graph)));
});
