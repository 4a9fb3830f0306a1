import assert from "node:assert/strict";
import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { type TestContext, test } from "node:test";
import { fileURLToPath } from "node:url";
import { startMosquitto } from "../mosquitto.helpers.ts";
import { until, type Witness, watchBroker } from "./fleet.helpers.ts";

const STATUS = "taco/default/creek-3/status";
const STATION = new URL("./last-will-station.helpers.ts", import.meta.url);

function forkStation(t: TestContext, url: string, version: 4 | 5, willDelay: number): ChildProcess {
  const child = fork(fileURLToPath(STATION), [url, String(version), String(willDelay)]);
  t.after(() => child.kill("SIGKILL"));
  return child;
}

async function kill(child: ChildProcess): Promise<void> {
  const exit = once(child, "exit");
  child.kill("SIGKILL");
  await exit;
}

function states(witness: Witness): unknown[] {
  return (witness.seen.get(STATUS) ?? []).map((text) => JSON.parse(text)["state"]);
}

for (const version of [5, 4] as const) {
  const name = version === 5 ? "MQTT 5" : "MQTT 3.1.1";
  test(`last will: ${name}: a second client sees a killed station offline, also later`, async (t) => {
    const broker = await startMosquitto();
    t.after(() => broker.remove());
    const witness = await watchBroker(broker.url, STATUS, 1);
    t.after(() => witness.client.endAsync(true));
    const station = forkStation(t, broker.url, version, 0);
    await until("online", () => states(witness).at(-1) === "online");
    await kill(station);
    await until("offline", () => states(witness).at(-1) === "offline");
    assert.equal(witness.last(STATUS)?.["reason"], "connection lost");
    assert.equal(witness.last(STATUS)?.["softwareVersion"], "1.2.3");
    const late = await watchBroker(broker.url, STATUS, 1);
    t.after(() => late.client.endAsync(true));
    await until("it is retained", () => states(late).at(-1) === "offline");
  });
}

test("last will: MQTT 5: a station that is back within the delay was never offline", async (t) => {
  const broker = await startMosquitto();
  t.after(() => broker.remove());
  const witness = await watchBroker(broker.url, STATUS, 1);
  t.after(() => witness.client.endAsync(true));
  const first = forkStation(t, broker.url, 5, 30);
  await until("online", () => states(witness).length === 1);
  await kill(first);
  forkStation(t, broker.url, 5, 30);
  await until("online again", () => states(witness).length === 2);
  assert.deepEqual(states(witness), ["online", "online"]);
});
