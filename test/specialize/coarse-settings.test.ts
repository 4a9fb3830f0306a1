import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import type { FrontLimit } from "../../agent/compress/budget.ts";
import { createLogger } from "../../agent/log.ts";
import { LatencyTable, thisMachine } from "../../agent/runtime/latency-table.ts";
import {
  type Coarse,
  coarseSettings,
  planOfSetting,
} from "../../agent/specialize/coarse-settings.ts";
import { NO_CHANGE } from "../../agent/specialize/compression-plan.ts";
import { createEngine, type Engine } from "../../agent/specialize/engine.ts";
import type { Refusal } from "../../agent/specialize/environment.ts";
import { compareOutputs, outputsOf } from "../../agent/specialize/output-difference.ts";
import { deviceWith, environmentOf } from "./environment.helpers.ts";
import { gatedNetwork, pictures } from "./gated-network.helpers.ts";

const LOG = createLogger("error");
const CONFIG = { executionProviders: ["cpu"], intraOpThreads: 1 };
let engine: Engine;
let workDir: string;
before(async () => {
  engine = await createEngine({ ...CONFIG, log: LOG });
  workDir = mkdtempSync(join(tmpdir(), "taco-settings-"));
});
after(async () => {
  await engine.close();
  rmSync(workDir, { recursive: true });
});

/** All settings of a small network with swishes and gates; what is lost is the outputs' error. */
async function settingsFor(measure: "latency" | "bytes", limit: FrontLimit, msLeft = 60_000) {
  const dense = gatedNetwork();
  const { signal } = new AbortController();
  const unseen = pictures(4, 9);
  const wanted = await outputsOf(dense, unseen, engine, signal);
  const refused: Refusal[] = [];
  // Two milliseconds more for every sigmoid.
  const device = deviceWith(
    engine,
    ({ nodes }) => 2 * nodes.filter(({ opType }) => opType === "Sigmoid").length,
  );
  const start = performance.now();
  const settings = await coarseSettings(
    measure,
    {
      dense,
      size: { height: 12, width: 12 },
      environmentAt: () => Promise.resolve(environmentOf(device, workDir, pictures(8, 1))),
      judge: async (graph) => {
        const other = await outputsOf(graph, unseen, engine, signal);
        const { relativeError } = compareOutputs(wanted, other);
        return { loss: relativeError, dropPoints: 100 * relativeError };
      },
      table: await LatencyTable.open(null, thisMachine(CONFIG), LOG),
      restParameters: 0,
    },
    {
      limit,
      timeLeft: () => msLeft - (performance.now() - start),
      refuse: (refusal) => refused.push(refusal),
    },
  );
  return { settings, refused };
}

test("coarse-settings: the dense network comes first, and nothing loses more than allowed", async () => {
  const { settings } = await settingsFor("latency", { maxDrop: 60 });
  assert.equal(planOfSetting(settings[0]!), NO_CHANGE);
  assert.equal(settings[0]!.cost, 1);
  const floats = settings.filter(({ int8 }) => !int8);
  for (const { judgment } of floats) assert.ok(judgment.dropPoints <= 60);
  const relus = floats.find(({ simplification: { activations, gates } }) => {
    return activations === "relu" && gates === "keep";
  });
  assert.ok(relus && relus.cost < 0.9, `${relus?.cost} of the dense latency`);
  assert.equal(planOfSetting(relus).activations, "relu");
});

test("coarse-settings: with nothing to lose, cheaper functions are no settings", async () => {
  const { settings } = await settingsFor("latency", { maxDrop: 1e-6 });
  assert.ok(settings.every(({ simplification }) => simplification.activations === "keep"));
  assert.ok(settings.every(({ simplification }) => simplification.gates === "keep"));
});

test("coarse-settings: without time left, what is known already is still there", async () => {
  const { settings } = await settingsFor("latency", { maxDrop: 60 }, 0);
  assert.equal(planOfSetting(settings[0]!), NO_CHANGE);
});

/** Which functions were tried, the network's own left out. */
function triedIn(settings: readonly Coarse[]): Set<string> {
  const changed = settings.filter((each) => planOfSetting(each) !== NO_CHANGE);
  return new Set(changed.map(({ simplification: s }) => `${s.activations} ${s.gates}`));
}

test("coarse-settings: for a limit on latency only what can keep it is fitted", async () => {
  // Of nine sigmoids constant gates leave five, and fine levers at best 0.6 of their time.
  const { settings } = await settingsFor("latency", { maxCost: 0.3 });
  const tried = triedIn(settings);
  assert.ok(tried.has("relu fold"), [...tried].join(", "));
  assert.ok(!tried.has("keep fold"), [...tried].join(", "));
  const { settings: easier } = await settingsFor("latency", { maxCost: 0.6 });
  assert.ok(triedIn(easier).has("keep fold"), [...triedIn(easier)].join(", "));
});

test("coarse-settings: where time is too short, a limit on latency is kept all the same", async () => {
  const { settings } = await settingsFor("latency", { maxCost: 0.3 }, 0);
  assert.ok(settings.some(({ cost }) => cost <= 0.3));
  assert.deepEqual([...triedIn(settings)], ["relu fold"]);
});

test("coarse-settings: fewer bits take fewer bytes", async () => {
  const { settings } = await settingsFor("bytes", { maxDrop: 100 });
  const of = (bits: number) => settings.find(({ weightBits }) => weightBits === bits)!;
  const float = settings.find(({ int8, weightBits }) => !int8 && weightBits === null)!;
  assert.ok(of(4).cost < float.cost);
  assert.ok(of(3).judgment.dropPoints >= of(4).judgment.dropPoints);
});
