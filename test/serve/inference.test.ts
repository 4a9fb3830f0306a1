import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { favoring, feed, isRunning, station } from "./models.helpers.ts";

test("inference: classifies, inspects, and says why a picture failed, in order", async (t) => {
  const { folder, ids, inference, pictures } = await station(t, [favoring(1)], {
    executionProviders: ["cuda", "cpu"],
  });
  await inference.start();
  const broken = join(folder, "broken.jpg");
  await writeFile(broken, "no picture");
  const order: string[] = [];
  const note = (what: string) => () => void order.push(what);
  const calls = [
    inference.classify({ path: pictures[0]! }),
    inference.classify({ path: broken }),
    inference.inspect(pictures[1]!),
    inference.classify({ path: join(folder, "missing.jpg") }),
    inference.classify({ path: pictures[2]! }),
  ] as const;
  await Promise.all(calls.map((call, i) => call.then(note(String(i)))));
  assert.deepEqual(order, ["0", "1", "2", "3", "4"]);
  const [first, second, third, fourth] = await Promise.all(calls);
  assert.ok(first.kind === "classified");
  assert.equal(first.label, "fox");
  assert.equal(first.modelSha256, ids[0]);
  assert.deepEqual([first.widthPx, first.heightPx], [160, 120]);
  assert.equal(first.top5.length, 4);
  assert.ok(Math.abs(first.top5.reduce((sum, top) => sum + top.probability, 0) - 1) < 1e-9);
  assert.ok(first.runMs > 0 && first.decodeMs > 0 && first.queuedMs >= first.decodeMs);
  for (const answer of [second, fourth]) {
    assert.ok(answer.kind === "failed" && answer.code === "PICTURE_UNREADABLE");
  }
  assert.ok(third.kind === "inspected" && third.widthPx === 160);
  const status = inference.status();
  assert.equal(status.provider, "cpu");
  assert.equal(status.fallbacks[0]?.provider, "cuda");
  assert.ok(inference.isAlive());
});

test("inference: rejects calls when stopping, after answering what the child has", async (t) => {
  const { inference, pictures } = await station(t, [favoring(0)], { queueLength: 4 });
  await inference.start();
  const pid = inference.status().pid!;
  const calls = Array.from({ length: 10 }, () => inference.classify({ path: pictures[0]! }));
  const settled = Promise.allSettled(calls);
  await inference.stop();
  const outcomes = (await settled).map((outcome) => outcome.status);
  assert.deepEqual(outcomes.slice(0, 4), Array(4).fill("fulfilled"));
  assert.ok(outcomes.slice(4).every((status) => status === "rejected"));
  await assert.rejects(inference.classify({ path: pictures[0]! }), { code: "INFERENCE_FAILED" });
  assert.ok(!isRunning(pid));
});

test("inference: does not start with a model that fails its known answers", async (t) => {
  const { registry, ids, inference } = await station(t, [favoring(0)]);
  const check = join(registry.folder(ids[0]!), "check.json");
  const known = { formatVersion: 1, seeds: [1], logits: [[0, 0, 0, 1]], tolerance: 1e-3 };
  await writeFile(check, JSON.stringify(known));
  await assert.rejects(inference.start(), { code: "MODEL_CHECK_FAILED" });
  // The kernel takes its time to end a killed process on a busy machine.
  for (let i = 0; i < 500 && inference.pids().some(isRunning); i++) await delay(20);
  assert.deepEqual(inference.pids().filter(isRunning), []);
});

test("inference: measures several models in one process while pictures keep coming", async (t) => {
  const models = [favoring(0), favoring(1, { convolutions: 40 })];
  const { inference, registry, ids, pictures } = await station(t, models);
  await inference.start();
  const answers = feed(inference, pictures, 40);
  const latencies = await inference.measure(
    ids.map((id) => registry.folder(id)),
    12,
  );
  const [fast, slow] = latencies.map((latency) => latency.rounds);
  assert.ok(fast === slow && fast! >= 12 && fast! <= 120, `${fast} and ${slow} rounds`);
  assert.ok(latencies[1]!.medianMs > latencies[0]!.medianMs);
  assert.ok((await answers).every((answer) => answer.kind === "classified"));
});
