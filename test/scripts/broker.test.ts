import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout } from "node:timers/promises";
import { connectAsync } from "mqtt";
import { createTally, messageKind, startBroker } from "../../scripts/broker.ts";

test("broker: passes a message between two real clients and counts it", async () => {
  const broker = await startBroker();
  const options = { protocolVersion: 4 } as const;
  const [listener, speaker] = await Promise.all([
    connectAsync(broker.url, options),
    connectAsync(broker.url, options),
  ]);
  try {
    await listener.subscribeAsync("taco/#", { qos: 1 });
    const arrived = new Promise<string>((resolve) => {
      listener.once("message", (topic, payload) => resolve(`${topic} ${payload}`));
    });
    await speaker.publishAsync("taco/alps/north/e/run", '{"id":"a"}', { qos: 1 });
    assert.equal(await arrived, 'taco/alps/north/e/run {"id":"a"}');
    // The broker counts after it has delivered.
    while (broker.seen().length === 0) await setTimeout(5);
    assert.deepEqual(broker.seen(), [{ kind: "e/run", count: 1, bytes: 10, last: '{"id":"a"}' }]);
  } finally {
    await Promise.all([listener.endAsync(true), speaker.endAsync(true)]);
    await broker.stop();
  }
});

test("broker: stops with a client still connected, and twice", async () => {
  const broker = await startBroker();
  const client = await connectAsync(broker.url, { protocolVersion: 4, reconnectPeriod: 0 });
  await broker.stop();
  await broker.stop();
  await client.endAsync(true);
});

test("tally: leaves out the station and a command's id, and bounds the kinds", () => {
  assert.equal(messageKind("taco/f/s/twin/model"), "twin/model");
  assert.equal(messageKind("taco/f/s/cmd/rollback/42/state"), "cmd/rollback/state");
  assert.equal(messageKind("elsewhere/x"), "elsewhere/x");
  const tally = createTally();
  for (let i = 0; i < 1000; i++) tally.note(`noise/${i}`, "x");
  assert.equal(tally.seen().length, 201);
  assert.equal(tally.seen().find((entry) => entry.kind === "(other)")?.count, 800);
});
