import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { connectAsync } from "mqtt";
import { type Clock, systemClock } from "../../agent/clock.ts";
import type { FleetConnection } from "../../agent/fleet/connection.ts";
import type { OutboxMessage } from "../../agent/fleet/messages.ts";
import { OutboxPump, type PumpOptions } from "../../agent/fleet/pump.ts";
import { startMosquitto } from "../mosquitto.helpers.ts";
import {
  listeningLogger,
  numberedEvent,
  SqliteOutbox,
  silentLogger,
  startConnection,
  until,
  watchBroker,
} from "./fleet.helpers.ts";

const PREFIX = "taco/default/creek-3";

/** The machine's clock, `factor` times as fast. */
function fastClock(factor: number): Clock {
  return {
    nowMs: systemClock.nowMs,
    monotonicMs: () => systemClock.monotonicMs() * factor,
    sleep: (ms, signal) => systemClock.sleep(ms / factor, signal),
  };
}

async function outboxFor(t: TestContext): Promise<SqliteOutbox> {
  const folder = await mkdtemp(join(tmpdir(), "taco-outbox-"));
  const outbox = new SqliteOutbox(join(folder, "outbox.db"));
  t.after(async () => {
    outbox.close();
    await rm(folder, { recursive: true, force: true });
  });
  return outbox;
}

function startPump(
  t: TestContext,
  connection: FleetConnection,
  outbox: SqliteOutbox,
  more: Partial<PumpOptions> = {},
): OutboxPump {
  const pump = new OutboxPump({
    outbox,
    connection,
    clock: systemClock,
    logger: silentLogger(),
    inFlight: 16,
    ...more,
  });
  pump.start();
  t.after(async () => {
    await pump.stop();
    await connection.stop();
  });
  return pump;
}

function event(id: string, more: Partial<OutboxMessage> = {}): OutboxMessage {
  const payload = JSON.stringify({ id });
  return { topic: "e/run", payload, qos: 1, retain: false, priority: 1, ...more };
}

for (const version of [5, 4] as const) {
  const name = version === 5 ? "MQTT 5" : "MQTT 3.1.1";

  test(`pump: ${name}: a message too large for the broker is dropped and blocks no other`, async (t) => {
    const broker = await startMosquitto({ config: ["max_packet_size 4000"] });
    t.after(() => broker.remove());
    const outbox = await outboxFor(t);
    const large = event("large", { payload: JSON.stringify({ id: "x".repeat(9000) }) });
    outbox.add([...Array.from({ length: 30 }, (_, i) => numberedEvent(i)), large, event("last")]);
    const seen = new Set<string>();
    const witness = await watchBroker(broker.url, `${PREFIX}/#`, 0, (_topic, payload) => {
      seen.add(JSON.parse(payload)["id"]);
    });
    t.after(() => witness.client.endAsync(true));
    const dropped: OutboxMessage[] = [];
    const { logger, lines } = listeningLogger();
    const connection = startConnection(broker.url, version);
    const pump = startPump(t, connection, outbox, {
      logger,
      poisonLimit: 3,
      onDropped: (message) => dropped.push(message),
    });
    await until("the outbox is empty", () => outbox.pendingCount() === 0);
    assert.deepEqual(dropped, [large]);
    assert.deepEqual({ ...pump.counts }, { delivered: 31, dropped: 1, inFlight: 0 });
    await until("the others arrived", () => seen.has("last") && seen.has("event-29"));
    assert.ok(
      lines.some((line) => line["msg"] === "dropped a message" && line["topic"] === "e/run"),
    );
    assert.ok(connection.connects <= 8, `${connection.connects} connections`);
  });

  test(`pump: ${name}: broken connections lose no message that the broker can take`, async (t) => {
    const broker = await startMosquitto();
    t.after(() => broker.remove());
    const outbox = await outboxFor(t);
    outbox.add(Array.from({ length: 64 }, (_, i) => numberedEvent(i)));
    const connection = startConnection(broker.url, version);
    const dropped: string[] = [];
    const pump = startPump(t, connection, outbox, {
      onDropped: (_message, reason) => dropped.push(reason),
    });
    for (let kills = 0; kills < 6; kills++) {
      await until("online", () => connection.online);
      await broker.kill();
      await broker.start();
      outbox.add([numberedEvent(1000 + kills)]);
      pump.wake();
    }
    await until("the outbox is empty", () => outbox.pendingCount() === 0);
    assert.deepEqual(dropped, []);
  });
}

test("pump: MQTT 5: a refused message waits, is dropped at last, and blocks no other", async (t) => {
  const broker = await startMosquitto({
    config: ["acl_file {folder}/acl"],
    files: { acl: `topic readwrite ${PREFIX}/e/#\ntopic readwrite ${PREFIX}/status\n` },
  });
  t.after(() => broker.remove());
  const outbox = await outboxFor(t);
  outbox.add([event("denied", { topic: "m/device" }), event("one"), event("two")]);
  const connection = startConnection(broker.url, 5);
  const { logger, lines } = listeningLogger();
  const pump = startPump(t, connection, outbox, { clock: fastClock(20), poisonLimit: 3, logger });
  await until("the two are delivered", () => pump.counts.delivered === 2);
  assert.equal(outbox.pendingCount(), 1);
  await until("the third is dropped", () => pump.counts.dropped === 1);
  assert.equal(outbox.pendingCount(), 0);
  const refusals = lines.filter((line) => /check the rights/.test(String(line["msg"])));
  assert.deepEqual(
    refusals.map((line) => [line["code"], line["attempts"], line["waitMs"]]),
    [
      [0x87, 1, 1000],
      [0x87, 2, 2000],
    ],
  );
  assert.equal(connection.connects, 1);
});

test("pump: MQTT 5: old messages are marked as replayed and throttled, new ones are not", async (t) => {
  const broker = await startMosquitto();
  t.after(() => broker.remove());
  const outbox = await outboxFor(t);
  const hourAgo = new Date(Date.now() - 3_600_000).toISOString();
  const inAnHour = new Date(Date.now() + 3_600_000).toISOString();
  outbox.add(
    Array.from({ length: 60 }, (_, i) => event(`old-${i}`)),
    hourAgo,
  );
  outbox.add([event("new")]);
  outbox.add([event("clock-was-ahead")], inAnHour);
  const marked = new Map<string, boolean>();
  const client = await connectAsync(broker.url, { protocolVersion: 5 });
  t.after(() => client.endAsync(true));
  client.on("message", (_topic, payload, packet) => {
    const { id } = JSON.parse(payload.toString());
    marked.set(id, packet.properties?.userProperties?.["replayed"] === "true");
  });
  await client.subscribeAsync(`${PREFIX}/e/#`, { qos: 1 });
  const connection = startConnection(broker.url, 5);
  await until("online", () => connection.online);
  const startMs = performance.now();
  startPump(t, connection, outbox, { replayPerSecond: 100 });
  await until("all arrived", () => marked.size === 62);
  // 10 at once, then 100 a second.
  assert.ok(performance.now() - startMs > 450, "60 old messages at 100 a second");
  const replayed = [...marked].filter(([, yes]) => yes).map(([id]) => id);
  assert.equal(replayed.length, 60);
  assert.ok(replayed.every((id) => id.startsWith("old-")));
});

test("pump: QoS 0 and retained messages travel as they are", async (t) => {
  const broker = await startMosquitto();
  t.after(() => broker.remove());
  const outbox = await outboxFor(t);
  outbox.add([
    event("measured", { topic: "m/device", qos: 0 }),
    event("twin", { topic: "twin/model", retain: true }),
  ]);
  const early = await watchBroker(broker.url, `${PREFIX}/m/#`, 0);
  const connection = startConnection(broker.url, 4);
  startPump(t, connection, outbox);
  await until("the outbox is empty", () => outbox.pendingCount() === 0);
  await until(
    "the measurement came",
    () => early.last(`${PREFIX}/m/device`)?.["id"] === "measured",
  );
  const late = await watchBroker(broker.url, `${PREFIX}/twin/#`, 1);
  await until("the twin is kept", () => late.last(`${PREFIX}/twin/model`)?.["id"] === "twin");
  await Promise.all([early.client.endAsync(true), late.client.endAsync(true)]);
});

test("pump: an outbox that fails for a while is tried again, and nothing is lost", async (t) => {
  const broker = await startMosquitto();
  t.after(() => broker.remove());
  const outbox = await outboxFor(t);
  outbox.add([event("one"), event("two")]);
  const trouble = { reads: 2, deletes: 2 };
  const connection = startConnection(broker.url, 5);
  const pump = startPump(t, connection, outbox, {
    clock: fastClock(100),
    outbox: {
      next: (limit, excludeIds) => {
        if (trouble.reads-- > 0) throw new Error("disk I/O error");
        return outbox.next(limit, excludeIds);
      },
      delivered: (id) => {
        if (trouble.deletes-- > 0) throw new Error("database or disk is full");
        outbox.delivered(id);
      },
      failed: (id) => outbox.failed(id),
      discard: (id) => outbox.discard(id),
      pendingCount: () => outbox.pendingCount(),
    },
  });
  await until("the outbox is empty", () => outbox.pendingCount() === 0);
  assert.equal(pump.counts.dropped, 0);
});

test("pump: stop sends nothing new and what was in flight is removed", async (t) => {
  const broker = await startMosquitto();
  t.after(() => broker.remove());
  const outbox = await outboxFor(t);
  outbox.add(Array.from({ length: 5000 }, (_, i) => numberedEvent(i)));
  const connection = startConnection(broker.url, 5);
  const pump = startPump(t, connection, outbox);
  await until("it runs", () => pump.counts.delivered > 50);
  await pump.stop();
  const pending = outbox.pendingCount();
  assert.equal(pump.counts.inFlight, 0);
  assert.equal(pump.counts.delivered + pending, 5000);
  pump.wake();
  await delay(50);
  assert.equal(outbox.pendingCount(), pending);
});
