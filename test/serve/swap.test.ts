import assert from "node:assert/strict";
import { readFile, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import type { Classified } from "../../agent/serve/protocol.ts";
import { type SwapStep, swapTo } from "../../agent/serve/swap.ts";
import { tinyModel } from "../tiny-models.helpers.ts";
import { favoring, feed, manifestOf, publishable, station } from "./models.helpers.ts";

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

test("swap: a candidate that may not be served is refused and the model of before goes on", async (t) => {
  const { inference, registry, ids, pictures } = await station(t, [favoring(0)]);
  await inference.start();
  const wellMade = await publishable(favoring(1));
  const publish = async (more: Partial<typeof wellMade>) =>
    registry.publishModel({ ...wellMade, ...more });
  const sizes = favoring(1, { side: 16 });
  const nan = favoring(1, { nan: true });
  const fewer = favoring(1, { classes: LABELS.slice(0, 3) });
  /** The network of another model under the manifest of the well-made one. */
  const impostor = (model: typeof sizes) => {
    const onnx = tinyModel(model);
    const { sha256 } = manifestOf(model, onnx);
    return { onnx, manifest: { ...wellMade.manifest, sha256 } };
  };
  const cases: [RegExp, () => Promise<string>][] = [
    [
      /expected float32 \[1, 3, 32, 32\], got float32 \[N, 3, 16, 16\]/,
      () => publish(impostor(sizes)),
    ],
    [/is NaN, no finite number/, () => publish(impostor(nan))],
    [/expected float32 \[1, 4\], got float32 \[N, 3\]/, () => publish(impostor(fewer))],
    [/known answers differ by/, () => publish(impostor(favoring(2)))],
    [
      /no usable|could not be opened/,
      () => {
        const onnx = Buffer.from("no network at all");
        const { sha256 } = manifestOf(favoring(1), onnx);
        return publish({ onnx, manifest: { ...wellMade.manifest, sha256 } });
      },
    ],
    [
      /damaged or incomplete/,
      async () => {
        const id = await publish({});
        await truncate(join(registry.folder(id), "model.onnx"), 200);
        return id;
      },
    ],
    [
      /damaged or incomplete/,
      async () => {
        const id = await publish({});
        const path = join(registry.folder(id), "model.onnx");
        const bytes = await readFile(path);
        bytes[bytes.length - 40] = bytes[bytes.length - 40]! ^ 4;
        await writeFile(path, bytes);
        return id;
      },
    ],
  ];
  for (const [reason, prepare] of cases) {
    const sha256 = await prepare();
    const outcome = await swapTo({ registry, inference, sha256 });
    assert.ok(outcome.kind === "refused");
    assert.match(outcome.reason, reason);
    assert.equal(await registry.readCurrent(), ids[0]);
    const answer = await inference.classify({ path: pictures[0]! });
    assert.ok(answer.kind === "classified" && answer.modelSha256 === ids[0]);
  }
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
