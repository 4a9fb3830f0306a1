import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { startGate } from "../fleet/fleet.helpers.ts";
import { startMosquitto } from "../mosquitto.helpers.ts";
import { asked } from "../store/store.helpers.ts";
import { FleetView } from "./fleet-view.helpers.ts";
import { eventually, TestStation } from "./station.helpers.ts";

const BURST = 400;
/** What messages that wait may cost: far below their own size in memory times their number. */
const MAX_GROWTH_BYTES = 64e6;

/** Resident memory of a process in bytes. */
async function residentBytes(pid: number): Promise<number> {
  const status = await readFile(`/proc/${pid}/status`, "utf8");
  return Number(/VmRSS:\s+(\d+) kB/.exec(status)?.[1]) * 1024;
}

test("station: a broker away for a whole run gets every event once it is back", async (t) => {
  const broker = await startMosquitto();
  t.after(() => broker.remove());
  const gate = await startGate(broker.port);
  t.after(() => gate.remove());
  const fleet = await FleetView.connect(broker.url);
  t.after(() => fleet.close());
  const station = await TestStation.make({
    mqtt: { url: gate.url, measurementSeconds: 3600 },
  });
  t.after(() => station.remove());

  await station.label(12);
  await station.shoot(20);
  await station.start();
  await station.predicted(20);
  await station.labeled(36);
  const { code, stderr } = await station.taco(
    "specialize",
    "--config",
    station.configPath,
    "--force",
  );
  assert.equal(code, 0, stderr);
  await station.shoot(20, 100);
  await eventually("commit", () => station.ask((r) => r.listSwaps()[0]?.state === "committed"));
  await station.predicted(40);

  await station.kill();
  await station.start();
  await station.shoot(20, 200);
  await station.predicted(60);
  const beforeBytes = await residentBytes(station.pid);
  await station.shoot(BURST, 1000);
  await station.predicted(60 + BURST);
  const awayBytes = await residentBytes(station.pid);
  assert.equal(fleet.under("").length, 0, "nothing can have come through a closed gate");

  const database = join(station.dir, "taco.db");
  const waiting = asked(database, "SELECT topic, json_extract(payload, '$.id') AS id FROM outbox");
  gate.open();
  const samples = [awayBytes];
  const pending = () => station.ask((r) => r.summary(Date.now()).pendingMessages);
  await eventually("the outbox is empty", async () => {
    samples.push(await residentBytes(station.pid));
    return pending() === 0;
  });
  await eventually("the last message", () => fleet.of("e/prediction").length >= 60 + BURST);
  // What the broker would send twice or late.
  await delay(300);

  const peakBytes = Math.max(...samples);
  t.diagnostic(
    `supervisor: ${(beforeBytes / 1e6).toFixed(0)} MB before ${BURST} more pictures, ` +
      `${(awayBytes / 1e6).toFixed(0)} MB after, at most ${(peakBytes / 1e6).toFixed(0)} MB ` +
      `while ${waiting.length} messages went out`,
  );
  assert.ok(peakBytes - beforeBytes < MAX_GROWTH_BYTES, `grew by ${peakBytes - beforeBytes} bytes`);

  const came = fleet.under("").filter(({ topic }) => topic !== "status");
  const ids = new Set(came.map(({ message }) => message.id));
  for (const { topic, id } of waiting) assert.ok(ids.has(String(id)), `${String(topic)} is lost`);
  assert.equal(ids.size, waiting.length, "unique ids = produced");

  const counted = (topic: string) => new Set(fleet.of(topic).map(({ id }) => id)).size;
  const rows = (sql: string) =>
    Number(asked(database, `SELECT count(*) AS n FROM ${sql}`)[0]?.["n"]);
  assert.equal(counted("e/prediction"), rows("predictions"));
  assert.equal(rows("predictions"), 60 + BURST);
  assert.equal(
    new Set(fleet.of("e/prediction").map((p) => p["pictureSha256"])).size,
    rows("predictions"),
  );
  assert.equal(counted("e/stage"), 2 * rows("run_stages"));
  assert.equal(counted("e/verdict"), rows("verdicts"));
  assert.equal(counted("e/run"), 2);
  assert.deepEqual(
    fleet.of("e/swap").map((m) => m["state"]),
    ["swapped", "committed"],
  );
  const added = fleet.of("e/labels").map((m) => Object.values(m["added"] as object));
  assert.equal(
    added.flat().reduce((sum: number, n: number) => sum + n, 0),
    36,
  );
  assert.equal(
    station.ask((r) => r.summary(Date.now()).droppedMessages),
    0,
  );
});
