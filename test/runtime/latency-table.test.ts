import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { createLogger } from "../../agent/log.ts";
import { type LatencyJob, LatencyTable, thisMachine } from "../../agent/runtime/latency-table.ts";

const LOG = createLogger("fatal");
const dir = mkdtempSync(join(tmpdir(), "taco-latency-"));
after(() => rmSync(dir, { recursive: true }));
const MACHINE = { cpu: "a", providers: ["cpu"], runtime: "1", threads: 2 };
const { signal } = new AbortController();

/** A job whose runs take what a function says; counts what is open. */
function job(key: string, milliseconds: (run: number) => number, open = { count: 0, most: 0 }) {
  let runs = 0;
  const made: LatencyJob = {
    key,
    open: () => {
      open.count++;
      open.most = Math.max(open.most, open.count);
      return Promise.resolve({
        run: () => Promise.resolve(milliseconds(runs++)),
        release: () => {
          open.count--;
          return Promise.resolve();
        },
      });
    },
  };
  return { made, runs: () => runs };
}

test("latency table: hiccups and a busy spell do not get into the figure", async () => {
  const table = await LatencyTable.open(null, MACHINE, LOG);
  // Warm-up, every fourth run disturbed, and all of the first rounds 30 % slower.
  const noisy = job("noisy", (run) => (run < 2 ? 50 : run < 7 ? 13 : run % 4 === 0 ? 40 : 10));
  const steady = job("steady", () => 20);
  await table.measure([noisy.made, steady.made], { signal });
  assert.equal(table.get("noisy"), 10);
  assert.equal(table.get("steady"), 20);
});

test("latency table: a group measured on a busy machine is put right by the reference", async () => {
  const table = await LatencyTable.open(null, MACHINE, LOG);
  let load = 1;
  const reference = job("reference", () => 4 * load).made;
  const block = (key: string) => job(key, () => 10 * load).made;
  await table.measure([block("calm")], { signal, reference });
  load = 1.7;
  await table.measure([block("busy")], { signal, reference });
  assert.ok(Math.abs(table.get("busy")! - table.get("calm")!) < 1e-9);
  load = 0.5;
  await table.measure([block("fast")], { signal, reference });
  assert.deepEqual([table.get("fast"), table.get("reference")], [5, 2]);
});

test("latency table: measures what it does not know, once, and closes all it opened", async () => {
  const path = join(dir, "kept", "table.json");
  const open = { count: 0, most: 0 };
  const first = await LatencyTable.open(path, MACHINE, LOG);
  const jobs = Array.from({ length: 7 }, (_, i) => job(`job ${i}`, () => i + 1, open));
  await first.measure([...jobs.map(({ made }) => made), jobs[0]!.made], { atOnce: 3, signal });
  assert.equal(open.count, 0);
  assert.ok(open.most <= 3, `${open.most} open at a time`);
  const again = await LatencyTable.open(path, MACHINE, LOG);
  const never = job("job 4", () => assert.fail("measured twice"));
  const fresh = job("job 8", () => 9);
  await again.measure([never.made, fresh.made], { signal });
  assert.deepEqual([again.get("job 4"), again.get("job 8"), again.get("job 9")], [5, 9, undefined]);
});

test("latency table: one that is forgetful knows nothing of another's figures", async () => {
  const again = job("again", (run) => 10 + run);
  await LatencyTable.forgetful().measure([again.made], { signal });
  const runs = again.runs();
  const other = LatencyTable.forgetful();
  assert.equal(other.get("again"), undefined);
  await other.measure([again.made], { signal });
  assert.ok(again.runs() > runs);
});

test("latency table: figures belong to processor, provider, version and threads", async () => {
  const path = join(dir, "machines.json");
  const here = await LatencyTable.open(path, MACHINE, LOG);
  await here.measure([job("block", () => 1).made], { signal });
  for (const other of [
    { cpu: "b" },
    { providers: ["cuda", "cpu"] },
    { runtime: "2" },
    { threads: 1 },
  ]) {
    const table = await LatencyTable.open(path, { ...MACHINE, ...other }, LOG);
    assert.equal(table.get("block"), undefined);
    await table.measure([job("block", () => 2).made], { signal });
  }
  assert.equal((await LatencyTable.open(path, MACHINE, LOG)).get("block"), 1);
  const machine = thisMachine({ executionProviders: ["cpu"], intraOpThreads: 0 });
  assert.ok(machine.cpu.length > 0 && machine.threads >= 1);
  assert.match(machine.runtime, /^\d+\.\d+/);
});

test("latency table: a damaged file is measured anew", async () => {
  const path = join(dir, "damaged.json");
  for (const content of ["{", '{"formatVersion":1,"machines":{"a":{"b":"fast"}}}']) {
    writeFileSync(path, content);
    const table = await LatencyTable.open(path, MACHINE, LOG);
    assert.equal(table.get("block"), undefined);
    await table.measure([job("block", () => 3).made], { signal });
    assert.match(readFileSync(path, "utf8"), /"block": 3/);
  }
});

test("latency table: time is bounded, and an abort releases what is open", async () => {
  const table = await LatencyTable.open(null, MACHINE, LOG);
  let ms = 100;
  const falling = job("falling", () => {
    const end = performance.now() + 2;
    while (performance.now() < end);
    ms *= 0.9;
    return ms;
  });
  await table.measure([falling.made], { limitMs: 10, signal });
  assert.ok(falling.runs() <= 12, `${falling.runs()} runs`);
  const abort = new AbortController();
  const open = { count: 0, most: 0 };
  const aborting = job(
    "aborting",
    () => {
      abort.abort(new Error("stopped by hand"));
      return 1;
    },
    open,
  );
  await assert.rejects(table.measure([aborting.made], { signal: abort.signal }), /stopped by hand/);
  assert.equal(open.count, 0);
  assert.equal(table.get("aborting"), undefined);
});
