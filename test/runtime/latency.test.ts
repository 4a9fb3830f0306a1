import assert from "node:assert/strict";
import { test } from "node:test";
import { measureLatency } from "../../agent/runtime/latency.ts";

test("latency: runs the models in turns and leaves the warm-up out", async () => {
  const order: string[] = [];
  const probe = (name: string, ms: (call: number) => number) => () => {
    order.push(name);
    return Promise.resolve(ms(order.filter((other) => other === name).length));
  };
  const [slow, fast] = await measureLatency(
    [probe("slow", (call) => (call <= 1 ? 1000 : 10 + call)), probe("fast", () => 2)],
    { rounds: 10, warmUp: 1 },
  );
  assert.deepEqual(order.slice(0, 6), ["slow", "fast", "slow", "fast", "fast", "slow"]);
  assert.deepEqual(slow, { medianMs: 17, p90Ms: 21, rounds: 10 });
  assert.deepEqual(fast, { medianMs: 2, p90Ms: 2, rounds: 10 });
});

test("latency: stops between two runs when told to", async () => {
  const controller = new AbortController();
  const probe = () => {
    controller.abort(new Error("enough"));
    return Promise.resolve(1);
  };
  const options = { rounds: 10, warmUp: 0, signal: controller.signal };
  await assert.rejects(measureLatency([probe], options), /enough/);
});
