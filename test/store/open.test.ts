import assert from "node:assert/strict";
import { copyFile, open, readdir, readFile, rm, stat, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import Database from "better-sqlite3";
import { AgentError } from "../../agent/errors.ts";
import { createLogger } from "../../agent/log.ts";
import { connect } from "../../agent/store/connection.ts";
import { MIGRATIONS, migrate } from "../../agent/store/migrate.ts";
import { openStoreReadOnly } from "../../agent/store/open.ts";
import { Store } from "../../agent/store/store.ts";
import {
  asked,
  message,
  picture,
  prediction,
  type TestStation,
  testClock,
  testFolder,
  testStation,
} from "./store.helpers.ts";
import { writeUntilKilled } from "./writer-process.helpers.ts";

function withCode(code: string): (error: unknown) => boolean {
  return (error) => error instanceof AgentError && error.code === code;
}

/** Overwrites whole pages behind the first, as a dying card does. */
async function damage(path: string): Promise<void> {
  const file = await open(path, "r+");
  const { size } = await file.stat();
  for (let at = 4096; at < size; at += 4096) await file.write(Buffer.alloc(512, 0xa5), 0, 512, at);
  await file.close();
}

/** A closed database with one backed-up picture and one that came after the backup. */
async function withBackup(station: TestStation): Promise<string> {
  const { store } = await station.open();
  store.pictures.recordPicture(picture("before"));
  const backup = await store.backup();
  store.pictures.recordPicture(picture("after"));
  await store.close();
  return backup.path;
}

test("openStore: creates a database and opens it again as it is", async (t) => {
  const station = await testStation(t);
  const first = await station.open();
  assert.deepEqual(first.outcome, { kind: "created" });
  first.store.pictures.recordPicture(picture("a"));
  await first.store.close();
  await first.store.close();
  assert.deepEqual(await readdir(station.folder), ["taco.db"], "closing leaves one file");
  const second = await station.open();
  assert.deepEqual(second.outcome, { kind: "ok" });
  assert.equal(second.store.pictures.waitingPictures(9).length, 1);
  assert.deepEqual(
    asked(station.path, "SELECT version, name, applied_at FROM schema_history").map((row) => ({
      ...row,
    })),
    MIGRATIONS.map(({ name }, i) => {
      return { version: i + 1, name, applied_at: "2026-05-01T06:30:00.000Z" };
    }),
  );
});

test("connect: every connection is WAL, synchronous=FULL, with foreign keys", async (t) => {
  const path = join(await testFolder(t), "taco.db");
  for (let n = 0; n < 2; n++) {
    const connection = connect(path);
    assert.equal(connection.pragma("journal_mode"), "wal");
    assert.equal(connection.pragma("synchronous"), 2);
    assert.equal(connection.pragma("foreign_keys"), 1);
    connection.close();
  }
});

test("openStore: sets a damaged file aside and restores the newest good backup", async (t) => {
  const station = await testStation(t);
  const backup = await withBackup(station);
  await damage(station.path);
  const { store, outcome } = await station.open();
  assert.equal(outcome.kind, "restored");
  assert.ok(outcome.kind === "restored" && outcome.backup === backup);
  assert.deepEqual(
    store.pictures.waitingPictures(9).map((w) => w.path),
    ["inbox/before.jpg"],
  );
  const names = await readdir(station.folder);
  assert.ok(names.includes("taco.db.corrupt-20260501T063000Z"), names.join());
  assert.ok(station.logLines.some((line) => /"level":"error".*set aside/.test(line)));
});

test("openStore: restores a cut-off, an emptied, a foreign-byte and a lost file", async (t) => {
  const station = await testStation(t);
  await withBackup(station);
  const harms: Record<string, () => Promise<void>> = {
    "cut off": async () => truncate(station.path, (await stat(station.path)).size >> 1),
    emptied: () => truncate(station.path, 0),
    "other bytes": () => writeFile(station.path, "this was a photo\n".repeat(1000)),
    lost: () => rm(station.path),
  };
  for (const [harm, doIt] of Object.entries(harms)) {
    await doIt();
    const { store, outcome } = await station.open();
    assert.equal(outcome.kind, "restored", harm);
    assert.equal(store.pictures.waitingPictures(9).length, 1, harm);
    await store.close();
  }
});

test("openStore: passes over a damaged backup, and starts empty without a good one", async (t) => {
  const station = await testStation(t);
  const older = await withBackup(station);
  const { store } = await station.open();
  const newer = (await store.backup()).path;
  await store.close();
  await damage(newer);
  await damage(station.path);
  const second = await station.open();
  assert.ok(second.outcome.kind === "restored" && second.outcome.backup === older);
  await second.store.close();

  await damage(older);
  await damage(station.path);
  const third = await station.open();
  assert.equal(third.outcome.kind, "created-after-corruption");
  assert.deepEqual(third.store.pictures.waitingPictures(9), []);
  const names = await readdir(station.folder);
  assert.equal(names.filter((name) => name.includes(".corrupt-")).length, 2, names.join());
  await third.store.close();

  await damage(station.path);
  await (await station.open()).store.close();
  const kept = (await readdir(station.folder)).filter((name) => name.includes(".corrupt-"));
  assert.equal(kept.length, 2, "a disk that dies again and again is not filled up");
});

test("openStore: refuses a newer schema and another program's database, untouched", async (t) => {
  const station = await testStation(t);
  await (await station.open()).store.close();
  const database = new Database(station.path);
  database.pragma("user_version = 99");
  database.pragma("journal_mode = DELETE");
  database.close();
  await assert.rejects(station.open(), withCode("STORE_TOO_NEW"));
  assert.throws(() => openStoreReadOnly(station.path), withCode("STORE_TOO_NEW"));
  assert.equal(asked(station.path, "PRAGMA user_version")[0]?.["user_version"], 99);

  const foreign = join(station.folder, "foreign.db");
  const other = new Database(foreign);
  other.exec("CREATE TABLE photos (id)");
  other.close();
  await assert.rejects(station.open({ path: foreign }), withCode("STORE_FAILED"));
  assert.throws(() => openStoreReadOnly(join(station.folder, "none.db")), withCode("STORE_FAILED"));
});

test("migrate: a failing step is undone whole, after a backup, and the next try goes on", async (t) => {
  const path = join(await testFolder(t), "taco.db");
  const connection = connect(path);
  t.after(() => connection.close());
  let backups = 0;
  const options = {
    softwareVersion: "0.2.0",
    clock: testClock(),
    backup: () => {
      backups++;
      return Promise.resolve();
    },
  };
  const released = MIGRATIONS.map(({ name }) => name);
  assert.deepEqual(await migrate(connection, options), released);
  assert.equal(backups, 0, "an empty database needs no backup");
  assert.deepEqual(await migrate(connection, options), []);
  const good = { name: "next-note", sql: "ALTER TABLE events ADD COLUMN note TEXT" };
  const bad = { name: "next-bad", sql: "CREATE TABLE half (a); INSERT INTO nowhere VALUES (1)" };
  const orphan = {
    name: "next-orphan",
    sql: "INSERT INTO files VALUES ('inbox/x.jpg', 7, 'inbox', 1, 1)",
  };
  for (const third of [bad, orphan]) {
    const steps = [...MIGRATIONS, good, third];
    await assert.rejects(
      migrate(connection, { ...options, migrations: steps }),
      withCode("STORE_FAILED"),
    );
    assert.equal(connection.pragma("user_version"), MIGRATIONS.length + 1);
    assert.equal(connection.pragma("foreign_keys"), 1);
    assert.equal(connection.get("SELECT 1 FROM sqlite_schema WHERE name = 'half'"), undefined);
  }
  assert.equal(backups, 2);
});

test("backup: is checked, one file, kept by number though the clock goes back", async (t) => {
  const station = await testStation(t);
  const { store } = await station.open();
  const paths: string[] = [];
  for (let n = 0; n < 4; n++) {
    store.pictures.recordPicture(picture(`p${n}`));
    station.clock.now -= 86_400_000;
    paths.push((await store.backup()).path);
  }
  const [one, two] = await Promise.all([store.backup(), store.backup()]);
  assert.equal(one.path, two.path);
  assert.deepEqual(
    (await readdir(station.backupDir)).sort().map((name) => join(station.backupDir, name)),
    [paths[3], one.path],
  );
  assert.deepEqual({ ...asked(one.path, "SELECT count(*) AS n FROM media")[0] }, { n: 4 });
  assert.ok(one.sizeBytes > 0);
});

test("backup: goes on while rows are written, and closing gives it up cleanly", async (t) => {
  const station = await testStation(t);
  const { store } = await station.open();
  store.transaction(() => {
    for (let n = 0; n < 300; n++) {
      store.outbox.enqueue([message(`${n}`, { payload: JSON.stringify("x".repeat(10_000)) })]);
    }
  });
  const copying = store.backup();
  store.outbox.enqueue([message("during")]);
  const { path } = await copying;
  assert.deepEqual({ ...asked(path, "SELECT count(*) AS n FROM outbox")[0] }, { n: 301 });
  const given = store.backup();
  const rejected = assert.rejects(given, withCode("STORE_FAILED"));
  await store.close();
  await rejected;
  await assert.rejects(store.backup(), withCode("STORE_FAILED"));
  assert.equal((await readdir(station.backupDir)).length, 1);
});

test("store: a full disk refuses the change whole and is usable again with room", async (t) => {
  const folder = await testFolder(t);
  const clock = testClock();
  const connection = connect(join(folder, "taco.db"));
  await migrate(connection, {
    softwareVersion: "0.1.0",
    clock,
    backup: () => Promise.resolve(),
  });
  const store = new Store(connection, {
    backupDir: join(folder, "backups"),
    keepBackups: 2,
    clock,
    log: createLogger("fatal"),
    outboxLimitBytes: 64 * 1024 * 1024,
  });
  t.after(() => store.close());
  const pages = Number(connection.pragma("page_count"));
  connection.pragma(`max_page_count = ${pages + 10}`);
  const add = (n: number): void =>
    store.transaction(() => {
      const { mediaId } = store.pictures.recordPicture(picture(`p${n}`));
      const payload = JSON.stringify("x".repeat(2000));
      store.predictions.recordPrediction(prediction(mediaId), [message("m", { payload })]);
    });
  let done = 0;
  const fill = (): void => {
    for (; done < 1000; done++) add(done);
  };
  assert.throws(fill, withCode("DISK_FULL"));
  assert.ok(done > 3);
  const counts = (): unknown =>
    connection.get(
      `SELECT (SELECT count(*) FROM media) AS media, (SELECT count(*) FROM predictions) AS p,
         (SELECT count(*) FROM outbox) AS o`,
    );
  assert.deepEqual({ ...(counts() as object) }, { media: done, p: done, o: done });
  assert.equal(store.outbox.pendingCount(), done);
  assert.equal(connection.pragma("quick_check"), "ok");
  connection.pragma(`max_page_count = ${pages + 1000}`);
  add(done);
  assert.equal(store.outbox.pendingCount(), done + 1);
});

test("store: another writer's lock gives a clear error and nothing is lost", async (t) => {
  const station = await testStation(t);
  const { store } = await station.open({ busyTimeoutMs: 50 });
  const other = new Database(station.path);
  t.after(() => other.close());
  other.exec("BEGIN IMMEDIATE");
  assert.throws(() => store.pictures.recordPicture(picture("a")), withCode("STATION_BUSY"));
  other.exec("ROLLBACK");
  assert.ok(store.pictures.recordPicture(picture("a")).isNew);
});

test("store: nothing acknowledged is lost to SIGKILL, again and again", async (t) => {
  const station = await testStation(t);
  const acknowledged: string[] = [];
  for (let round = 0; round < 6; round++) {
    acknowledged.push(...(await writeUntilKilled(station.folder, round, 5 + 17 * round)));
    // What a power cut leaves is the file with its log: a copy of both must open too.
    if (round === 3) {
      const copy = join(station.folder, "copy.db");
      for (const suffix of ["", "-wal"]) {
        await copyFile(`${station.path}${suffix}`, `${copy}${suffix}`);
      }
      const { store, outcome } = await station.open({ path: copy });
      assert.equal(outcome.kind, "ok");
      await store.close();
    }
  }
  assert.ok((await readFile(`${station.path}-wal`)).length > 0, "the last one died with a log");
  const { store, outcome } = await station.open();
  assert.deepEqual(outcome, { kind: "ok" });
  const rows = asked(
    station.path,
    `SELECT m.path FROM predictions AS p JOIN media AS m ON m.id = p.media_id`,
  );
  const written = new Set(rows.map((row) => row["path"]));
  const lost = acknowledged.filter((name) => !written.has(`inbox/${name}.jpg`));
  assert.deepEqual(lost, []);
  assert.ok(acknowledged.length > 200, `${acknowledged.length} acknowledged`);
  assert.equal(store.outbox.pendingCount(), rows.length, "each prediction has its message");
  assert.equal(asked(station.path, "PRAGMA quick_check")[0]?.["quick_check"], "ok");
});
