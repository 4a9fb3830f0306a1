import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import type { Pattern } from "../../agent/compress/pattern.ts";
import { createLogger } from "../../agent/log.ts";
import { createRandom } from "../../agent/math/random.ts";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import { type Graph, readGraph } from "../../agent/onnx/graph.ts";
import { normalizeGraph } from "../../agent/onnx/normalize.ts";
import { findPrunableLayers, readWeightMatrix } from "../../agent/onnx/prunable-layers.ts";
import { withExtraOutputs } from "../../agent/onnx/subgraph.ts";
import { floatTensor } from "../../agent/onnx/tensor.ts";
import { compressNetwork, type Progress } from "../../agent/specialize/compress-network.ts";
import { createEngine, type Engine } from "../../agent/specialize/engine.ts";
import type { Calibration, LayerReport, PassResult } from "../../agent/specialize/environment.ts";
import { uniformPattern } from "../../agent/specialize/layer-patterns.ts";
import { BENCH_ABSENT, benchPath } from "../bench-data.helpers.ts";

const LOG = createLogger("error");
const HALF: Pattern = { kind: "unstructured", sparsity: 0.5 };
let engine: Engine;
let workDir: string;

before(async () => {
  engine = await createEngine({ executionProviders: ["cpu"], intraOpThreads: 1, log: LOG });
  workDir = mkdtempSync(join(tmpdir(), "taco-compress-"));
});

after(async () => {
  await engine.close();
  rmSync(workDir, { recursive: true });
});

/** Batches of smooth random pictures, always the same. */
function calibrationOf(batches: number, dims: readonly number[], seed = 1): Calibration {
  const size = dims.reduce((product, dim) => product * dim, 1);
  const data = Array.from({ length: batches }, (_, batch) => {
    const random = createRandom(seed * 100 + batch);
    let last = 0;
    return Float32Array.from({ length: size }, () => {
      last = 0.7 * last + 0.7 * random.normal();
      return last;
    });
  });
  return {
    batches,
    read: (batch) => Promise.resolve({ data: data[batch]!.slice(), dims }),
  };
}

/** A residual network with a plain, a strided, a grouped and a depthwise convolution, and a MatMul. */
function residualNetwork(): Graph {
  const random = createRandom(3);
  const weight = (...dims: number[]) => {
    const fanIn = dims.slice(1).reduce((a, b) => a * b, 1);
    const count = dims.reduce((a, b) => a * b, 1);
    return floatTensor(
      dims,
      Array.from({ length: count }, () => random.normal() / Math.sqrt(fanIn)),
    );
  };
  const pads = { pads: [1, 1, 1, 1] };
  return buildModel({
    inputs: [floatValue("x", ["N", 3, 12, 12])],
    outputs: [floatValue("features", ["N", 24])],
    nodes: [
      node("Conv", ["x", "stem"], ["s"], pads),
      node("Relu", ["s"], ["s1"]),
      node("Conv", ["s1", "k1", "b1"], ["a"], pads),
      node("Relu", ["a"], ["a1"]),
      node("Conv", ["a1", "k2"], ["b"], pads),
      node("Add", ["b", "s1"], ["r"]),
      node("Conv", ["r", "k3"], ["c"], { ...pads, strides: [2, 2], group: 2 }),
      node("Relu", ["c"], ["c1"]),
      node("Conv", ["c1", "dw"], ["d"], { ...pads, group: 48 }),
      node("GlobalAveragePool", ["d"], ["p"]),
      node("Flatten", ["p"], ["f"], { axis: 1 }),
      node("MatMul", ["f", "w"], ["m"]),
      node("Add", ["m", "wb"], ["features"]),
    ],
    initializers: {
      stem: weight(24, 3, 3, 3),
      k1: weight(40, 24, 3, 3),
      b1: floatTensor(
        [40],
        Array.from({ length: 40 }, () => random.normal() / 4),
      ),
      k2: weight(24, 40, 3, 3),
      k3: weight(48, 12, 3, 3),
      dw: weight(48, 1, 3, 3),
      w: weight(48, 24),
      wb: floatTensor([24], new Array(24).fill(0.1)),
    },
  });
}

function compress(
  graph: Graph,
  calibration: Calibration,
  pattern: Pattern,
  more: { resume?: Progress; onSegment?: (progress: Progress) => Promise<void> } = {},
): Promise<PassResult> {
  return compressNetwork(graph, {
    patternOf: uniformPattern(graph, pattern),
    blockSize: 64,
    damping: 0.01,
    engine,
    calibration,
    workDir,
    // So little that borders overflow into files.
    memoryBytes: 20_000,
    onProgress: () => undefined,
    onSegment: more.onSegment ?? (() => Promise.resolve()),
    ...(more.resume ? { resume: more.resume } : {}),
    signal: new AbortController().signal,
  });
}

/** Mean and variance of every feature of a value over all batches and positions, in plain loops. */
async function momentsOf(graph: Graph, calibration: Calibration, name: string, features: number) {
  const session = await engine.open(withExtraOutputs(graph, [name]));
  const sum = new Float64Array(features);
  const square = new Float64Array(features);
  let count = 0;
  for (let batch = 0; batch < calibration.batches; batch++) {
    const value = (await session.run({ [graph.inputs[0]!.name]: await calibration.read(batch) }))[
      name
    ]!;
    const data = value.data as Float32Array;
    const inner = value.dims.slice(2).reduce((a, b) => a * b, 1);
    for (let i = 0; i < data.length; i++) {
      const feature = Math.floor(i / inner) % features;
      sum[feature]! += data[i]!;
      square[feature]! += data[i]! ** 2;
    }
    count += data.length / features;
  }
  await session.release();
  const mean = sum.map((s) => s / count);
  return { mean, variance: square.map((s, i) => s / count - mean[i]! ** 2) };
}

test("compress: every layer gets its share of zeros, small and first layers none, and says why", async () => {
  const calibration = calibrationOf(3, [8, 3, 12, 12]);
  const { graph, reports } = await compress(residualNetwork(), calibration, HALF);
  const byName = new Map(reports.map((report) => [report.name, report]));
  assert.deepEqual(
    reports.map(({ name }) => name),
    findPrunableLayers(residualNetwork()).map(({ name }) => name),
    "reports follow the network",
  );
  assert.match(byName.get("s")!.method, /it reads the picture/);
  assert.match(byName.get("d")!.method, /it is depthwise/);
  for (const layer of findPrunableLayers(graph)) {
    const report = byName.get(layer.name)!;
    const weights = readWeightMatrix(graph, layer);
    const zeros = weights.filter((w) => w === 0).length;
    assert.equal(zeros, report.sparsity * weights.length, layer.name);
    const expected = report.relativeLoss === null ? 0 : 0.5;
    assert.ok(Math.abs(report.sparsity - expected) < 0.02, `${layer.name}: ${report.sparsity}`);
  }
  assert.deepEqual(readdirSync(workDir), [], "no border file is left behind");
});

test("compress: every pruned layer keeps the mean and the spread of the dense network", async () => {
  const calibration = calibrationOf(3, [8, 3, 12, 12]);
  const dense = residualNetwork();
  const { graph } = await compress(dense, calibration, HALF);
  for (const [name, features] of [
    ["a", 40],
    ["b", 24],
    ["c", 48],
  ] as const) {
    const wanted = await momentsOf(dense, calibration, name, features);
    const got = await momentsOf(graph, calibration, name, features);
    for (let i = 0; i < features; i++) {
      const spread = Math.sqrt(wanted.variance[i]!);
      assert.ok(
        Math.abs(got.mean[i]! - wanted.mean[i]!) < 2e-3 * spread + 1e-4,
        `mean ${name} ${i}`,
      );
      assert.ok(Math.abs(got.variance[i]! / wanted.variance[i]! - 1) < 5e-3, `spread ${name} ${i}`);
    }
  }
});

test("compress: is much closer to the dense features than magnitude pruning of the same layers", async () => {
  const calibration = calibrationOf(4, [8, 3, 12, 12]);
  const fresh = calibrationOf(2, [8, 3, 12, 12], 9);
  const dense = residualNetwork();
  const { graph, reports } = await compress(dense, calibration, HALF);
  const magnitude = pruneByMagnitude(dense, reports);
  const ours = await featureError(dense, graph, fresh);
  const theirs = await featureError(dense, magnitude, fresh);
  assert.ok(ours < 0.6 * theirs, `relative error ${ours} against ${theirs} by magnitude`);
});

test("compress: a run taken up at a checkpoint ends like one that was never interrupted", async () => {
  const calibration = calibrationOf(2, [8, 3, 12, 12]);
  const checkpoints: Progress[] = [];
  const whole = await compress(residualNetwork(), calibration, HALF, {
    onSegment: (progress) => {
      checkpoints.push(progress);
      return Promise.resolve();
    },
  });
  assert.ok(checkpoints.length >= 2, `${checkpoints.length} segments`);
  const resumed = await compress(residualNetwork(), calibration, HALF, { resume: checkpoints[0]! });
  assert.deepEqual(
    resumed.reports.map((r) => r.name),
    whole.reports.map((r) => r.name),
  );
  const fresh = calibrationOf(1, [8, 3, 12, 12], 5);
  const difference = await featureError(whole.graph, resumed.graph, fresh);
  assert.ok(difference < 1e-3, `${difference}`);
});

test("compress: an abort ends it with the signal's reason and leaves no files", async () => {
  const abort = new AbortController();
  const reason = new Error("enough");
  const calibration = calibrationOf(2, [8, 3, 12, 12]);
  const work = compressNetwork(residualNetwork(), {
    patternOf: uniformPattern(residualNetwork(), HALF),
    blockSize: 64,
    damping: 0.01,
    engine,
    calibration,
    workDir,
    memoryBytes: 0,
    onProgress: () => abort.abort(reason),
    onSegment: () => Promise.resolve(),
    signal: abort.signal,
  });
  await assert.rejects(work, reason);
  assert.deepEqual(readdirSync(workDir), []);
});

const GRAPHS = [
  "resnet_bottleneck_small_opset17",
  "resnet_bottleneck_small_unfused_bn_opset13",
  "deit_small_like_opset17",
  "deit_small_like_opset13",
  "torchvision_vit_small_like_opset17",
  "convnext_small_like_opset17",
  "mobilenet_v3_small_opset17",
  "shufflenet_v2_x0_5_opset17",
];

for (const name of GRAPHS) {
  const path = benchPath(`graphs/${name}.onnx`);
  for (const pattern of [HALF, { kind: "n:m", n: 2, m: 4 } as const]) {
    const title = pattern.kind === "n:m" ? "2:4" : "50 %";
    test(`compress: ${name} goes through at ${title} and still runs`, {
      skip: path === undefined && BENCH_ABSENT,
    }, async () => {
      const dense = normalizeGraph(readGraph(readFileSync(path!)));
      const calibration = calibrationOf(2, [4, 3, 64, 64]);
      const { graph, reports } = await compress(dense, calibration, pattern);
      const pruned = reports.filter(({ relativeLoss }) => relativeLoss !== null);
      assert.ok(
        pruned.length >= reports.length / 3,
        `${pruned.length} of ${reports.length} layers`,
      );
      for (const { name: layer, sparsity, relativeLoss } of pruned) {
        // Inputs that never change on these few pictures go to the bias: more zeros than asked for.
        assert.ok(sparsity > 0.47, `${layer}: ${sparsity} zeros`);
        assert.ok(relativeLoss! >= 0 && relativeLoss! < 1, `${layer}: loss ${relativeLoss}`);
      }
      const error = await featureError(dense, graph, calibration);
      assert.ok(error < 1, `relative error of the logits ${error}`);
    });
  }
}

/** ‖ŷ − y‖ / ‖y‖ (or ‖ŷ − y‖ where y is zero) over all batches of a calibration set. */
async function featureError(dense: Graph, other: Graph, pictures: Calibration): Promise<number> {
  const output = dense.outputs[0]!.name;
  const input = dense.inputs[0]!.name;
  const [first, second] = [await engine.open(dense), await engine.open(other)];
  let difference = 0;
  let size = 0;
  for (let batch = 0; batch < pictures.batches; batch++) {
    const feeds = { [input]: await pictures.read(batch) };
    const [wanted, got] = [await first.run(feeds), await second.run(feeds)];
    const [y, z] = [wanted[output]!.data as Float32Array, got[output]!.data as Float32Array];
    for (let i = 0; i < y.length; i++) {
      difference += (z[i]! - y[i]!) ** 2;
      size += y[i]! ** 2;
    }
  }
  await first.release();
  await second.release();
  // A classifier of zeros, as some exporters write an untrained one, has nothing to be relative to.
  return Math.sqrt(difference / (size || 1));
}

/** The same layers with their smallest weights set to zero and nothing else done. */
function pruneByMagnitude(graph: Graph, reports: readonly LayerReport[]): Graph {
  const initializers = new Map(graph.initializers);
  const pruned = new Set(reports.flatMap((r) => (r.relativeLoss === null ? [] : [r.name])));
  for (const layer of findPrunableLayers(graph)) {
    if (!pruned.has(layer.name)) continue;
    const tensor = initializers.get(layer.weightName)!;
    const values = Float32Array.from(tensor.data as Float32Array);
    const limit = values.map(Math.abs).sort()[Math.floor(values.length / 2)]!;
    const kept = values.map((w) => (Math.abs(w) < limit ? 0 : w));
    initializers.set(layer.weightName, floatTensor(tensor.dims, kept));
  }
  return { ...graph, initializers };
}
