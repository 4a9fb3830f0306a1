import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import {
  cp,
  mkdir,
  open,
  readdir,
  readFile,
  readlink,
  rm,
  stat,
  truncate,
  writeFile,
} from "node:fs/promises";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { stringify } from "yaml";
import { hasPictureName } from "../../agent/data/picture-names.ts";
import { ModelRegistry } from "../../agent/serve/registry.ts";
import { BENCH_ABSENT, benchPath } from "../bench-data.helpers.ts";
import { startMosquitto } from "../mosquitto.helpers.ts";
import { asked } from "../store/store.helpers.ts";
import { FleetView } from "./fleet-view.helpers.ts";
import { eventually, TestStation } from "./station.helpers.ts";

const BROKEN = benchPath("images/broken");

async function stationOf(t: TestContext, overrides: Record<string, unknown> = {}) {
  const station = await TestStation.make(overrides);
  t.after(() => station.remove());
  return station;
}

test("station: broken pictures go to quarantine with their reason, all others are predicted", {
  skip: BROKEN === undefined ? BENCH_ABSENT : false,
}, async (t) => {
  if (BROKEN === undefined) return;
  interface Case {
    file: string;
    expect: string;
    also_accept?: string;
  }
  const cases = JSON.parse(await readFile(join(BROKEN, "expected.json"), "utf8")) as Case[];
  const station = await stationOf(t);
  const inbox = join(station.dir, "inbox", "card");
  await mkdir(inbox, { recursive: true });
  const files = cases.map(({ file }) => file);
  const isPicture = async (file: string) => (await stat(join(BROKEN, file))).isFile();
  for (const file of files) await cp(join(BROKEN, file), join(inbox, file), { recursive: true });
  await station.start();
  const open = `SELECT count(*) AS n FROM media WHERE state = 'waiting'`;
  const database = join(station.dir, "taco.db");
  const settled = () =>
    asked(database, "SELECT path, state, reject_reason AS reason FROM media ORDER BY path");
  const sums = new Set<string>();
  for (const file of files) {
    if (!hasPictureName(file) || !(await isPicture(file))) continue;
    sums.add(
      createHash("sha256")
        .update(await readFile(join(BROKEN, file)))
        .digest("hex"),
    );
  }
  await eventually("every picture is dealt with", () => {
    return settled().length === sums.size && asked(database, open)[0]?.["n"] === 0;
  });

  const byFile = new Map(settled().map((row) => [String(row["path"]).split("/").at(-1), row]));
  const quarantined = await readdir(join(station.dir, "quarantine"));
  for (const { file, expect, also_accept } of cases) {
    const row = byFile.get(file);
    // The same bytes under two names are one picture.
    if (row === undefined) continue;
    const accepted = [expect, also_accept].filter((e) => e !== undefined);
    const reasons = accepted.flatMap((e) => /^reject: (.*)/.exec(e)?.[1] ?? []);
    if (row["state"] === "done") {
      assert.ok(accepted.includes("valid"), `${file} was predicted, expected ${expect}`);
      continue;
    }
    assert.equal(row["state"], "rejected", file);
    assert.ok(reasons.length > 0, `${file} was rejected: ${String(row["reason"])}`);
    assert.ok(quarantined.includes(file), `${file} is not in quarantine`);
    const told = JSON.parse(
      await readFile(join(station.dir, "quarantine", `${file}.reason.json`), "utf8"),
    ) as { reason: string };
    assert.equal(told.reason, row["reason"], file);
  }
  assert.ok(station.alive);
  const predicted = settled().filter(({ state }) => state === "done").length;
  await station.shoot(3);
  t.diagnostic(`${predicted} predicted, ${quarantined.length / 2} in quarantine`);
  await station.predicted(predicted + 3);
});

test("station: a config with an unknown key ends with code 1 and names the nearest key", async (t) => {
  const station = await stationOf(t);
  const path = join(station.dir, "..", "wrong.yaml");
  await writeFile(
    path,
    stringify({ station: { id: "x", dir: station.dir }, gate: { maxDropPoint: 1 } }),
  );
  const { code, stdout, stderr } = await station.taco("run", "--config", path);
  assert.equal(code, 1);
  assert.equal(stdout, "");
  assert.match(stderr, /gate\.maxDropPoint\b/);
  assert.match(stderr, /maxDropPoints/);
});

test("station: bad labels and commands are told with their reason, and change nothing", async (t) => {
  const broker = await startMosquitto();
  t.after(() => broker.remove());
  const fleet = await FleetView.connect(broker.url);
  t.after(() => fleet.close());
  const station = await stationOf(t, { mqtt: { url: broker.url } });
  await station.label(2);
  await writeFile(join(station.dir, "labeled", "fox", "broken.jpg"), "no picture at all");
  await station.start();
  await station.labeled(6);
  await eventually("the broken one is set aside", () => fleet.of("e/quarantine").length === 1);
  assert.equal(fleet.last("e/quarantine")?.["path"], "fox/broken.jpg");
  assert.match(String(fleet.last("e/quarantine")?.["reason"]), /not an image/i);
  assert.ok((await readdir(join(station.dir, "quarantine"))).includes("broken.jpg"));

  const failures: [string, string, RegExp][] = [
    ["rollback", "{not json", /no JSON/],
    ["rollback", '{"toSha256": "abc"}', /toSha256: expected a SHA-256/],
    ["rollback", `{"toSha256": "${"0".repeat(64)}"}`, /cannot serve|no such|missing|ENOENT/],
    ["rollback", "{}", /no earlier model/],
    ["explode", "{}", /expected one of specialize, rollback, refresh/],
    ["specialize", '{"force": true}', /labels have enough pictures/],
    ["specialize", '{"force": "yes"}', /force/],
    ["refresh", "x".repeat(20_000), /at most 16384 bytes/],
  ];
  for (const [i, [op, payload, reason]] of failures.entries()) {
    await fleet.command(op, `bad-${i}`, payload);
    const end = await fleet.end(op, `bad-${i}`);
    assert.equal(end["state"], "failed", `${op} ${payload.slice(0, 40)}`);
    assert.match(String(end["reason"]), reason);
  }
  await station.shoot(3);
  await station.predicted(3);
});

test("station: damage done while it was down is repaired at the start, and told", async (t) => {
  const broker = await startMosquitto();
  t.after(() => broker.remove());
  const fleet = await FleetView.connect(broker.url);
  t.after(() => fleet.close());
  const station = await stationOf(t, { mqtt: { url: broker.url } });
  const database = join(station.dir, "taco.db");
  const models = join(station.dir, "models");
  const current = () => readlink(join(models, "current"));
  const serving = () => station.ask((r) => r.summary(Date.now()).currentModel?.sha256);
  const damage = () => truncate(join(models, "current", "model.onnx"), 5000);
  const problems = () => fleet.of("e/problem").map((m) => String(m["message"]));
  const problem = (text: RegExp) =>
    eventually(`told of ${text.source}`, () => problems().some((p) => text.test(p)));
  await station.label(8);
  await station.shoot(5);
  await station.start();
  await station.labeled(24);
  await station.predicted(5);
  const generalist = await current();
  await station.stop();

  await t.test("the only model is truncated: it is set aside and made again", async () => {
    await damage();
    await station.start();
    await eventually("a model", async () => (await current()) === generalist);
    await station.shoot(2, 100);
    await station.predicted(7);
    await problem(new RegExp(`model ${generalist} set aside: model.onnx has the SHA-256`));
    assert.ok((await readdir(models)).includes(`.broken-${generalist}`));
  });

  await t.test("the current model is truncated: the one before serves", async () => {
    await fleet.command("specialize", "learn", '{"force": true}');
    assert.equal((await fleet.end("specialize", "learn"))["state"], "successful");
    const specialist = await current();
    await station.stop();
    await damage();
    await station.start();
    await station.shoot(2, 200);
    await station.predicted(9);
    assert.equal(await current(), generalist);
    assert.equal(serving(), generalist);
    await problem(new RegExp(`model ${generalist} is current now: ${specialist} was unusable`));
    assert.equal(
      station.ask((r) => r.listModels().find((m) => m.current)?.sha256),
      generalist,
    );
  });

  await t.test("the database is damaged: its newest backup is restored", async () => {
    await station.stop();
    assert.notEqual((await readdir(join(station.dir, "backups"))).length, 0, "made at the start");
    await scribble(database);
    await station.start();
    await station.predicted(9);
    await station.labeled(24);
    await problem(/the database was restored/);
    assert.equal(serving(), generalist);
  });

  await t.test("no backup is left either: models and pictures are found again", async () => {
    await station.stop();
    await rm(join(station.dir, "backups"), { recursive: true });
    await scribble(database);
    await station.start();
    await station.predicted(9);
    await station.labeled(24);
    await problem(/the database was created-after-corruption/);
    assert.equal(serving(), generalist);
    assert.ok((await readdir(station.dir)).some((name) => name.startsWith("taco.db.corrupt-")));
    assert.equal(asked(database, "PRAGMA quick_check")[0]?.["quick_check"], "ok");
  });

  assert.ok((await new ModelRegistry({ modelsDir: models }).validateModel(generalist)).valid);
});

/** Overwrites a page in the middle of a file, as a dying card does. */
async function scribble(path: string): Promise<void> {
  const file = await open(path, "r+");
  try {
    const { size } = await file.stat();
    for (const at of [4096, Math.floor(size / 2 / 4096) * 4096]) {
      await file.write(Buffer.alloc(4096, 0xa5), 0, 4096, at);
    }
  } finally {
    await file.close();
  }
}
