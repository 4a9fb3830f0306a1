import assert from "node:assert/strict";
import { readdir, readlink } from "node:fs/promises";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { startMosquitto } from "../mosquitto.helpers.ts";
import { asked } from "../store/store.helpers.ts";
import { FleetView } from "./fleet-view.helpers.ts";
import { eventually, LABELS, TestStation } from "./station.helpers.ts";

const STAGES = [
  "pictures",
  "features",
  "head",
  "search",
  "compress",
  "head-refit",
  "fine-tune",
  "evaluate",
  "latency",
  "verdict",
];

/** A station at a broker of its own, and what a fleet sees there. */
async function stationAtBroker(t: TestContext, overrides: Record<string, unknown> = {}) {
  const broker = await startMosquitto();
  t.after(() => broker.remove());
  const fleet = await FleetView.connect(broker.url);
  t.after(() => fleet.close());
  const station = await TestStation.make({ mqtt: { url: broker.url }, ...overrides });
  t.after(() => station.remove());
  const cli = async <T>(command: string): Promise<T> => {
    const { code, stdout, stderr } = await station.taco(
      command,
      "--config",
      station.configPath,
      "--json",
    );
    assert.equal(code, 0, stderr);
    return JSON.parse(stdout) as T;
  };
  const current = () => readlink(join(station.dir, "models", "current"));
  return { broker, fleet, station, cli, current };
}

test("station: labels become a model that serves, and everyone is told", async (t) => {
  const { broker, fleet, station, cli, current } = await stationAtBroker(t, {
    fineTune: { enabled: true },
  });
  const database = join(station.dir, "taco.db");
  await station.shoot(12);
  await station.label(12);
  await station.start();
  await station.predicted(12);
  await station.labeled(36);
  const generalist = await current();
  const fresh = await cli<{ agentRunning: boolean; currentModel: { sha256: string } }>("status");
  assert.ok(fresh.agentRunning);
  assert.equal(fresh.currentModel.sha256, generalist);

  const asking = ["specialize", "--config", station.configPath, "--force"];
  const { code, stdout, stderr } = await station.taco(...asking);
  assert.equal(code, 0, stderr);
  assert.match(stdout, /: accepted: .*no class is lost/s);
  const specialist = await current();
  assert.notEqual(specialist, generalist);
  type Status = { probation: { toSha256: string } | null };
  assert.equal((await cli<Status>("status")).probation?.toSha256, specialist);
  await eventually("the twin", () => fleet.last("twin/model")?.["onProbation"] === true);

  await station.shoot(12, 500);
  await station.predicted(24);
  await eventually("commit", () => station.ask((r) => r.listSwaps()[0]?.state === "committed"));

  await t.test("exactly one prediction a picture, by the model that served then", () => {
    const rows = asked(
      database,
      `SELECT m.path, count(p.id) AS n, p.model_sha256 AS model FROM media AS m
       LEFT JOIN predictions AS p ON p.media_id = m.id WHERE m.source = 'inbox' GROUP BY m.id`,
    );
    assert.equal(rows.length, 24);
    for (const { path, n, model } of rows) {
      assert.equal(n, 1, String(path));
      const isLater = /inbox\/005/.test(String(path));
      assert.equal(model, isLater ? specialist : generalist, String(path));
    }
  });

  await t.test("the command line tells runs, models and the state", async () => {
    interface Run {
      state: string;
      verdict: { accepted: boolean };
      stages: { name: string; state: string }[];
    }
    const [run, ...others] = await cli<Run[]>("runs");
    assert.deepEqual(others, []);
    assert.equal(run?.state, "finished");
    assert.equal(run.verdict.accepted, true);
    assert.deepEqual(
      run.stages.map(({ name, state }) => `${name} ${state}`),
      STAGES.map((name) => `${name} finished`),
    );
    const models = await cli<{ sha256: string; current: boolean; classes: string[] }[]>("models");
    assert.deepEqual(
      models.map(({ sha256, current: serves }) => [sha256, serves]),
      [
        [specialist, true],
        [generalist, false],
      ],
    );
    assert.deepEqual(models[0]?.classes, [...LABELS]);
    const status = await cli<Status & { predictionsTotal: number; labeledPictures: number }>(
      "status",
    );
    assert.equal(status.probation, null);
    assert.equal(status.predictionsTotal, 24);
    assert.equal(status.labeledPictures, 36);
  });

  await t.test("the fleet saw every step once", async () => {
    await eventually("the outbox is empty", () =>
      station.ask((r) => r.summary(Date.now()).pendingMessages === 0),
    );
    const predictions = fleet.of("e/prediction");
    assert.equal(new Set(predictions.map(({ id }) => id)).size, 24);
    assert.equal(new Set(predictions.map((p) => p["pictureSha256"])).size, 24);
    const states = (topic: string) => fleet.of(topic).map((message) => message["state"]);
    assert.deepEqual(states("e/run"), ["started", "finished"]);
    assert.deepEqual(states("e/swap"), ["swapped", "committed"]);
    assert.deepEqual(
      fleet.of("e/stage").map((m) => `${String(m["stage"])} ${String(m["state"])}`),
      STAGES.flatMap((name) => [`${name} started`, `${name} finished`]),
    );
    const curve = asked(join(station.dir, "taco.db"), "SELECT * FROM v_training");
    assert.ok(curve.length > 0 && curve.every((row) => Number(row["loss"]) > 0));
    const [verdict, ...more] = fleet.of("e/verdict");
    assert.deepEqual(more, []);
    assert.equal(verdict?.["accepted"], true);
    assert.equal(verdict?.["candidateSha256"], specialist);
    assert.deepEqual(fleet.last("e/labels")?.["total"], { badger: 12, deer: 12, fox: 12 });
  });

  await t.test("the broker keeps status and twins for who comes late", async () => {
    const late = await FleetView.connect(broker.url);
    try {
      await eventually("retained topics", () => late.under("twin/").length === 2);
      for (const topic of ["status", "twin/model", "twin/hardware"]) {
        assert.ok(late.wasRetained(topic), topic);
      }
      assert.equal(late.last("status")?.["state"], "online");
      const twin = late.last("twin/model");
      assert.equal(twin?.["modelSha256"], specialist);
      assert.equal(twin?.["onProbation"], false);
      assert.equal(late.last("twin/hardware")?.["executionProvider"], "cpu");
    } finally {
      await late.close();
    }
  });

  await t.test("the fleet sends the model back, and a person brings it in again", async () => {
    await fleet.command("rollback", "back-1", "{}");
    assert.equal((await fleet.end("rollback", "back-1"))["state"], "successful");
    assert.equal(await current(), generalist);
    await eventually("the event", () => fleet.of("e/rollback").length === 1);
    assert.equal(fleet.last("e/rollback")?.["cause"], "command");
    assert.equal(fleet.last("e/rollback")?.["toSha256"], generalist);
    assert.equal(fleet.last("twin/model")?.["modelSha256"], generalist);

    const to = ["rollback", "--config", station.configPath, "--to", specialist];
    const { code, stderr } = await station.taco(...to);
    assert.equal(code, 0, stderr);
    assert.equal(await current(), specialist);
    await fleet.command("refresh", "look", "{}");
    assert.equal((await fleet.end("refresh", "look"))["state"], "successful");
  });

  await t.test("SIGTERM ends it in seconds, and it says goodbye", async () => {
    const seconds = await station.stop();
    assert.ok(seconds < 5, `${seconds} s`);
    await eventually("goodbye", () => fleet.last("status")?.["state"] === "offline");
    assert.equal(fleet.last("status")?.["reason"], "stopped");
    assert.equal((await cli<{ agentRunning: boolean }>("status")).agentRunning, false);
    const names = await readdir(join(station.dir, "models"));
    assert.deepEqual(names.sort(), [generalist, specialist, "current"].sort());
  });
});

test("station: a model that disappoints on probation goes back by itself", async (t) => {
  const probation = { frames: 5, minutes: 1000, maxLatencyRatio: 0.1, maxLabelShare: 1 };
  const { fleet, station, current } = await stationAtBroker(t, { probation });
  await station.shoot(6);
  await station.label(8);
  await station.start();
  await station.predicted(6);
  await station.labeled(24);
  const generalist = await current();
  await fleet.command("specialize", "learn", '{"force": true}');
  assert.equal((await fleet.end("specialize", "learn"))["state"], "successful");
  await station.shoot(8, 500);
  await eventually("the way back", () => fleet.of("e/rollback").length === 1);
  const event = fleet.last("e/rollback");
  assert.equal(event?.["cause"], "probation");
  assert.equal(event?.["toSha256"], generalist);
  assert.match(String(event?.["reason"]), /times the .* ms of the model before/);
  assert.equal(await current(), generalist);
  await station.predicted(14);
  await station.stop();

  const swaps = asked(
    join(station.dir, "taco.db"),
    "SELECT kind, state, reason FROM v_swaps WHERE kind <> 'boot'",
  );
  assert.deepEqual(
    swaps.map(({ kind, state }) => `${String(kind)} ${String(state)}`),
    ["rollback committed", "swap rolled_back"],
  );
  for (const { reason } of swaps) assert.equal(reason, event?.["reason"]);
});
