import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { Aedes } from "aedes";
import { systemClock } from "../../agent/clock.ts";
import type { FleetConnection } from "../../agent/fleet/connection.ts";
import { OutboxPump } from "../../agent/fleet/pump.ts";
import { startMosquitto } from "../mosquitto.helpers.ts";
import {
  type Gate,
  listen,
  numberedEvent,
  SqliteOutbox,
  silentLogger,
  startConnection,
  startGate,
  until,
  watchBroker,
} from "./fleet.helpers.ts";

const WINDOW = 16;

interface Station {
  readonly events: number;
  readonly connection: FleetConnection;
  readonly outbox: SqliteOutbox;
  readonly pump: OutboxPump;
}

/** A station that has been producing for long while its broker was away. */
async function stationFor(
  t: TestContext,
  gate: Gate,
  version: 4 | 5,
  events: number,
): Promise<Station> {
  const folder = await mkdtemp(join(tmpdir(), "taco-delivery-"));
  const outbox = new SqliteOutbox(join(folder, "outbox.db"));
  const connection = startConnection(gate.url, version);
  const pump = new OutboxPump({
    outbox,
    connection,
    clock: systemClock,
    logger: silentLogger(),
    inFlight: WINDOW,
  });
  pump.start();
  t.after(async () => {
    await pump.stop();
    await connection.stop();
    outbox.close();
    await rm(folder, { recursive: true, force: true });
  });
  const before = process.memoryUsage().rss;
  for (let first = 0; first < events; first += 100) {
    outbox.add(Array.from({ length: 100 }, (_, i) => numberedEvent(first + i)));
    pump.wake();
    if (first % 2000 === 0) await delay(5);
  }
  const grownMb = (process.memoryUsage().rss - before) / 2 ** 20;
  assert.equal(connection.connects, 0);
  assert.equal(outbox.pendingCount(), events);
  assert.ok(grownMb < 100, `${grownMb.toFixed(0)} MB more after ${events} events without a broker`);
  return { events, connection, outbox, pump };
}

function assertDelivered(seen: ReadonlySet<string>, { events, outbox, pump }: Station): void {
  assert.equal(seen.size, events, "unique ids delivered = produced");
  assert.equal(pump.counts.dropped, 0);
  assert.ok(outbox.largestLimit <= WINDOW, "never more than a window in memory");
}

for (const version of [5, 4] as const) {
  const name = version === 5 ? "MQTT 5" : "MQTT 3.1.1";
  test(`delivery: ${name}: every event arrives at mosquitto after it was away, through kills and cuts`, async (t) => {
    const broker = await startMosquitto({ config: ["max_queued_messages 0"] });
    t.after(() => broker.remove());
    const gate = await startGate(broker.port);
    t.after(() => gate.remove());
    await broker.kill();
    const station = await stationFor(t, gate, version, 20_000);
    const seen = new Set<string>();
    // A witness at QoS 0 has in its socket all that the broker has acknowledged to the station,
    // so that a killed broker takes nothing with it.
    const startWithWitness = async (): Promise<void> => {
      await broker.start();
      const witness = await watchBroker(
        broker.url,
        "taco/default/creek-3/e/#",
        0,
        (_topic, text) => {
          seen.add(JSON.parse(text)["id"]);
        },
      );
      t.after(() => witness.client.endAsync(true));
      gate.open();
    };
    await startWithWitness();
    // The moments are by chance, so that over the runs of this test they meet everything.
    const ends = ["cut", "kill", "cut", "cut", "kill", "cut", "kill", "cut"] as const;
    for (const end of ends) {
      await delay(Math.random() * 200);
      if (end === "cut") {
        gate.cut();
      } else {
        gate.shut();
        await broker.kill();
        await startWithWitness();
      }
    }
    await until("the outbox is empty", () => station.outbox.pendingCount() === 0, 120_000);
    await until("the last arrived", () => seen.size >= station.events);
    assertDelivered(seen, station);
  });
}

test("delivery: MQTT 3.1.1: every event arrives at aedes after it was away", async (t) => {
  const aedes = await Aedes.createBroker();
  const server = createServer(aedes.handle);
  const gate = await startGate(await listen(server));
  const station = await stationFor(t, gate, 4, 5000);
  t.after(async () => {
    await gate.remove();
    aedes.close();
    server.close();
  });
  const seen = new Set<string>();
  aedes.on("publish", (packet) => {
    if (packet.topic === "taco/default/creek-3/e/prediction") {
      seen.add(JSON.parse(packet.payload.toString())["id"]);
    }
  });
  gate.open();
  const cuts = { left: 4 };
  while (station.outbox.pendingCount() > 0) {
    await delay(200);
    if (cuts.left-- > 0) gate.cut();
  }
  assertDelivered(seen, station);
});
