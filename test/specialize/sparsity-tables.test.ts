import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import type { Pattern } from "../../agent/compress/pattern.ts";
import { createLogger } from "../../agent/log.ts";
import { createRandom } from "../../agent/math/random.ts";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import type { Graph } from "../../agent/onnx/graph.ts";
import { findPrunableLayers, readWeightMatrix } from "../../agent/onnx/prunable-layers.ts";
import { floatTensor } from "../../agent/onnx/tensor.ts";
import { createEngine, type Engine } from "../../agent/specialize/engine.ts";
import type { CompressEnvironment } from "../../agent/specialize/environment.ts";
import { uniformPattern } from "../../agent/specialize/layer-patterns.ts";
import { measureSparsity, stitchSparsity } from "../../agent/specialize/sparsity-tables.ts";

const LEVELS: readonly Pattern[] = [0.3, 0.5, 0.8].map((sparsity) => ({
  kind: "unstructured",
  sparsity,
}));
let engine: Engine;
let workDir: string;

before(async () => {
  const log = createLogger("error");
  engine = await createEngine({ executionProviders: ["cpu"], intraOpThreads: 1, log });
  workDir = mkdtempSync(join(tmpdir(), "taco-tables-"));
});

after(async () => {
  await engine.close();
  rmSync(workDir, { recursive: true });
});

/** Two convolutions and a product behind a stem. */
function network(): Graph {
  const random = createRandom(4);
  const weight = (...dims: number[]) => {
    const count = dims.reduce((a, b) => a * b, 1);
    const scale = Math.sqrt(dims[0]! / count);
    return floatTensor(
      dims,
      Array.from({ length: count }, () => random.normal() * scale),
    );
  };
  const pads = { pads: [1, 1, 1, 1] };
  return buildModel({
    inputs: [floatValue("x", ["N", 3, 10, 10])],
    outputs: [floatValue("y", ["N", 12])],
    nodes: [
      node("Conv", ["x", "stem"], ["s"], pads),
      node("Relu", ["s"], ["s1"]),
      node("Conv", ["s1", "k1"], ["a"], pads),
      node("Relu", ["a"], ["a1"]),
      node("Conv", ["a1", "k2"], ["b"], { ...pads, strides: [2, 2] }),
      node("GlobalAveragePool", ["b"], ["p"]),
      node("Flatten", ["p"], ["f"], { axis: 1 }),
      node("MatMul", ["f", "w"], ["y"]),
    ],
    initializers: {
      stem: weight(16, 3, 3, 3),
      k1: weight(24, 16, 3, 3),
      k2: weight(40, 24, 3, 3),
      w: weight(40, 12),
    },
  });
}

function environment(memoryBytes: number): CompressEnvironment {
  const size = 8 * 3 * 100;
  const data = [1, 2].map((seed) => {
    const random = createRandom(seed);
    return Float32Array.from({ length: size }, () => random.normal());
  });
  return {
    engine,
    calibration: {
      batches: 2,
      read: (batch) => Promise.resolve({ data: data[batch]!.slice(), dims: [8, 3, 10, 10] }),
    },
    workDir,
    memoryBytes,
    damping: 0.01,
    onProgress: () => undefined,
    signal: new AbortController().signal,
  };
}

test("sparsity tables: more zeros cost more, and every layer is in the table or refused", async () => {
  const dense = network();
  const tables = await measureSparsity(dense, { ...environment(0), levels: LEVELS });
  try {
    const names = findPrunableLayers(dense).map(({ name }) => name);
    const refused = tables.refused.map(({ name }) => name);
    assert.deepEqual(refused, ["s"]);
    assert.deepEqual(
      tables.layers.map(({ name }) => name),
      names.filter((name) => !refused.includes(name)),
    );
    for (const { name, weights, levels } of tables.layers) {
      levels.forEach((level, i) => {
        const pattern = LEVELS[i]!;
        assert.equal(level.pattern, pattern);
        const share = pattern.kind === "unstructured" ? pattern.sparsity : 0;
        assert.ok(Math.abs(level.zeros / weights - share) < 0.03, `${name}: ${level.zeros}`);
        const before = levels[i - 1];
        if (!before) return;
        assert.ok(level.squaredError > before.squaredError, `${name} at level ${i}`);
        assert.ok(level.relativeLoss > before.relativeLoss && level.relativeLoss < 1);
      });
    }
  } finally {
    await tables.dispose();
  }
  assert.deepEqual(readdirSync(workDir), [], "no file is left behind");
});

test("sparsity tables: patches of a picture take part, which no uniform share of zeros touches", async () => {
  const { normal } = createRandom(6);
  const values = (count: number) => Array.from({ length: count }, () => normal());
  const dense = buildModel({
    inputs: [floatValue("x", ["N", 3, 10, 10])],
    outputs: [floatValue("y", ["N", 8])],
    nodes: [
      node("Conv", ["x", "patches"], ["p"], { strides: [5, 5] }),
      node("GlobalAveragePool", ["p"], ["pooled"]),
      node("Flatten", ["pooled"], ["y"], { axis: 1 }),
    ],
    initializers: { patches: floatTensor([8, 3, 5, 5], values(8 * 75)) },
  });
  const tables = await measureSparsity(dense, { ...environment(0), levels: LEVELS });
  await tables.dispose();
  assert.deepEqual(tables.refused, []);
  assert.deepEqual(
    tables.layers.map(({ name, weights }) => [name, weights]),
    [["p", 600]],
  );
  const [layer] = findPrunableLayers(dense);
  const pattern = uniformPattern(dense, { kind: "unstructured", sparsity: 0.5 });
  assert.deepEqual(pattern(layer!), { kind: "dense", reason: "it reads the picture" });
});

test("sparsity tables: stitching puts the solved weights in place and leaves the rest", async () => {
  const dense = network();
  const tables = await measureSparsity(dense, { ...environment(2 ** 20), levels: LEVELS });
  try {
    const [first, second, third] = tables.layers.map(({ name }) => name);
    const chosen = new Map([
      [first!, 2],
      [third!, 0],
    ]);
    const graph = await stitchSparsity(dense, tables, chosen);
    const denseLayers = new Map(findPrunableLayers(dense).map((layer) => [layer.name, layer]));
    for (const layer of findPrunableLayers(graph)) {
      const level = chosen.get(layer.name);
      const got = readWeightMatrix(graph, layer);
      const wanted =
        level === undefined
          ? readWeightMatrix(dense, denseLayers.get(layer.name)!)
          : (await tables.solution(layer.name, level)).weights;
      assert.deepEqual(got, wanted, layer.name);
    }
    const again = await stitchSparsity(dense, tables, chosen);
    assert.deepEqual(again.initializers, graph.initializers);
    await assert.rejects(stitchSparsity(dense, tables, new Map([[second!, 3]])), /no solution/);
    await assert.rejects(stitchSparsity(dense, tables, new Map([["s", 0]])), /no solution/);
  } finally {
    await tables.dispose();
  }
});
