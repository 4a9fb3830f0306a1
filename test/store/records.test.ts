import assert from "node:assert/strict";
import { test } from "node:test";
import { sha256 } from "../../agent/files.ts";
import { openStoreReadOnly } from "../../agent/store/open.ts";
import type { Store } from "../../agent/store/store.ts";
import {
  asked,
  MODEL_SHA256,
  manifest,
  message,
  picture,
  prediction,
  testStation,
} from "./store.helpers.ts";

const OLD = sha256("old model");

/** A run that made a model which serves on probation, and a picture with label and prediction. */
function liveThrough(store: Store): number {
  const { mediaId } = store.pictures.recordPicture(picture("a", { burstId: "s1" }));
  store.bursts.assignBurstRole("s1", "train");
  store.labels.setLabel({ mediaId, label: "wolf", source: "human", origin: "inbox/a.jpg" });
  store.runs.createRun({
    id: "run-1",
    kind: "scheduled",
    reason: "62 new labels",
    spec: { sparsity: 0.5 },
    seed: 1,
    dir: "runs/run-1",
  });
  store.runs.setRunState("run-1", "running");
  store.runs.startStage("run-1", "split");
  store.runs.endStage("run-1", "split", { state: "finished", seconds: 0.2, detail: "12 bursts" });
  store.runs.startStage("run-1", "compress");
  const point = { step: 50, seconds: 90, learningRate: 5e-4, loss: 0.25 };
  store.runs.addTrainingPoint("run-1", { ...point, validationLoss: 0.5, validationAccuracy: 0.9 });
  store.runs.addTrainingPoint("run-1", { ...point, validationLoss: 0.4, validationAccuracy: null });
  store.runs.setProgress("run-1", { stage: "compress", share: 0.4, secondsLeft: 80 });
  const verdict = {
    runId: "run-1",
    accepted: true,
    onProbation: true,
    reasons: ["0.4 points below dense", "no class lost"],
    metrics: {
      dense: { accuracy: 0.957 },
      incumbent: null,
      candidate: { accuracy: 0.953, macroF1: 0.948, bytes: 16_300_000 },
    },
    candidateSha256: MODEL_SHA256,
  };
  const told = message("v", { topic: "e/verdict", priority: 2 });
  assert.ok(store.runs.recordVerdict(verdict, [told]));
  assert.equal(store.runs.recordVerdict(verdict, [told]), false);
  store.models.registerModel(manifest(OLD, { name: "old" }));
  store.models.registerModel(manifest(MODEL_SHA256));
  const boot = store.swaps.beginSwap({
    fromSha256: null,
    toSha256: OLD,
    kind: "boot",
    runId: null,
    reason: null,
  });
  store.swaps.markSwitched(boot, false);
  const swap = store.swaps.beginSwap({
    fromSha256: OLD,
    toSha256: MODEL_SHA256,
    kind: "swap",
    runId: "run-1",
    reason: null,
  });
  store.swaps.markSwitched(swap, true);
  store.swaps.saveProbation(swap, { frames: 12, errors: 0 });
  store.predictions.recordPrediction(prediction(mediaId), [message("p")]);
  store.pictures.reject({
    mediaId: null,
    path: "inbox/x.jpg",
    reason: "no picture",
    quarantinedPath: null,
    sizeBytes: 12,
  });
  store.events.recordEvent({ kind: "start", text: "The agent started.", detail: { pid: 1 } });
  return swap;
}

test("views: read like tables for people", async (t) => {
  const station = await testStation(t);
  const { store } = await station.open();
  liveThrough(store);
  const one = (sql: string): Record<string, unknown> => ({ ...asked(station.path, sql)[0] });

  const run = one("SELECT * FROM v_runs");
  assert.equal(run["verdict"], "accepted on thin evidence");
  assert.equal(run["reasons"], "0.4 points below dense; no class lost");
  assert.equal(run["dense_accuracy_percent"], 95.7);
  assert.equal(run["candidate_accuracy_percent"], 95.3);
  assert.equal(run["candidate_size_mb"], 16.3);
  assert.equal(run["last_stage"], "compress");
  assert.equal(run["progress_percent"], 40);

  const trained = one("SELECT count(*) AS points, * FROM v_training");
  assert.equal(trained["points"], 1, "a step that is told again replaces itself");
  assert.deepEqual([trained["run"], trained["step"], trained["minutes"]], ["run-1", 50, 1.5]);
  assert.deepEqual(
    [trained["validation_loss"], trained["validation_accuracy_percent"]],
    [0.4, null],
  );

  const model = one("SELECT * FROM v_models");
  assert.equal(model["serving"], "yes");
  assert.equal(model["classes"], "empty, red fox");
  assert.equal(model["zeros_percent"], 47.5);
  assert.equal(model["predictions"], 1);

  assert.deepEqual(one("SELECT * FROM v_daily_species"), {
    day: "2026-04-30",
    label: "red fox",
    pictures: 1,
    bursts: 1,
    mean_probability_percent: 91,
  });
  const swap = one("SELECT * FROM v_swaps");
  assert.deepEqual([swap["from_model"], swap["state"]], ["old", "probation"]);
  assert.equal(one("SELECT * FROM v_quarantine")["reason"], "no picture");
  const label = one("SELECT * FROM v_labels");
  assert.deepEqual([label["predicted_as"], label["agrees"]], ["red fox", "no"]);
  const predicted = one("SELECT * FROM v_predictions");
  assert.deepEqual([predicted["label"], predicted["labeled_as"]], ["red fox", "wolf"]);
});

test("reports: another connection reads the summary while the station is open", async (t) => {
  const station = await testStation(t);
  const { store } = await station.open();
  const readOnly = openStoreReadOnly(station.path);
  t.after(() => readOnly.close());
  const empty = readOnly.reports.summary(station.clock.now);
  assert.deepEqual([empty.currentModel, empty.lastRun, empty.waitingPictures], [null, null, 0]);

  const swapId = liveThrough(store);
  store.pictures.recordPicture(picture("b"));
  const summary = readOnly.reports.summary(station.clock.now);
  assert.equal(summary.waitingPictures, 1);
  assert.equal(summary.predictionsToday, 1);
  assert.equal(readOnly.reports.summary(station.clock.now + 86_400_000).predictionsToday, 0);
  assert.equal(summary.newLabels, 1);
  assert.equal(summary.currentModel?.sha256, MODEL_SHA256);
  assert.deepEqual(summary.probation?.probation, { frames: 12, errors: 0 });
  assert.equal(summary.lastRun?.progress?.share, 0.4);
  assert.deepEqual(summary.lastVerdict?.reasons, ["0.4 points below dense", "no class lost"]);
  assert.deepEqual([summary.pendingMessages, summary.droppedMessages], [2, 0]);

  assert.ok(store.swaps.decideSwap(swapId, "rolled_back", "12 % errors"));
  assert.equal(store.swaps.decideSwap(swapId, "committed", "late"), false);
  const models = readOnly.reports.listModels();
  assert.deepEqual(
    models.map((m) => [m.name, m.current]),
    [
      ["efficientnet_b0 · 2 classes · 50 % sparse", false],
      ["old", true],
    ],
  );
  store.runs.setRunState("run-1", "finished");
  const [run] = readOnly.reports.listRuns();
  assert.deepEqual(
    run?.stages.map((s) => [s.name, s.state]),
    [
      ["split", "finished"],
      ["compress", "running"],
    ],
  );
  assert.equal(run?.progress, null);
  assert.deepEqual(run?.spec, { sparsity: 0.5 });
  assert.deepEqual(readOnly.reports.listEvents()[0]?.detail, { pid: 1 });
  assert.equal(readOnly.reports.listSwaps().length, 2);
});

test("reports: the newest run and swap are the last made, also when the clock went back", async (t) => {
  const station = await testStation(t);
  const { store } = await station.open();
  const run = { kind: "manual", reason: null, spec: {}, seed: 1 } as const;
  store.runs.createRun({ ...run, id: "a", dir: "runs/a" });
  station.clock.now -= 5 * 365 * 86_400_000;
  store.runs.createRun({ ...run, id: "b", dir: "runs/b" });
  assert.equal(store.runs.lastRun()?.id, "b");
  assert.deepEqual(
    store.reports.listRuns().map((r) => r.id),
    ["b", "a"],
  );
  assert.deepEqual(
    store.runs.unfinishedRuns().map((r) => r.id),
    ["a", "b"],
  );
  assert.throws(() => store.runs.setRunState("c", "running"), RangeError);
});

test("models: rows are rebuilt from the folders, and those without one say so", async (t) => {
  const station = await testStation(t);
  const { store } = await station.open();
  store.models.registerModel(manifest(OLD));
  store.models.setLatency(OLD, 55.5);
  const kept = sha256("kept");
  assert.deepEqual(store.models.rebuildModels([manifest(kept)]), { added: 1, missing: [OLD] });
  assert.deepEqual(store.models.rebuildModels([manifest(kept), manifest(OLD)]), {
    added: 0,
    missing: [],
  });
  const old = store.models.findModel(OLD);
  assert.deepEqual([old?.present, old?.latencyMsP50], [true, 55.5]);
});

test("swaps: a load does not outlive its process, a probation does", async (t) => {
  const station = await testStation(t);
  const first = await station.open();
  const swapId = liveThrough(first.store);
  const begin = { fromSha256: MODEL_SHA256, kind: "swap", runId: null, reason: null } as const;
  const loading = first.store.swaps.beginSwap({ ...begin, toSha256: sha256("next") });
  await first.store.close();

  const { store } = await station.open();
  assert.equal(store.swaps.loadingSwap()?.id, loading);
  assert.equal(store.swaps.interruptLoading("the agent was stopped"), 1);
  assert.equal(store.swaps.findSwap(loading)?.state, "interrupted");
  assert.equal(store.swaps.currentProbation()?.id, swapId);
  assert.equal(store.reports.summary(0).currentModel?.sha256, MODEL_SHA256);
  assert.throws(() => store.swaps.markSwitched(loading, true), RangeError);
  const next = store.swaps.beginSwap({ ...begin, toSha256: sha256("next") });
  store.swaps.markSwitched(next, true);
  assert.equal(store.swaps.findSwap(swapId)?.state, "interrupted");
  assert.equal(store.swaps.currentProbation()?.id, next);
});

test("commands: run once however often they come", async (t) => {
  const station = await testStation(t);
  const first = await station.open();
  assert.equal(first.store.commands.begin("c-1", "rollback", "{}"), "new");
  await first.store.close();
  const { store } = await station.open();
  assert.deepEqual(
    store.commands.executingCommands().map((c) => c.id),
    ["c-1"],
  );
  assert.ok(store.commands.finish("c-1", "failed", "there is no earlier model"));
  assert.equal(store.commands.finish("c-1", "successful", null), false);
  assert.deepEqual(store.commands.begin("c-1", "rollback", "{}"), {
    state: "failed",
    reason: "there is no earlier model",
  });
});

test("state: a fact outlives the process and can be removed", async (t) => {
  const station = await testStation(t);
  const first = await station.open();
  first.store.state.set("schedule", { nextRun: "2026-05-02T02:00:00.000Z" });
  first.store.counters.add("restarts", 2);
  await first.store.close();
  const { store } = await station.open();
  assert.deepEqual(store.state.get("schedule"), { nextRun: "2026-05-02T02:00:00.000Z" });
  assert.equal(store.counters.all()["restarts"], 2);
  store.state.set("schedule", undefined);
  assert.equal(store.reports.stationState("schedule"), undefined);
});
