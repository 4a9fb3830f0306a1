import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { createLogger } from "../../agent/log.ts";
import { createRandom } from "../../agent/math/random.ts";
import { parseMethod } from "../../agent/method.ts";
import { findSwishes, replaceSwish } from "../../agent/onnx/activations.ts";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import { findGates } from "../../agent/onnx/gates.ts";
import type { Graph, Node } from "../../agent/onnx/graph.ts";
import { floatTensor } from "../../agent/onnx/tensor.ts";
import { createEngine, type Engine } from "../../agent/specialize/engine.ts";
import type { Calibration, CompressEnvironment } from "../../agent/specialize/environment.ts";
import { compareOutputs, outputsOf } from "../../agent/specialize/output-difference.ts";
import { applyPlan, planOf } from "../../agent/specialize/pipeline.ts";
import { simplifies, simplifyNetwork } from "../../agent/specialize/simplify-network.ts";

let engine: Engine;
let workDir: string;

before(async () => {
  const log = createLogger("error");
  engine = await createEngine({ executionProviders: ["cpu"], intraOpThreads: 1, log });
  workDir = mkdtempSync(join(tmpdir(), "taco-simplify-"));
});

after(async () => {
  await engine.close();
  rmSync(workDir, { recursive: true });
});

/** Batches of smooth pictures of many contrasts, so that gates have something to react to. */
function pictures(batches: number, seed: number): Calibration {
  return {
    batches,
    read: (batch) => {
      const random = createRandom(1000 * seed + batch);
      const data = new Float32Array(4 * 3 * 144);
      for (let plane = 0; plane < 12; plane++) {
        const [size, a, b, shift] = [0.3 + random.uniform(), ...[0, 0, 0].map(random.normal)];
        for (let i = 0; i < 144; i++) {
          const wave = Math.sin(a! * (i % 12) + b! * Math.floor(i / 12) + shift!);
          data[plane * 144 + i] = size! * (wave + 0.3 * random.normal());
        }
      }
      return Promise.resolve({ data, dims: [4, 3, 12, 12] });
    },
  };
}

function environment(calibration: Calibration): CompressEnvironment {
  return {
    engine,
    calibration,
    workDir,
    memoryBytes: 2 ** 20,
    damping: 0.01,
    onProgress: () => undefined,
    signal: new AbortController().signal,
  };
}

/** Two blocks of expansion, depthwise convolution, squeeze-excite and projection. */
function network(): Graph {
  const random = createRandom(4);
  const initializers: Record<string, ReturnType<typeof floatTensor>> = {};
  const weight = (name: string, ...dims: number[]): string => {
    const count = dims.reduce((a, b) => a * b, 1);
    const scale = dims.length === 1 ? 0.1 : Math.sqrt((2 * dims[0]!) / count);
    initializers[name] = floatTensor(
      dims,
      Array.from({ length: count }, () => scale * random.normal()),
    );
    return name;
  };
  const conv = (from: string, to: string, dims: readonly number[], attributes = {}): Node =>
    node("Conv", [from, weight(`${to}.W`, ...dims), weight(`${to}.b`, dims[0]!)], [to], attributes);
  const swish = (from: string): Node[] => [
    node("Sigmoid", [from], [`${from}.g`]),
    node("Mul", [from, `${from}.g`], [`${from}.s`]),
  ];
  const same = { pads: [1, 1, 1, 1] };
  const block = (from: string, name: string): Node[] => [
    conv(from, `${name}.e`, [24, 8, 1, 1]),
    ...swish(`${name}.e`),
    conv(`${name}.e.s`, `${name}.d`, [24, 1, 3, 3], { ...same, group: 24 }),
    ...swish(`${name}.d`),
    node("GlobalAveragePool", [`${name}.d.s`], [`${name}.pool`]),
    conv(`${name}.pool`, `${name}.r`, [6, 24, 1, 1]),
    ...swish(`${name}.r`),
    conv(`${name}.r.s`, `${name}.x`, [24, 6, 1, 1]),
    node("Sigmoid", [`${name}.x`], [`${name}.factor`]),
    node("Mul", [`${name}.factor`, `${name}.d.s`], [`${name}.gated`]),
    conv(`${name}.gated`, `${name}.p`, [8, 24, 1, 1]),
    node("Add", [`${name}.p`, from], [name]),
  ];
  const nodes = [
    conv("x", "stem", [8, 3, 3, 3], { ...same, strides: [2, 2] }),
    ...swish("stem"),
    ...block("stem.s", "first"),
    ...block("first", "second"),
    node("GlobalAveragePool", ["second"], ["pooled"]),
    node("Flatten", ["pooled"], ["features"]),
  ];
  return buildModel({
    inputs: [floatValue("x", ["N", 3, 12, 12])],
    outputs: [floatValue("features", ["N", 8])],
    nodes,
    initializers,
  });
}

/** ‖ŷ − y‖² / ‖y‖² on pictures that nothing was fitted to. */
async function errorOf(dense: Graph, other: Graph): Promise<number> {
  const { signal } = new AbortController();
  const unseen = pictures(8, 9);
  const before = await outputsOf(dense, unseen, engine, signal);
  return compareOutputs(before, await outputsOf(other, unseen, engine, signal)).relativeError;
}

test("simplify-network: layers fitted behind ReLUs and constants come much closer than without", async () => {
  const dense = network();
  const options = environment(pictures(16, 1));
  const { graph, reports, refused } = await simplifyNetwork(dense, {
    ...options,
    activations: "relu",
    gates: "fold",
  });
  assert.deepEqual(refused, []);
  assert.deepEqual(findGates(graph), []);
  assert.deepEqual(findSwishes(graph), []);
  const folded = reports.filter(({ method }) => method === "folded with its gate");
  assert.deepEqual(
    folded.map(({ name }) => name),
    ["first.r", "first.x", "second.r", "second.x"],
  );
  const plain = await errorOf(dense, replaceSwish(dense, "relu"));
  const fitted = await errorOf(dense, graph);
  assert.ok(fitted < plain / 5, `${fitted} of ${plain}`);
});

test("simplify-network: gates alone lose less than gates and swishes, and swishes stay", async () => {
  const dense = network();
  const options = environment(pictures(16, 1));
  const gates = await simplifyNetwork(dense, { ...options, activations: "keep", gates: "fold" });
  assert.equal(findSwishes(gates.graph).length, 5, "those of the gates went with them");
  const both = await simplifyNetwork(dense, { ...options, activations: "relu", gates: "fold" });
  assert.ok((await errorOf(dense, gates.graph)) < (await errorOf(dense, both.graph)));
});

test("simplify-network: a network with nothing to simplify comes back as it is", async () => {
  const dense = network();
  const options = environment(pictures(2, 1));
  const what = { activations: "relu", gates: "fold" } as const;
  const { graph } = await simplifyNetwork(dense, { ...options, ...what });
  assert.equal(simplifies(graph, what), false);
  assert.equal((await simplifyNetwork(graph, { ...options, ...what })).graph, graph);
});

test("simplify-network: a stated method does it, in one plan with fewer channels", async () => {
  const dense = network();
  const method = parseMethod("relu+fold-gates+structured:0.5");
  assert.ok(method.kind === "fixed");
  const { plan } = planOf(method, dense);
  const { graph } = await applyPlan(dense, plan, {
    environmentAt: () => Promise.resolve(environment(pictures(4, 1))),
  });
  assert.deepEqual([findGates(graph).length, findSwishes(graph).length], [0, 0]);
  const width = graph.initializers.get("first.e.W")!.dims[0]!;
  assert.ok(width <= 16, `${width} of 24 channels`);
  assert.ok((await errorOf(dense, graph)) < 1);
});
