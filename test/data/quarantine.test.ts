import assert from "node:assert/strict";
import { mkdir, mkdtemp, readdir, readFile, rm, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { systemClock } from "../../agent/clock.ts";
import { Quarantine } from "../../agent/data/quarantine.ts";
import { sha256 } from "../../agent/files.ts";

async function folders(t: TestContext): Promise<{ inbox: string; folder: string }> {
  const dir = await mkdtemp(join(tmpdir(), "taco-quarantine-"));
  t.after(() => rm(dir, { recursive: true, force: true }));
  await mkdir(join(dir, "inbox"));
  return { inbox: join(dir, "inbox"), folder: join(dir, "quarantine") };
}

test("quarantine: moves a file with its reason beside it", async (t) => {
  const { inbox, folder } = await folders(t);
  const path = join(inbox, 'été "x" 🦊.jpg');
  await writeFile(path, "bad");
  const quarantine = new Quarantine({ folder, maxMb: 1, clock: systemClock });
  const result = await quarantine.put(path, "truncated");
  assert.ok(result.moved);
  assert.equal(await readFile(result.path, "utf8"), "bad");
  assert.deepEqual(await readdir(inbox), []);
  const { quarantinedAt, ...rest } = JSON.parse(await readFile(result.reasonPath, "utf8"));
  assert.match(quarantinedAt, /^\d{4}-.*Z$/);
  assert.deepEqual(rest, {
    reason: "truncated",
    originalPath: path,
    sha256: sha256("bad"),
    sizeBytes: 3,
  });
});

test("quarantine: never overwrites, also with a very long name and many at once", async (t) => {
  const { inbox, folder } = await folders(t);
  const name = `${"ü".repeat(120)}.jpg`;
  const quarantine = new Quarantine({ folder, maxMb: 1, clock: systemClock });
  const puts = ["a", "b", "b", "b"].map(async (content, i) => {
    await mkdir(join(inbox, String(i)));
    await writeFile(join(inbox, String(i), name), content);
    return await quarantine.put(join(inbox, String(i), name), "no");
  });
  const results = await Promise.all(puts);
  assert.ok(results.every((r) => r.moved));
  const names = await readdir(folder);
  assert.equal(names.length, 8);
  const contents = await Promise.all(
    names.filter((n) => n.endsWith(".jpg")).map((n) => readFile(join(folder, n), "utf8")),
  );
  assert.deepEqual(contents.sort(), ["a", "b", "b", "b"]);
});

test("quarantine: above its limit the oldest go and are named, also after a restart", async (t) => {
  const { inbox, folder } = await folders(t);
  const put = async (quarantine: Quarantine, name: string) => {
    await writeFile(join(inbox, name), Buffer.alloc(40_000, name));
    return await quarantine.put(join(inbox, name), "no");
  };
  const first = new Quarantine({ folder, maxMb: 0.1, clock: systemClock });
  await put(first, "b.jpg");
  await put(first, "a.jpg");
  await utimes(join(folder, "b.jpg.reason.json"), 1000, 1000);
  const again = new Quarantine({ folder, maxMb: 0.1, clock: systemClock });
  const result = await put(again, "c.jpg");
  assert.deepEqual(result.moved && result.dropped, ["b.jpg"]);
  assert.deepEqual((await readdir(folder)).sort(), [
    "a.jpg",
    "a.jpg.reason.json",
    "c.jpg",
    "c.jpg.reason.json",
  ]);
});

test("quarantine: one file above the limit is kept until the next comes", async (t) => {
  const { inbox, folder } = await folders(t);
  const quarantine = new Quarantine({ folder, maxMb: 0.001, clock: systemClock });
  await writeFile(join(inbox, "big.jpg"), Buffer.alloc(5000));
  await quarantine.put(join(inbox, "big.jpg"), "no");
  assert.ok((await readdir(folder)).includes("big.jpg"));
  await writeFile(join(inbox, "next.jpg"), "x");
  const result = await quarantine.put(join(inbox, "next.jpg"), "no");
  assert.deepEqual(result.moved && result.dropped, ["big.jpg"]);
});

test("quarantine: a file that is gone is a result, not an error, and leaves nothing", async (t) => {
  const { inbox, folder } = await folders(t);
  const quarantine = new Quarantine({ folder, maxMb: 1, clock: systemClock });
  const result = await quarantine.put(join(inbox, "gone.jpg"), "no");
  assert.match(result.moved ? "" : result.why, /ENOENT/);
  assert.deepEqual(await readdir(folder), []);
});
