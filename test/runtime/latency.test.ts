import assert from "node:assert/strict";
import { test } from "node:test";
import { measureByTurns, summarizeLatency } from "../../agent/runtime/latency.ts";

test("latency: runs the models in turns, each round beginning with another one", async () => {
  const order: string[] = [];
  const probe = (name: string) => (round: number) => {
    order.push(`${name}${round}`);
    return Promise.resolve(round);
  };
  const rest = () => {
    order.push("|");
    return Promise.resolve();
  };
  const samples = await measureByTurns([probe("a"), probe("b")], 3, rest);
  assert.equal(order.join(" "), "a0 b0 | b1 a1 | a2 b2 |");
  assert.deepEqual(samples, [
    [0, 1, 2],
    [0, 1, 2],
  ]);
});

test("latency: sums samples up by median and 90th percentile", () => {
  const samples = [10, 9, 8, 7, 6, 5, 4, 3, 2, 1];
  assert.deepEqual(summarizeLatency(samples), { medianMs: 6, p90Ms: 10, rounds: 10 });
  assert.deepEqual(summarizeLatency([3]), { medianMs: 3, p90Ms: 3, rounds: 1 });
  assert.ok(Number.isNaN(summarizeLatency([]).medianMs));
});
