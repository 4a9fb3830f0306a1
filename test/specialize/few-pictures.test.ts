import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import type { Pattern } from "../../agent/compress/pattern.ts";
import { createLogger } from "../../agent/log.ts";
import { headLogits } from "../../agent/math/standardized-space.ts";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import type { Graph } from "../../agent/onnx/graph.ts";
import { floatTensor } from "../../agent/onnx/tensor.ts";
import { compressNetwork } from "../../agent/specialize/compress-network.ts";
import { createEngine, type Engine } from "../../agent/specialize/engine.ts";
import type { Calibration, CompressEnvironment } from "../../agent/specialize/environment.ts";
import { fitHead } from "../../agent/specialize/fit-head.ts";
import { uniformPattern } from "../../agent/specialize/layer-patterns.ts";
import { outputsOf } from "../../agent/specialize/output-difference.ts";
import { quantizeNetwork } from "../../agent/specialize/quantize-network.ts";
import { randomValues } from "../onnx/run-graph.helpers.ts";
import { environmentOf } from "./environment.helpers.ts";

const SIDE = 6;
const PICTURE = 3 * SIDE * SIDE;
let engine: Engine;
let workDir: string;

before(async () => {
  const log = createLogger("error");
  engine = await createEngine({ executionProviders: ["cpu"], intraOpThreads: 1, log });
  workDir = mkdtempSync(join(tmpdir(), "taco-few-"));
});

after(async () => {
  await engine.close();
  rmSync(workDir, { recursive: true });
});

function one(data: Float32Array): Calibration {
  const dims = [data.length / PICTURE, 3, SIDE, SIDE];
  return { batches: 1, read: () => Promise.resolve({ data: data.slice(), dims }) };
}

/** Few pictures, and pictures that are hardly any. */
const CALIBRATIONS: Record<string, Float32Array> = {
  "one picture": randomValues(PICTURE, 5),
  "one picture a class": randomValues(2 * PICTURE, 6),
  "one black picture": new Float32Array(PICTURE),
  "one picture, one color": new Float32Array(PICTURE).fill(0.7),
  "huge values": randomValues(2 * PICTURE, 7).map((value) => 1e6 * value),
};

function environment(calibration: Calibration): CompressEnvironment {
  return environmentOf(engine, workDir, calibration);
}

/** More columns than one picture has positions, a Relu that may never open, a pooled end. */
function network(): Graph {
  const weights = (seed: number, ...dims: number[]) => {
    const count = dims.reduce((product, dim) => product * dim, 1);
    return floatTensor(dims, randomValues(count, seed));
  };
  const pads = { pads: [1, 1, 1, 1] };
  return buildModel({
    inputs: [floatValue("x", ["N", 3, SIDE, SIDE])],
    outputs: [floatValue("features", ["N", 12])],
    nodes: [
      node("Conv", ["x", "stem"], ["a"], pads),
      node("Relu", ["a"], ["a1"]),
      node("Conv", ["a1", "wide", "shift"], ["b"], { ...pads, strides: [2, 2] }),
      node("Relu", ["b"], ["b1"]),
      node("Conv", ["b1", "narrow"], ["c"]),
      node("GlobalAveragePool", ["c"], ["p"]),
      node("Flatten", ["p"], ["f"]),
      node("Gemm", ["f", "last"], ["features"], { transB: 1 }),
    ],
    initializers: {
      stem: weights(1, 8, 3, 3, 3),
      wide: weights(2, 40, 8, 3, 3),
      shift: floatTensor(
        [40],
        Array.from({ length: 40 }, (_, i) => (i % 4 === 0 ? -1e3 : 0.1)),
      ),
      narrow: weights(3, 40, 40, 1, 1),
      last: weights(4, 12, 40),
    },
  });
}

async function assertFinite(graph: Graph, calibration: Calibration, name: string) {
  for (const [initializer, { data }] of graph.initializers) {
    if (data instanceof Float32Array) assert.ok(data.every(Number.isFinite), initializer);
  }
  const { signal } = new AbortController();
  const { data } = await outputsOf(graph, calibration, engine, signal);
  assert.ok(data.every(Number.isFinite), name);
}

const PATTERNS: readonly Pattern[] = [
  { kind: "unstructured", sparsity: 0.5 },
  { kind: "n:m", n: 2, m: 4 },
  { kind: "block", size: 4, sparsity: 0.5 },
];

for (const [name, data] of Object.entries(CALIBRATIONS)) {
  test(`few pictures: pruned on ${name} a network has its zeros and no NaN`, async () => {
    const dense = network();
    const calibration = one(data);
    for (const pattern of PATTERNS) {
      const { graph, reports } = await compressNetwork(dense, {
        ...environment(calibration),
        patternOf: uniformPattern(dense, pattern),
      });
      await assertFinite(graph, calibration, name);
      const share = pattern.kind === "n:m" ? pattern.n / pattern.m : pattern.sparsity;
      const pruned = reports.filter(({ relativeLoss }) => relativeLoss !== null);
      assert.equal(pruned.length, 3);
      // Inputs that are dead on so few pictures may cost weights beyond the share.
      assert.ok(pruned.every(({ sparsity }) => sparsity > share - 0.005));
      assert.ok(pruned.every(({ relativeLoss }) => Math.abs(relativeLoss! - 0.5) < 0.500001));
    }
    assert.deepEqual(readdirSync(workDir), []);
  });

  if (name === "huge values" || name === "one picture a class") continue;
  test(`few pictures: as integers on ${name} a network gives no NaN`, async () => {
    const calibration = one(data);
    const { graph, reports } = await quantizeNetwork(network(), environment(calibration));
    await assertFinite(graph, calibration, name);
    assert.equal(reports.length, 4);
  });
}

test("few pictures: a head of one picture a class, of equal ones or of huge ones has no NaN", async () => {
  const inputs = 12;
  const sets = {
    "one a class": randomValues(3 * inputs, 8),
    "equal features": new Float32Array(3 * inputs).fill(0.5),
    "nothing but zeros": new Float32Array(3 * inputs),
    "huge features": randomValues(3 * inputs, 9).map((value) => 1e12 * value),
  };
  for (const [name, features] of Object.entries(sets)) {
    const bursts = ["a", "b", "c"];
    const data = { features, inputs, labels: [0, 1, 2], bursts, classes: 3 };
    const { signal } = new AbortController();
    const head = await fitHead(data, null, { seed: 1, gemm: engine.gemm, signal });
    const logits = await headLogits(head, features);
    assert.ok(logits.every(Number.isFinite), name);
  }
});
