import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import type { Lever } from "../../agent/compress/budget.ts";
import { createLogger } from "../../agent/log.ts";
import { createRandom } from "../../agent/math/random.ts";
import type { Graph } from "../../agent/onnx/graph.ts";
import { countParameters } from "../../agent/onnx/initializers.ts";
import { extractSubgraph } from "../../agent/onnx/subgraph.ts";
import { LatencyTable, thisMachine } from "../../agent/runtime/latency-table.ts";
import { smallerSizes } from "../../agent/specialize/coarse-settings.ts";
import { NO_CHANGE } from "../../agent/specialize/compression-plan.ts";
import { createEngine, type Engine } from "../../agent/specialize/engine.ts";
import type { Calibration, CompressEnvironment } from "../../agent/specialize/environment.ts";
import { frontLimit } from "../../agent/specialize/front.ts";
import { compareOutputs, outputsOf } from "../../agent/specialize/output-difference.ts";
import { applyPlan } from "../../agent/specialize/pipeline.ts";
import { searchPlans } from "../../agent/specialize/search.ts";
import { exploreSpace, type SearchSpace } from "../../agent/specialize/search-space.ts";
import { pictureClassifier } from "./picture-classifier.helpers.ts";

const LOG = createLogger("error");
const CONFIG = { executionProviders: ["cpu"], intraOpThreads: 1 };
const { signal } = new AbortController();
let engine: Engine;
let workDir: string;
before(async () => {
  engine = await createEngine({ ...CONFIG, log: LOG });
  workDir = mkdtempSync(join(tmpdir(), "taco-search-"));
});
after(async () => {
  await engine.close();
  rmSync(workDir, { recursive: true });
});

const LEVELS = [1, 0.75, 0.5, 0.25];

/**
 * Levers that multiply one another in what they cost, as widths on both sides of a layer do, while
 * the tables hold what each saves alone. The "graph" is the choice itself.
 */
function overlapping(): SearchSpace & { cost(choice: readonly number[]): number } {
  const matters = [5, 0.2, 0.2, 0.2];
  const pairs = [
    [0, 1],
    [1, 2],
    [2, 3],
    [3, 0],
  ] as const;
  const cost = (choice: readonly number[]) =>
    pairs.reduce((sum, [a, b]) => sum + LEVELS[choice[a]!]! * LEVELS[choice[b]!]!, 0);
  const alone = (lever: number, level: number) =>
    cost([0, 1, 2, 3].map((i) => (i === lever ? level : 0)));
  const levers = matters.map((_, lever): Lever => {
    const levels = LEVELS.map((_, level) => ({
      cost: alone(lever, level) - alone(lever, LEVELS.length - 1),
      loss: level ** 2,
    }));
    return { name: `lever ${lever}`, levels };
  });
  const fixedCost = 4 - levers.reduce((sum, { levels }) => sum + levels[0]!.cost, 0);
  const choices = new Map<Graph, readonly number[]>();
  return {
    cost,
    levers,
    fixedCost,
    timed: true,
    build: (choice) => {
      const graph = { name: choice.join() } as Graph;
      choices.set(graph, choice);
      return Promise.resolve(graph);
    },
    costOf: (graph) => Promise.resolve(cost(choices.get(graph)!)),
    judge: (graph) => {
      const loss = choices
        .get(graph)!
        .reduce((sum, level, lever) => sum + matters[lever]! * level ** 2, 0);
      return Promise.resolve({ loss, dropPoints: loss });
    },
    planOf: (choice) => ({
      ...NO_CHANGE,
      widths: Object.fromEntries(choice.map((level, lever) => [`lever ${lever}`, level])),
    }),
  };
}

const EXPLORE = { seed: 1, maxEvaluations: 60, stop: () => false, signal };

test("search: meets the real cost although the levers' savings overlap, and finds what matters", async () => {
  let gained = false;
  for (const target of [3.2, 2.5, 1.5, 0.8]) {
    const space = overlapping();
    const found = await exploreSpace(space, target, EXPLORE);
    assert.ok(found, `nothing at ${target}`);
    const choice = Object.values(found.plan.widths);
    assert.equal(found.cost, space.cost(choice));
    assert.ok(found.cost <= 1.03 * target, `${found.cost} at ${target}`);
    assert.equal(found.latencyRatio, found.cost);
    const plain = await exploreSpace(space, target, { ...EXPLORE, maxEvaluations: 1 });
    assert.ok(found.loss <= plain!.loss, `loss ${found.loss}, without a search ${plain!.loss}`);
    gained ||= found.loss < 0.7 * plain!.loss;
  }
  assert.ok(gained, "the search never gained anything");
});

test("search: says so where the cheapest is too dear, and gives what it has when time is up", async () => {
  assert.equal(await exploreSpace(overlapping(), 0.2, EXPLORE), undefined);
  let judged = 0;
  const space = overlapping();
  const counted: SearchSpace = {
    ...space,
    judge: (graph) => {
      judged++;
      return space.judge(graph);
    },
  };
  assert.ok(await exploreSpace(counted, 2, { ...EXPLORE, stop: () => true }));
  assert.equal(judged, 1);
});

test("search: sizes go down in steps of 32 to a half, and aims become limits", () => {
  const square = (side: number) => ({ height: side, width: side });
  assert.deepEqual(smallerSizes(square(224)), [192, 160, 128].map(square));
  assert.deepEqual(smallerSizes(square(300)), [288, 256, 224, 192, 160].map(square));
  assert.deepEqual(smallerSizes(square(32)), []);
  assert.deepEqual(smallerSizes({ height: 224, width: 448 })[0], { height: 192, width: 384 });
  assert.deepEqual(frontLimit({ speedup: 4 }, 10), { maxCost: 0.25 });
  assert.deepEqual(frontLimit({ nonzeroReduction: 5 }, 10), { maxCost: 2 });
  assert.deepEqual(frontLimit({ maxBytes: 7 }, 10), { maxCost: 7 });
  assert.deepEqual(frontLimit({ aim: "bytes", maxDropPoints: 2 }, 10), { maxDrop: 2 });
});

function calibrationOf(batches: number, seed: number, side: number): Calibration {
  return {
    batches,
    read: (batch) => {
      const random = createRandom(100 * seed + batch);
      const data = Float32Array.from({ length: 8 * 3 * side * side }, () => random.normal());
      return Promise.resolve({ data, dims: [8, 3, side, side] });
    },
  };
}

async function searchFor(aim: Parameters<typeof frontLimit>[0], side = 32) {
  const dense = extractSubgraph(pictureClassifier(1, side), ["picture"], ["logits"]);
  const environment: CompressEnvironment = {
    engine,
    calibration: calibrationOf(6, 1, side),
    workDir,
    memoryBytes: 2 ** 26,
    damping: 0.01,
    onProgress: () => undefined,
    signal,
  };
  const trial = calibrationOf(2, 2, side);
  const reference = await outputsOf(dense, trial, engine, signal);
  const { parameters } = countParameters(dense);
  const result = await searchPlans({
    dense,
    size: { height: side, width: side },
    aim,
    environmentAt: () => Promise.resolve(environment),
    judge: async (graph) => {
      const other = compareOutputs(reference, await outputsOf(graph, trial, engine, signal));
      return { loss: other.relativeError, dropPoints: 100 * other.relativeError };
    },
    table: await LatencyTable.open(null, thisMachine(CONFIG), LOG),
    parameters,
    restParameters: 0,
    // Enough for the slowest processor: what is found must not depend on it.
    maxSeconds: 30,
    maxPlans: 2,
    seed: 1,
    onProgress: () => undefined,
    signal,
  });
  const build = async (plan: (typeof result.chosen)[0]["plan"]) =>
    (await applyPlan(dense, plan, { environmentAt: () => Promise.resolve(environment) })).graph;
  return { ...result, parameters, build };
}

test("search: a plan for fewer non-zero weights reaches them when it is carried out", async () => {
  const { chosen, front, refused, parameters, build } = await searchFor({ nonzeroReduction: 2.5 });
  assert.ok(chosen.length >= 1 && chosen.length <= 2);
  const [best] = chosen;
  assert.ok(best!.cost <= (parameters / 2.5) * 1.03);
  const levels = new Set(Object.values(best!.plan.sparsity));
  assert.ok(levels.size > 1, "every layer got the same");
  const { nonzero } = countParameters(await build(best!.plan));
  assert.ok(Math.abs(nonzero / best!.cost - 1) < 0.02, `${nonzero} for ${best!.cost}`);
  const costs = front.map(({ cost }) => cost);
  assert.deepEqual(
    costs,
    [...costs].sort((a, b) => a - b),
  );
  const why = new Map(refused.map(({ name, reason }) => [name, reason]));
  assert.match(why.get("stem") ?? "", /^27 inputs an output are too few/);
});

test("search: the least bytes for a drop keep the drop, and take fewer bytes than integers alone", async () => {
  const { chosen, front } = await searchFor({ aim: "bytes", maxDropPoints: 20 });
  const [best] = chosen;
  assert.ok(best && best.dropPoints <= 20, `${best?.dropPoints} points`);
  const dense = front.find(({ plan }) => plan === NO_CHANGE)!;
  assert.ok(best.cost < 0.35 * dense.cost, `${best.cost} of ${dense.cost} bytes`);
  assert.ok(best.plan.int8 || best.plan.weightBits !== null);
});

test("search: a plan for speed pulls a lever of speed, and no zeros", async () => {
  // Large enough to be timed while other work goes on, and too small for smaller pictures.
  const { chosen, front } = await searchFor({ speedup: 1.5 }, 96);
  const [best] = chosen;
  const found = JSON.stringify(front);
  assert.ok(best, found);
  const { int8, widths, activations, gates, droppedBlocks, sparsity } = best.plan;
  const pulled = [int8, Object.keys(widths).length, droppedBlocks.length];
  // Which of them is the fastest depends on the processor, and on what else it does.
  assert.ok(pulled.some(Boolean) || activations !== "keep" || gates === "fold", found);
  assert.deepEqual(sparsity, {});
  assert.equal(best.latencyRatio, best.cost);
  assert.equal(best.plan.inputSize, null);
});
