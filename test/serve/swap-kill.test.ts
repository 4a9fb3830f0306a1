import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import { type SwapStep, swapTo } from "../../agent/serve/swap.ts";
import { favoring, feed, station } from "./models.helpers.ts";

test("swap: a process killed at any step leaves pointer and served model in agreement", async (t) => {
  const models = [favoring(0, { convolutions: 10 }), favoring(1, { convolutions: 10 })];
  const { inference, registry, ids, pictures } = await station(t, models);
  await inference.start();
  const victims: [string, SwapStep | "loading", "live" | "candidate", "switched" | "refused"][] = [
    ["candidate while it loads", "loading", "candidate", "refused"],
    ["candidate before the pointer", "swap.loaded", "candidate", "refused"],
    ["candidate after the pointer", "swap.pointer-renamed", "candidate", "refused"],
    ["live before the pointer", "swap.loaded", "live", "switched"],
    ["live after the pointer", "swap.pointer-renamed", "live", "switched"],
    ["new one after the switch", "swap.switched", "live", "switched"],
  ];
  for (const [what, when, who, expected] of victims) {
    const current = await registry.readCurrent();
    const sha256 = ids.find((id) => id !== current)!;
    const kill = async () => {
      const live = inference.status().pid;
      const pid = who === "live" ? live : inference.pids().find((other) => other !== live);
      process.kill(pid!, "SIGKILL");
      await delay(0);
    };
    const answers = feed(inference, pictures, 30);
    const swap = swapTo({
      registry,
      inference,
      sha256,
      onStep: (step) => void (step === when && kill()),
    });
    if (when === "loading") {
      while (inference.pids().length < 2) await delay(5);
      await kill();
    }
    const outcome = await swap;
    // A kill takes a moment to be noticed: a candidate that dies just then may count as switched.
    if (when === "loading" || who === "live") assert.equal(outcome.kind, expected, what);
    for (const answer of await answers) assert.equal(answer.kind, "classified", what);
    const last = await inference.classify({ path: pictures[0]! });
    assert.ok(last.kind === "classified");
    assert.equal(last.modelSha256, await registry.readCurrent(), what);
    assert.equal((await registry.validateModel(last.modelSha256)).valid, true);
  }
});
