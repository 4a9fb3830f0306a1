import assert from "node:assert/strict";
import { createHook } from "node:async_hooks";
import {
  appendFile,
  chmod,
  chown,
  mkdir,
  mkdtemp,
  open,
  rename,
  rm,
  symlink,
  utimes,
  writeFile,
} from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";
import sharp from "sharp";
import { type Clock, systemClock } from "../../agent/clock.ts";
import { type FoundPicture, Intake, type IntakeOptions } from "../../agent/data/intake.ts";
import { sha256 } from "../../agent/files.ts";
import { createLogger } from "../../agent/log.ts";

const NOBODY = 65_534;

interface Station {
  dir: string;
  inbox: string;
  labeled: string;
  found: FoundPicture[];
  log: string[];
  intake: Intake;
  /** Waits until so many pictures were found, or fails. */
  until(count: number, timeoutMs?: number): Promise<void>;
}

/** A started intake on an empty folder that records what it finds, as the daemon would. */
async function station(
  t: TestContext,
  overrides: Partial<IntakeOptions> = {},
  prepare?: (dir: string) => Promise<void>,
): Promise<Station> {
  const dir = await mkdtemp(join(tmpdir(), "taco-intake-"));
  await prepare?.(dir);
  const found: FoundPicture[] = [];
  const log: string[] = [];
  const recorded = new Set<string>();
  const intake = new Intake({
    inboxDir: join(dir, "inbox"),
    labeledDir: join(dir, "labeled"),
    scanIntervalMs: 60_000,
    settleMs: 40,
    clock: systemClock,
    log: createLogger("info", { write: (line: string) => void log.push(line) }),
    known: (path, size, mtime) => recorded.has(`${path}|${size}|${mtime}`),
    onPicture: (picture) => {
      recorded.add(`${picture.path}|${picture.sizeBytes}|${picture.mtimeMs}`);
      found.push(picture);
      return Promise.resolve();
    },
    ...overrides,
  });
  t.after(async () => {
    await intake.stop();
    await chmod(join(dir, "inbox", "locked"), 0o700).catch(() => undefined);
    await rm(dir, { recursive: true, force: true });
  });
  await intake.start();
  const until = async (count: number, timeoutMs = 20_000) => {
    const end = performance.now() + timeoutMs;
    while (found.length < count && performance.now() < end) await delay(10);
    assert.equal(found.length, count, `found ${found.map((f) => f.relativePath).slice(0, 9)}`);
  };
  return {
    dir,
    inbox: join(dir, "inbox"),
    labeled: join(dir, "labeled"),
    found,
    log,
    intake,
    until,
  };
}

async function jpeg(shade: number): Promise<Buffer> {
  const background = { r: shade, g: 90, b: 90 };
  return await sharp({ create: { width: 16, height: 12, channels: 3, background } })
    .withExif({ IFD2: { DateTimeOriginal: "2026:05:01 06:30:00" } })
    .jpeg()
    .toBuffer();
}

test("intake: finds what came while it was down, with hash, time and label", async (t) => {
  const picture = await jpeg(1);
  const s = await station(t, {}, async (dir) => {
    await mkdir(join(dir, "inbox", "a", "b"), { recursive: true });
    await writeFile(join(dir, "inbox", "a", "b", "x.JPG"), picture);
    await mkdir(join(dir, "labeled", " red fox ", "cam1"), { recursive: true });
    await writeFile(join(dir, "labeled", " red fox ", "cam1", "y.jpg"), await jpeg(2));
    await writeFile(join(dir, "labeled", "no label.jpg"), await jpeg(3));
  });
  await s.until(2);
  const inbox = s.found.find((f) => f.kind === "inbox");
  assert.equal(inbox?.relativePath, "a/b/x.JPG");
  assert.equal(inbox?.sha256, sha256(picture));
  assert.equal(inbox?.sizeBytes, picture.length);
  assert.ok(Number.isInteger(inbox?.mtimeMs));
  assert.equal(inbox?.capturedAt, "2026-05-01T06:30:00");
  assert.equal(inbox?.captureTimeSource, "exif");
  assert.equal(inbox?.label, undefined);
  assert.equal(s.found.find((f) => f.kind === "labeled")?.label, "red fox");
  assert.equal(s.log.filter((line) => line.includes("no label")).length, 1);
});

test("intake: without EXIF the file's time is given and named as such", async (t) => {
  const s = await station(t);
  const path = join(s.inbox, "plain.png");
  await sharp({ create: { width: 4, height: 4, channels: 3, background: "#123" } }).toFile(path);
  await utimes(path, 1_700_000_000, 1_700_000_000);
  await s.until(1);
  assert.equal(s.found[0]?.captureTimeSource, "file-modified");
  assert.equal(s.found[0]?.capturedAt, "2023-11-14T22:13:20.000Z");
});

test("intake: hints bring new pictures long before the next scan, also in new folders", async (t) => {
  const s = await station(t);
  await delay(300);
  await mkdir(join(s.inbox, "new", "deep"), { recursive: true });
  await writeFile(join(s.inbox, "new", "deep", "1.jpg"), await jpeg(1));
  await s.until(1);
  await writeFile(join(s.inbox, "new", "deep", "2.jpg"), await jpeg(2));
  await s.until(2);
});

test("intake: folders that go and come again, or move, are watched on with all below them", async (t) => {
  const s = await station(t);
  await delay(300);
  for (let round = 0; round < 4; round++) {
    const folder = join(s.inbox, "card");
    await mkdir(join(folder, "deep"), { recursive: true });
    await delay(round < 2 ? 300 : 0);
    await writeFile(join(folder, "deep", "1.jpg"), await jpeg(round));
    await s.until(4 * round + 1);
    await writeFile(join(folder, "2.jpg"), await jpeg(50 + round));
    await s.until(4 * round + 2);
    await rename(folder, join(s.inbox, `card-${round}`));
    await s.until(4 * round + 4);
    if (round % 2 === 0) await delay(300);
  }
  await writeFile(join(s.inbox, "card-1", "deep", "3.jpg"), await jpeg(99));
  await s.until(17);
});

test("intake: a picture that comes costs no look at those that lie there", async (t) => {
  const many = 500;
  const s = await station(t, {}, async (dir) => {
    await mkdir(join(dir, "inbox"));
    for (let i = 0; i < many; i++)
      await writeFile(join(dir, "inbox", `${i}.jpg`), await jpeg(i % 9));
  });
  await s.until(many);
  await delay(1500);
  let requests = 0;
  const counter = createHook({
    init: (_id, type) => {
      if (/^FSREQ/.test(type)) requests++;
    },
  }).enable();
  t.after(() => counter.disable());
  for (let i = 0; i < 5; i++) {
    await writeFile(join(s.inbox, `new ${i}.jpg`), await jpeg(100 + i));
    await s.until(many + i + 1);
    await delay(300);
  }
  assert.ok(requests > 0 && requests < many, `${requests} requests to the file system`);
});

test("intake: a scan alone finds everything, where watching does not work", async (t) => {
  const s = await station(t, { scanIntervalMs: 100 });
  await writeFile(join(s.inbox, "1.jpg"), await jpeg(1));
  await s.until(1);
  await rename(join(s.inbox, "1.jpg"), join(s.inbox, "renamed.jpg"));
  await s.until(2);
  assert.equal(s.found[0]?.sha256, s.found[1]?.sha256);
  assert.equal(s.found[1]?.relativePath, "renamed.jpg");
});

test("intake: a slow writer's picture is handed over once and whole", async (t) => {
  const s = await station(t, { settleMs: 100, scanIntervalMs: 70 });
  const bytes = await jpeg(5);
  const path = join(s.inbox, "slow.jpg");
  await writeFile(path, "");
  for (let i = 0; i < 6; i++) {
    // Pauses longer than the settling time: only the missing end marker says it goes on.
    await delay(150);
    const from = Math.floor((bytes.length * i) / 6);
    await appendFile(path, bytes.subarray(from, Math.floor((bytes.length * (i + 1)) / 6)));
  }
  await s.until(1);
  await delay(200);
  assert.deepEqual(
    s.found.map((f) => f.sha256),
    [sha256(bytes)],
  );
});

test("intake: a file that is never finished is handed over in the end", async (t) => {
  const s = await station(t, { settleMs: 20 });
  await writeFile(join(s.inbox, "half.jpg"), (await jpeg(6)).subarray(0, 200));
  await writeFile(join(s.inbox, "empty.jpg"), "");
  await s.until(2);
});

test("intake: names of half-written, hidden and other files are left alone", async (t) => {
  const s = await station(t, { scanIntervalMs: 50 });
  const bytes = await jpeg(7);
  const names = ["a.jpg.part", "b.tmp", ".c.jpg", "._d.jpg", "e.jpg~", "f.mp4", "notes.txt"];
  for (const name of names) await writeFile(join(s.inbox, name), bytes);
  await mkdir(join(s.inbox, ".trash"));
  await writeFile(join(s.inbox, ".trash", "g.jpg"), bytes);
  await delay(200);
  await rename(join(s.inbox, "a.jpg.part"), join(s.inbox, "a.jpg"));
  await s.until(1);
  assert.equal(s.found[0]?.relativePath, "a.jpg");
});

test("intake: symbolic links are not followed", async (t) => {
  const s = await station(t, { scanIntervalMs: 50 }, async (dir) => {
    await mkdir(join(dir, "elsewhere"));
    await mkdir(join(dir, "inbox"));
    await writeFile(join(dir, "elsewhere", "secret.jpg"), await jpeg(8));
    await symlink(join(dir, "elsewhere"), join(dir, "inbox", "link"));
    await symlink(join(dir, "elsewhere", "secret.jpg"), join(dir, "inbox", "link.jpg"));
  });
  await writeFile(join(s.inbox, "own.jpg"), await jpeg(9));
  await s.until(1);
  assert.equal(s.found[0]?.relativePath, "own.jpg");
  assert.equal(s.log.filter((line) => line.includes("symbolic link")).length, 2);
});

test("intake: a root that is itself a link to a mounted disk works, hints too", async (t) => {
  const s = await station(t, {}, async (dir) => {
    await mkdir(join(dir, "disk", "inbox"), { recursive: true });
    await symlink(join(dir, "disk", "inbox"), join(dir, "inbox"));
  });
  await delay(300);
  await writeFile(join(s.dir, "disk", "inbox", "1.jpg"), await jpeg(1));
  await s.until(1);
  assert.equal(s.found[0]?.path, join(s.inbox, "1.jpg"));
});

test("intake: a root deleted and recreated is seen again", async (t) => {
  const s = await station(t);
  await delay(300);
  await rm(s.inbox, { recursive: true });
  await delay(300);
  await mkdir(s.inbox, { recursive: true });
  await writeFile(join(s.inbox, "1.jpg"), await jpeg(1));
  await s.until(1);
  await delay(300);
  await writeFile(join(s.inbox, "2.jpg"), await jpeg(2));
  await s.until(2);
});

test("intake: a folder that may not be read is named once and the rest goes on", async (t) => {
  const root = process.getuid?.() === 0;
  const s = await station(t, { scanIntervalMs: 50 }, async (dir) => {
    await mkdir(join(dir, "inbox", "locked"), { recursive: true });
    await mkdir(join(dir, "labeled"));
    await chmod(join(dir, "inbox", "locked"), 0);
    // Root may read everything, so the test goes on as nobody.
    if (root) {
      for (const name of ["inbox/locked", "inbox", "labeled", ""]) {
        await chown(join(dir, name), NOBODY, NOBODY);
      }
      process.seteuid?.(NOBODY);
      t.after(() => process.seteuid?.(0));
    }
  });
  await writeFile(join(s.inbox, "1.jpg"), await jpeg(1));
  await s.until(1);
  await delay(200);
  assert.equal(s.log.filter((line) => line.includes("unreadable")).length, 1);
});

test("intake: 10,000 files at once come one time each, a few at a time", async (t) => {
  const count = 10_000;
  let open = 0;
  let most = 0;
  const seen = new Map<string, number>();
  const s = await station(t, {
    settleMs: 200,
    known: (path) => seen.has(path),
    onPicture: async (picture) => {
      open += 1;
      most = Math.max(most, open);
      await new Promise((resolve) => setImmediate(resolve));
      seen.set(picture.path, (seen.get(picture.path) ?? 0) + 1);
      open -= 1;
    },
  });
  await delay(200);
  const gif = Buffer.from("GIF89a\x01\x00\x01\x00\x00\x00\x00;", "latin1");
  for (let i = 0; i < count; i += 100) {
    const folder = join(s.inbox, String(i % 1000));
    await mkdir(folder, { recursive: true });
    const names = Array.from({ length: 100 }, (_, j) => join(folder, `${i + j}.gif`));
    await Promise.all(names.map((name) => writeFile(name, gif)));
  }
  const end = performance.now() + 120_000;
  while (seen.size < count && performance.now() < end) await delay(50);
  assert.equal(seen.size, count);
  assert.ok([...seen.values()].every((times) => times === 1));
  assert.ok(most <= 4, `expected at most 4 at once, got ${most}`);
});

test("intake: a picture that could not be recorded is found again", async (t) => {
  let failures = 0;
  const found: string[] = [];
  const s = await station(t, {
    scanIntervalMs: 50,
    known: (path) => found.includes(path),
    onPicture: (picture) => {
      if (failures++ < 2) return Promise.reject(new Error("database is locked"));
      found.push(picture.path);
      return Promise.resolve();
    },
  });
  await writeFile(join(s.inbox, "1.jpg"), await jpeg(1));
  const end = performance.now() + 5000;
  while (found.length === 0 && performance.now() < end) await delay(10);
  assert.equal(found.length, 1);
  assert.ok(s.log.some((line) => line.includes("database is locked")));
});

test("intake: a wall clock that jumps does not disturb settling", async (t) => {
  let calls = 0;
  const jumping: Clock = { ...systemClock, nowMs: () => (calls++ % 2 ? 0 : 4e12) };
  const s = await station(t, { clock: jumping, scanIntervalMs: 50 });
  const path = join(s.inbox, "future.jpg");
  await writeFile(path, await jpeg(1));
  await utimes(path, 4e9, 4e9);
  await s.until(1);
});

test("intake: files that vanish while they are looked at are no error", async (t) => {
  const s = await station(t, { settleMs: 15, scanIntervalMs: 20 });
  const bytes = await jpeg(1);
  for (let i = 0; i < 100; i++) {
    const path = join(s.inbox, `${i}.jpg`);
    const file = await open(path, "w");
    await file.writeFile(bytes);
    await file.close();
    await delay(3);
    if (i % 2 === 0) await rm(path);
  }
  await s.until(s.found.length);
  assert.deepEqual(s.log, []);
});

test("intake: stop waits for the picture in hand", async (t) => {
  const events: string[] = [];
  const s = await station(t, {
    onPicture: async () => {
      events.push("began");
      await delay(150);
      events.push("done");
    },
  });
  await writeFile(join(s.inbox, "1.jpg"), await jpeg(1));
  while (events.length === 0) await delay(5);
  await s.intake.stop();
  assert.deepEqual(events, ["began", "done"]);
});
