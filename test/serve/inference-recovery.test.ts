import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import type { Inference } from "../../agent/serve/inference.ts";
import { favoring, feed, isRunning, station } from "./models.helpers.ts";

test("inference: answers every picture once though its child is killed again and again", async (t) => {
  const { inference, pictures } = await station(t, [favoring(2, { convolutions: 20 })]);
  await inference.start();
  const answers = feed(inference, pictures, 60);
  for (let kill = 0; kill < 3; kill++) {
    await delay(150);
    await running(inference);
    process.kill(inference.status().pid!, "SIGKILL");
    await delay(20);
  }
  const all = await answers;
  assert.equal(all.length, 60);
  assert.ok(all.every((answer) => answer.kind === "classified" && answer.label === "boar"));
  assert.ok(inference.status().restarts >= 2);
});

test("inference: gives up a picture on which every child dies, and only that one", async (t) => {
  // A run takes long enough to be sure that the first picture is the one being worked on.
  const slow = favoring(2, { side: 128, convolutions: 50 });
  const { inference, pictures } = await station(t, [slow]);
  await inference.start();
  const calls = pictures.map((path) => inference.classify({ path }));
  let pid: number | null = null;
  // The first death is shared by all pictures; alone it dies on each three times.
  for (let death = 0; death < 4; death++) {
    while (inference.status().pid === null || inference.status().pid === pid) await delay(5);
    pid = inference.status().pid;
    process.kill(pid!, "SIGKILL");
  }
  const [poisoned, ...others] = await Promise.all(calls);
  assert.ok(poisoned?.kind === "failed" && poisoned.code === "PICTURE_UNREADABLE");
  assert.match(poisoned.reason, /died 3 times on this picture \(signal SIGKILL\)/);
  assert.deepEqual(
    others.map((other) => other.kind),
    Array(4).fill("classified"),
  );
});

test("inference: a restart under way when another model becomes current does not serve the old one", async (t) => {
  let dirs: string[] = [];
  const { inference, registry, ids } = await station(t, [favoring(0), favoring(1)], {
    currentModelDir: () => Promise.resolve(dirs.length > 1 ? dirs.shift()! : dirs[0]!),
  });
  const [old, next] = ids.map((id) => registry.folder(id));
  dirs = [old!];
  await inference.start();
  // What the restart reads before it launches, and all that is read after.
  dirs = [old!, next!];
  process.kill(inference.status().pid!, "SIGKILL");
  while (inference.status().restarts === 0 || inference.status().modelSha256 === null) {
    await delay(5);
  }
  assert.equal(inference.status().modelSha256, ids[1]);
});

test("inference: kills and replaces a child that hangs", async (t) => {
  const { inference, pictures } = await station(t, [favoring(0)], { hangMs: 400 });
  await inference.start();
  const pid = inference.status().pid!;
  process.kill(pid, "SIGSTOP");
  const answer = inference.classify({ path: pictures[0]! });
  await delay(450);
  assert.equal(inference.isAlive(), false);
  assert.equal((await answer).kind, "classified");
  assert.notEqual(inference.status().pid, pid);
  assert.ok(inference.isAlive());
  assert.equal(inference.status().restarts, 1);
});

test("inference: replaces a child that has grown, without losing a frame", async (t) => {
  const { inference, pictures } = await station(t, [favoring(0, { convolutions: 20 })], {
    memoryLimitMb: 20,
  });
  await inference.start();
  const pid = inference.status().pid;
  const all = await feed(inference, pictures, 200);
  while (inference.status().recycles === 0) await delay(20);
  assert.ok(all.every((answer) => answer.kind === "classified"));
  assert.notEqual(inference.status().pid, pid);
  assert.equal(inference.status().restarts, 0);
});

test("inference: its child does not outlive a supervisor that is killed", async (t) => {
  const { folder, registry, ids } = await station(t, [favoring(0)]);
  const from = (path: string) => JSON.stringify(import.meta.resolve(`../../agent/${path}`));
  const script = join(folder, "supervisor.mts");
  await writeFile(
    script,
    `import { Inference } from ${from("serve/inference.ts")};
    import { systemClock } from ${from("clock.ts")};
    import { createLogger } from ${from("log.ts")};
    const inference = new Inference({
      currentModelDir: async () => ${JSON.stringify(registry.folder(ids[0]!))},
      executionProviders: ["cpu"], intraOpThreads: 1, queueLength: 4, memoryLimitMb: 2000,
      heartbeatMs: 1000, hangMs: 5000, maxMegapixels: 10, clock: systemClock,
      log: createLogger("silent"),
    });
    await inference.start();
    console.log(inference.status().pid);`,
  );
  const stdio = ["ignore", "pipe", "inherit"] as const;
  const supervisor = spawn(process.execPath, ["--import", "tsx", script], { stdio: [...stdio] });
  const [data] = (await once(supervisor.stdout!, "data")) as [Buffer];
  const pid = Number(data.toString());
  assert.ok(isRunning(pid));
  supervisor.kill("SIGKILL");
  for (let i = 0; i < 200 && isRunning(pid); i++) await delay(20);
  assert.ok(!isRunning(pid));
});

async function running(inference: Inference): Promise<void> {
  while (inference.status().pid === null) await delay(10);
}
