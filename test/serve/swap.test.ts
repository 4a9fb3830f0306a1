import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import type { Classified } from "../../agent/serve/protocol.ts";
import { type SwapStep, swapTo } from "../../agent/serve/swap.ts";
import { favoring, feed, station } from "./models.helpers.ts";

const LABELS = favoring(0).classes;

test("swap: 500 frames across 10 swaps, none lost, none twice, each by one model", async (t) => {
  const models = [favoring(0, { convolutions: 10 }), favoring(1, { convolutions: 10 })];
  const { inference, registry, ids, pictures } = await station(t, models);
  await inference.start();
  const answers: Classified[] = [];
  let sent = 0;
  let swaps = 0;
  const load = (async () => {
    const calls = [];
    // On until all swaps are done, so that every one of them meets frames.
    while (sent < 500 || swaps < 10) {
      await inference.room();
      const call = inference.classify({ path: pictures[sent++ % pictures.length]! });
      calls.push(
        call.then((answer) => {
          assert.ok(answer.kind === "classified");
          answers.push(answer);
        }),
      );
      // A steady 100 a second at most: the swaps are what takes long here.
      await delay(10);
    }
    await Promise.all(calls);
  })();
  const steps: SwapStep[] = [];
  for (; swaps < 10; swaps++) {
    const sha256 = ids[(swaps + 1) % 2]!;
    const before = answers.length;
    const onStep = (step: SwapStep) => void steps.push(step);
    assert.deepEqual(await swapTo({ registry, inference, sha256, onStep }), { kind: "switched" });
    assert.equal(await registry.readCurrent(), sha256);
    assert.equal(inference.status().modelSha256, sha256);
    assert.ok(answers.length >= before);
    // Each model answers before the next one comes, however busy the machine is.
    while (answers.at(-1)?.modelSha256 !== sha256) await delay(5);
  }
  await load;
  assert.equal(answers.length, sent);
  assert.ok(sent >= 500);
  assert.equal(
    steps.join(" "),
    Array(10).fill("swap.loaded swap.pointer-renamed swap.switched").join(" "),
  );
  for (const answer of answers) {
    assert.equal(answer.label, LABELS[ids.indexOf(answer.modelSha256)]);
  }
  // In the order of the answers the model changes exactly once a swap.
  const changes = answers.filter((a, i) => i > 0 && a.modelSha256 !== answers[i - 1]!.modelSha256);
  assert.equal(changes.length, 10);
  assert.equal(inference.status().restarts, 0);
});

test("swap: loads the candidate in place of the live model where memory is short", async (t) => {
  const models = [favoring(0), favoring(1)];
  const short = { availableMemory: () => Promise.resolve(1e6) };
  const { inference, registry, ids, pictures } = await station(t, models, short);
  await inference.start();
  const modes: unknown[] = [];
  const onStep = (step: SwapStep, detail: Readonly<Record<string, unknown>>) => {
    if (step === "swap.loaded") modes.push(detail["mode"]);
    if (step === "swap.loaded") assert.equal(inference.pids().length, 1);
  };
  const answers = feed(inference, pictures, 60);
  const outcome = await swapTo({ registry, inference, sha256: ids[1]!, onStep });
  assert.deepEqual(outcome, { kind: "switched" });
  assert.deepEqual(modes, ["in place"]);
  assert.ok((await answers).every((answer) => answer.kind === "classified"));
  // A refused candidate leaves the model of before to be started again.
  await writeFile(
    join(registry.folder(ids[0]!), "check.json"),
    JSON.stringify({
      formatVersion: 1,
      seeds: [1],
      logits: [[1, 2, 3, 4]],
      tolerance: 0.001,
    }),
  );
  const refused = await swapTo({ registry, inference, sha256: ids[0]! });
  assert.equal(refused.kind, "refused");
  const answer = await inference.classify({ path: pictures[0]! });
  assert.ok(answer.kind === "classified" && answer.modelSha256 === ids[1]);
});
