import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { createLogger } from "../../agent/log.ts";
import { parseMethod } from "../../agent/method.ts";
import { findSwishes, replaceSwish } from "../../agent/onnx/activations.ts";
import { findGates } from "../../agent/onnx/gates.ts";
import type { Graph } from "../../agent/onnx/graph.ts";
import { createEngine, type Engine } from "../../agent/specialize/engine.ts";
import type { Calibration, CompressEnvironment } from "../../agent/specialize/environment.ts";
import { compareOutputs, outputsOf } from "../../agent/specialize/output-difference.ts";
import { applyPlan, planOf } from "../../agent/specialize/pipeline.ts";
import { simplifies, simplifyNetwork } from "../../agent/specialize/simplify-network.ts";
import { environmentOf } from "./environment.helpers.ts";
import { gatedNetwork, pictures } from "./gated-network.helpers.ts";

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

function environment(calibration: Calibration): CompressEnvironment {
  return environmentOf(engine, workDir, calibration);
}

/** ‖ŷ − y‖² / ‖y‖² on pictures that nothing was fitted to. */
async function errorOf(dense: Graph, other: Graph): Promise<number> {
  const { signal } = new AbortController();
  const unseen = pictures(8, 9);
  const before = await outputsOf(dense, unseen, engine, signal);
  return compareOutputs(before, await outputsOf(other, unseen, engine, signal)).relativeError;
}

test("simplify-network: layers fitted behind ReLUs and constants come much closer than without", async () => {
  const dense = gatedNetwork();
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
  const dense = gatedNetwork();
  const options = environment(pictures(16, 1));
  const gates = await simplifyNetwork(dense, { ...options, activations: "keep", gates: "fold" });
  assert.equal(findSwishes(gates.graph).length, 5, "those of the gates went with them");
  const both = await simplifyNetwork(dense, { ...options, activations: "relu", gates: "fold" });
  assert.ok((await errorOf(dense, gates.graph)) < (await errorOf(dense, both.graph)));
});

test("simplify-network: a network with nothing to simplify comes back as it is", async () => {
  const dense = gatedNetwork();
  const options = environment(pictures(2, 1));
  const what = { activations: "relu", gates: "fold" } as const;
  const { graph } = await simplifyNetwork(dense, { ...options, ...what });
  assert.equal(simplifies(graph, what), false);
  assert.equal((await simplifyNetwork(graph, { ...options, ...what })).graph, graph);
});

test("simplify-network: a stated method does it, in one plan with fewer channels", async () => {
  const dense = gatedNetwork();
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

test("simplify-network: int8 as a method swaps swishes, a plan that keeps them does not", async () => {
  const dense = gatedNetwork();
  const method = parseMethod("int8");
  assert.ok(method.kind === "fixed");
  const { plan } = planOf(method, dense);
  assert.equal(plan.activations, "for-integers");
  const environmentAt = () => Promise.resolve(environment(pictures(4, 1)));
  const kept = await applyPlan(dense, { ...plan, activations: "keep" }, { environmentAt });
  const sigmoids = ({ nodes }: Graph) => nodes.filter(({ opType }) => opType === "Sigmoid").length;
  assert.equal(sigmoids(kept.graph), sigmoids(dense));
  const few = await applyPlan(dense, plan, { environmentAt });
  assert.equal(sigmoids(few.graph), sigmoids(dense));
  const told = few.refused.find(({ name }) => name === "swish");
  assert.match(told!.reason, /pictures are too few/);
  const relu = parseMethod("relu+int8");
  assert.ok(relu.kind === "fixed");
  assert.equal(planOf(relu, dense).plan.activations, "relu", "what is stated stays");
});
