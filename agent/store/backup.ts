import { constants } from "node:fs";
import { copyFile, mkdir, open, readdir, rm, stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { type Clock, isoTime } from "../clock.ts";
import { AgentError, messageOf, systemCode } from "../errors.ts";
import { diskError, fileExists, publishByRename } from "../files.ts";
import type { Logger } from "../log.ts";
import { checkSoundness } from "./check.ts";
import { type Connection, connect, connectReadOnly } from "./connection.ts";
import { SCHEMA_VERSION } from "./migrate.ts";

/** A copy of the database that passed its check. */
export interface Backup {
  path: string;
  sizeBytes: number;
}

/** Where copies go and how many stay. */
export interface BackupOptions {
  backupDir: string;
  /** At least 1. */
  keepBackups: number;
  clock: Clock;
  signal: AbortSignal;
}

/** `taco-000012-20260501T063000Z.db`: ordered by the number, as a station's clock may jump. */
const BACKUP_NAME = /^taco-(\d{6,})-[0-9TZ]+\.db$/;

/** Ends the name of a copy that is not finished. */
const UNFINISHED = ".unfinished";

/**
 * Copies the live database, checks the copy, publishes it and removes the oldest beyond
 * `keepBackups`. A copy that fails its check is removed and no older one with it.
 *
 * @throws {AgentError} DISK_FULL, or STORE_FAILED if the copy fails its check.
 */
export async function makeBackup(connection: Connection, options: BackupOptions): Promise<Backup> {
  const { backupDir, keepBackups, clock, signal } = options;
  await mkdir(backupDir, { recursive: true });
  await removeUnfinished(backupDir);
  const existing = await listBackups(backupDir);
  const number = numberOf(existing[0] ?? "") + 1;
  const stamp = isoTime(clock.nowMs()).replace(/[-:]|\.\d+/g, "");
  const path = join(backupDir, `taco-${String(number).padStart(6, "0")}-${stamp}.db`);
  const copy = `${path}${UNFINISHED}`;
  try {
    await connection.copyTo(copy, signal);
    settleCopy(copy);
    await syncFile(copy);
    await publishByRename(copy, path);
  } catch (error) {
    await removeDatabase(copy);
    throw diskError(error, path);
  }
  for (const old of existing.slice(Math.max(0, keepBackups - 1))) await removeDatabase(old);
  return { path, sizeBytes: (await stat(path)).size };
}

/** Paths of the finished backups, newest first. */
export async function listBackups(backupDir: string): Promise<string[]> {
  const names = await namesIn(backupDir);
  return names
    .filter((name) => BACKUP_NAME.test(name))
    .sort((a, b) => numberOf(b) - numberOf(a))
    .map((name) => join(backupDir, name));
}

/**
 * Puts the newest backup that passes its check in the place of the database, which must be gone.
 *
 * @returns path of the backup used; undefined where none is usable. Each refused one is logged.
 */
export async function restoreNewest(
  path: string,
  backupDir: string,
  log: Logger,
): Promise<string | undefined> {
  for (const backup of await listBackups(backupDir)) {
    const reason = whyUnusable(backup);
    if (reason !== undefined) {
      log.error({ backup, reason }, "a backup of the database cannot be used");
      continue;
    }
    const copy = `${path}${UNFINISHED}`;
    try {
      await copyFile(backup, copy, constants.COPYFILE_FICLONE);
      await syncFile(copy);
      await publishByRename(copy, path);
    } catch (error) {
      await removeDatabase(copy);
      throw diskError(error, path);
    }
    return backup;
  }
  return undefined;
}

/**
 * Moves a damaged database with its log and index out of the way, keeping it for inspection. Of
 * earlier ones only the last stays, so that a dying disk is not also filled up.
 *
 * @returns path of the file set aside; undefined where there was none.
 */
export async function setAside(path: string, clock: Clock): Promise<string | undefined> {
  const folder = dirname(path);
  const earlier = (await namesIn(folder))
    .filter((name) => name.startsWith(`${basename(path)}.corrupt-`) && !/-(wal|shm)$/.test(name))
    .sort();
  for (const name of earlier.slice(0, -1)) await removeDatabase(join(folder, name));
  const stamp = isoTime(clock.nowMs()).replace(/[-:]|\.\d+/g, "");
  let target = `${path}.corrupt-${stamp}`;
  for (let n = 2; await fileExists(target); n++) target = `${path}.corrupt-${stamp}-${n}`;
  let moved: string | undefined;
  // The main file first: after a power cut in between, the next start finds none and comes back
  // here for the rest, so that no old log ever lies beside a restored file.
  for (const suffix of ["", "-wal", "-shm"]) {
    if (!(await fileExists(`${path}${suffix}`))) continue;
    await publishByRename(`${path}${suffix}`, `${target}${suffix}`);
    moved = target;
  }
  return moved;
}

/**
 * Makes a copy one file without a write-ahead log, which can then be checked without writing
 * beside it, and checks it.
 */
function settleCopy(copy: string): void {
  const connection = connect(copy);
  try {
    connection.pragma("journal_mode = DELETE");
    const soundness = checkSoundness(connection);
    if (soundness.kind === "sound") return;
    throw new AgentError(
      "STORE_FAILED",
      `the backup ${copy} failed its check (${soundness.reason}) and was removed; older backups ` +
        `are untouched: check the disk`,
    );
  } finally {
    connection.close();
  }
}

function whyUnusable(backup: string): string | undefined {
  try {
    const connection = connectReadOnly(backup);
    try {
      const soundness = checkSoundness(connection);
      if (soundness.kind === "damaged") return soundness.reason;
      if (soundness.schemaVersion === 0) return "it is empty";
      if (soundness.schemaVersion > SCHEMA_VERSION) return "a newer version of the agent wrote it";
      return undefined;
    } finally {
      connection.close();
    }
  } catch (error) {
    return messageOf(error);
  }
}

function numberOf(path: string): number {
  return Number(BACKUP_NAME.exec(path.slice(path.lastIndexOf("/") + 1))?.[1] ?? 0);
}

async function namesIn(folder: string): Promise<string[]> {
  try {
    return await readdir(folder);
  } catch (error) {
    if (systemCode(error) === "ENOENT") return [];
    throw error;
  }
}

/** What a process that died while copying left behind. */
async function removeUnfinished(folder: string): Promise<void> {
  for (const name of await namesIn(folder)) {
    if (name.startsWith("taco-") && name.includes(UNFINISHED)) await rm(join(folder, name));
  }
}

async function removeDatabase(path: string): Promise<void> {
  for (const suffix of ["", "-wal", "-shm", "-journal"]) {
    await rm(`${path}${suffix}`, { force: true });
  }
}

async function syncFile(path: string): Promise<void> {
  const file = await open(path, "r+");
  try {
    await file.sync();
  } finally {
    await file.close();
  }
}
