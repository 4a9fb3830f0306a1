import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { createLogger } from "../../agent/log.ts";
import { createRandom } from "../../agent/math/random.ts";
import { replaceSwish } from "../../agent/onnx/activations.ts";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import { type Graph, readGraph, writeGraph } from "../../agent/onnx/graph.ts";
import { DataType, floatTensor, toFloat32 } from "../../agent/onnx/tensor.ts";
import { swapForIntegers } from "../../agent/specialize/activation-swap.ts";
import { createEngine, type Engine } from "../../agent/specialize/engine.ts";
import type { Calibration, CompressEnvironment } from "../../agent/specialize/environment.ts";
import { compareOutputs, outputsOf } from "../../agent/specialize/output-difference.ts";
import { quantizeNetwork } from "../../agent/specialize/quantize-network.ts";
import { fusedNodes } from "../onnx/fused-nodes.helpers.ts";
import { deviceWith, environmentOf } from "./environment.helpers.ts";

let engine: Engine;
let workDir: string;

before(async () => {
  const log = createLogger("error");
  engine = await createEngine({ executionProviders: ["cpu"], intraOpThreads: 1, log });
  workDir = mkdtempSync(join(tmpdir(), "taco-quantize-"));
});

after(async () => {
  await engine.close();
  rmSync(workDir, { recursive: true });
});

function values(count: number, seed: number, size = 1): Float32Array {
  const random = createRandom(seed);
  return Float32Array.from({ length: count }, () => size * (2 * random.uniform() - 1));
}

function pictures(batches: number, size = 1): Calibration {
  return {
    batches,
    read: (batch) =>
      Promise.resolve({ data: values(4 * 3 * 144, 50 + batch, size), dims: [4, 3, 12, 12] }),
  };
}

function environment(calibration: Calibration): CompressEnvironment {
  return environmentOf(engine, workDir, calibration);
}

/** Convolutions with swishes, a depthwise one, a squeeze-excite gate and a residual Add. */
function network(): Graph {
  const weights = (seed: number, ...dims: number[]) => {
    const count = dims.reduce((product, dim) => product * dim, 1);
    const fan = count / dims[0]!;
    return floatTensor(dims, values(count, seed, Math.sqrt(3 / fan)));
  };
  const same = { pads: [1, 1, 1, 1] };
  const swish = (x: string) => [
    node("Sigmoid", [x], [`${x}_gate`]),
    node("Mul", [x, `${x}_gate`], [`${x}_swish`]),
  ];
  return buildModel({
    inputs: [floatValue("x", ["N", 3, 12, 12])],
    outputs: [floatValue("features", ["N", 8])],
    nodes: [
      node("Conv", ["x", "stem", "stem_bias"], ["a"], { ...same, strides: [2, 2] }),
      ...swish("a"),
      node("Conv", ["a_swish", "expand"], ["b"]),
      ...swish("b"),
      node("Conv", ["b_swish", "depthwise"], ["c"], { ...same, group: 16 }),
      ...swish("c"),
      node("GlobalAveragePool", ["c_swish"], ["squeezed"]),
      node("Conv", ["squeezed", "gate"], ["gate_sum"]),
      node("Sigmoid", ["gate_sum"], ["excited"]),
      node("Mul", ["c_swish", "excited"], ["scaled"]),
      node("Conv", ["scaled", "project"], ["d"]),
      node("Add", ["d", "a_swish"], ["e"]),
      node("GlobalAveragePool", ["e"], ["pooled"]),
      node("Flatten", ["pooled"], ["features"]),
    ],
    initializers: {
      stem: weights(1, 8, 3, 3, 3),
      stem_bias: floatTensor([8], values(8, 2, 0.2)),
      expand: weights(3, 16, 8, 1, 1),
      depthwise: weights(4, 16, 1, 3, 3),
      gate: weights(5, 16, 16, 1, 1),
      project: weights(6, 8, 16, 1, 1),
    },
  });
}

async function errorOf(dense: Graph, other: Graph, calibration: Calibration): Promise<number> {
  const { signal } = new AbortController();
  const wanted = await outputsOf(dense, calibration, engine, signal);
  return compareOutputs(wanted, await outputsOf(other, calibration, engine, signal)).relativeError;
}

/** Stored integers by initializer of the dense graph. */
function codesOf(graph: Graph, name: string): ArrayLike<number> {
  const tensor = graph.initializers.get(`${name}_quantized`)!;
  assert.equal(tensor.dataType, DataType.INT8);
  return tensor.data as Int8Array;
}

test("quantize-network: all layers become int8, and new pictures come out nearly the same", async () => {
  const dense = network();
  // Not every processor that runs these tests is faster with integers.
  const fast = deviceWith(engine, ({ initializers }) => (initializers.has("stem") ? 3 : 1));
  for (const scheme of ["uint8", "int8"] as const) {
    const { graph, reports, refused } = await quantizeNetwork(dense, {
      ...environment(pictures(6)),
      engine: fast,
      scheme,
    });
    const again = readGraph(writeGraph(graph));
    const error = await errorOf(dense, again, { batches: 1, read: () => pictures(9).read(8) });
    assert.ok(error < 0.003, `${scheme}: ${error}`);
    assert.deepEqual(refused, []);
    assert.deepEqual(
      reports.map(({ name, method }) => [name, method]),
      ["a", "b", "c", "gate_sum", "d"].map((name) => [name, "int8"]),
    );
    for (const { name, relativeLoss } of reports) {
      if (name === "c") assert.equal(relativeLoss, null);
      else assert.ok(relativeLoss !== null && relativeLoss < 1e-3, `${name}: ${relativeLoss}`);
    }
    const activations = [...again.initializers].filter(([name]) => name.endsWith("a_zero_point"));
    for (const [, { dataType, data }] of activations) {
      assert.equal(dataType, scheme === "uint8" ? DataType.UINT8 : DataType.INT8);
      if (scheme === "int8") assert.equal(data[0], 0);
    }
    const one = await pictures(1).read(0);
    const session = await engine.open(again);
    const alone = { data: (one.data as Float32Array).slice(0, 432), dims: [1, 3, 12, 12] };
    const result = await session.run({ x: alone });
    assert.deepEqual(result["features"]!.dims, [1, 8]);
    await session.release();
  }
});

test("quantize-network: swish, hard-swish and ReLU, gates and Adds fuse into one integer island", async () => {
  const fast = deviceWith(engine, ({ initializers }) => (initializers.has("stem") ? 3 : 1));
  const options = { ...environment(pictures(4)), engine: fast };
  for (const [kind, gates] of [
    ["swish", { QLinearSigmoid: 4, QLinearMul: 4 }],
    ["hard-swish", { QLinearSigmoid: 1, Clip: 3, QLinearMul: 4 }],
    ["relu", { QLinearSigmoid: 1, QLinearMul: 1 }],
  ] as const) {
    const dense = kind === "swish" ? network() : replaceSwish(network(), kind);
    const { graph } = await quantizeNetwork(dense, { ...options, largestError: 1 });
    const counts = await fusedNodes(graph);
    const around = new Set(["Transpose", "Flatten", "Reshape"]);
    const integers = Object.entries(counts).filter(([type]) => !around.has(type));
    assert.deepEqual(Object.fromEntries(integers), {
      QuantizeLinear: 1,
      QLinearConv: 5,
      QLinearAdd: 1,
      QLinearGlobalAveragePool: 2,
      DequantizeLinear: 1,
      ...gates,
    });
  }
});

test("quantize-network: weights that are zero stay zero", async () => {
  const dense = network();
  const project = toFloat32(dense.initializers.get("project")!).map((w, i) => (i % 3 ? w : 0));
  const sparse = {
    ...dense,
    initializers: new Map(dense.initializers).set("project", floatTensor([8, 16, 1, 1], project)),
  };
  const { graph, reports } = await quantizeNetwork(sparse, environment(pictures(4)));
  const codes = codesOf(graph, "project");
  project.forEach((w, i) => {
    if (w === 0) assert.equal(codes[i], 0);
  });
  assert.ok(reports.find(({ name }) => name === "d")!.sparsity >= 1 / 3);
});

test("quantize-network: nodes named to stay in float do, and so do those that cost too much", async () => {
  const dense = network();
  const options = environment(pictures(4));
  const named = await quantizeNetwork(dense, { ...options, float: ["b"] });
  assert.ok(!named.graph.initializers.has("expand_quantized"));
  assert.ok(named.graph.initializers.has("expand"));
  assert.ok(named.graph.initializers.has("project_quantized"));
  const exact = await quantizeNetwork(dense, { ...options, largestError: 1e-7 });
  assert.ok(!exact.graph.nodes.some(({ opType }) => opType === "QuantizeLinear"));
  assert.ok(exact.reports.every(({ method }) => method.startsWith("float")));
  assert.ok((await errorOf(dense, exact.graph, pictures(2))) < 1e-4);
});

test("quantize-network: constant and huge activations give finite numbers", async () => {
  const dense = network();
  const dead = {
    ...dense,
    initializers: new Map(dense.initializers).set(
      "expand",
      floatTensor([16, 8, 1, 1], new Float32Array(128)),
    ),
  };
  for (const [graph, size] of [
    [dead, 1],
    [dense, 1e6],
    [dense, 0],
  ] as const) {
    const calibration = pictures(2, size);
    const result = await quantizeNetwork(graph, environment(calibration));
    const { signal } = new AbortController();
    const { data } = await outputsOf(result.graph, calibration, engine, signal);
    assert.ok(data.every(Number.isFinite));
  }
});

test("quantize-network: a beginning that is slower on integers stays in float", async () => {
  const cost = (names: readonly string[]) =>
    deviceWith(
      engine,
      ({ initializers }) => 1 + 2 * names.filter((name) => initializers.has(name)).length,
    );
  const options = { ...environment(pictures(4)), engine: cost(["stem_quantized", "expand"]) };
  const { graph, reports } = await quantizeNetwork(network(), options);
  const stored = [...graph.initializers.keys()];
  assert.ok(stored.includes("stem") && stored.includes("expand_quantized"), `${stored}`);
  assert.match(reports.find(({ name }) => name === "a")!.method, /^float/);
  const fast = { ...options, engine: cost(["stem", "expand"]) };
  const all = [...(await quantizeNetwork(network(), fast)).graph.initializers.keys()];
  assert.ok(all.includes("stem_quantized"), `${all}`);
});

test("activation-swap: for integers, hard-swish and the ReLUs that the error allows", async () => {
  const dense = network();
  const costs: Readonly<Record<string, number>> = { Sigmoid: 2, Clip: 1 };
  const device = deviceWith(engine, (graph) => {
    if (!graph.nodes.some(({ opType }) => opType === "DequantizeLinear")) return 0;
    return graph.nodes.reduce((sum, { opType }) => sum + (costs[opType] ?? 0), 0);
  });
  const options = { ...environment(pictures(8)), engine: device, leastPictures: 32 };
  const kindsAt = async (largestError: number) => {
    const { graph } = await swapForIntegers(dense, { ...options, largestError });
    const error = await errorOf(dense, graph, pictures(4));
    assert.ok(error <= largestError, `${error}`);
    return graph.nodes.flatMap(({ opType }) => (/Swish|Hard|Relu/.test(opType) ? [opType] : []));
  };
  assert.deepEqual(await kindsAt(1), ["Relu", "Relu", "Relu"]);
  assert.deepEqual(await kindsAt(1e-9), []);
  const some = await kindsAt(4e-3);
  assert.ok(some.length === 3 && some.includes("HardSwish"), `${some}`);
  const slow = deviceWith(engine, ({ nodes }) =>
    nodes.some(({ opType }) => opType === "Clip") ? 2 : 1,
  );
  const even = { ...options, engine: slow };
  assert.equal((await swapForIntegers(dense, even)).graph, dense, "nothing is gained here");
  const few = await swapForIntegers(dense, { ...options, leastPictures: 33 });
  assert.equal(few.graph, dense);
  assert.match(few.refused[0]!.reason, /^32 pictures are too few/);
});
