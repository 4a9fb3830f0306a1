import { mkdir, stat } from "node:fs/promises";
import { dirname } from "node:path";
import { AgentError, messageOf, systemCode } from "../errors.ts";
import { listBackups, makeBackup, restoreNewest, setAside } from "./backup.ts";
import { checkSoundness, refuseNewer, type Soundness } from "./check.ts";
import { type Connection, connect, connectReadOnly, isDamage } from "./connection.ts";
import { migrate, SCHEMA_VERSION } from "./migrate.ts";
import { Reports } from "./reports.ts";
import { Store, type StoreOptions } from "./store.ts";

/** How {@link openStore} found the database. */
export type OpenOutcome =
  | { kind: "ok" }
  /** There was none, and no backup of one. */
  | { kind: "created" }
  /** It was lost or damaged; what happened since the backup is not in it. */
  | { kind: "restored"; backup: string; reason: string; setAside: string | null }
  /** It was damaged and no backup could be used: the history is lost. */
  | { kind: "created-after-corruption"; reason: string; setAside: string | null };

/** What {@link openStore} needs. */
export interface OpenStoreOptions extends Omit<StoreOptions, "outboxLimitBytes"> {
  path: string;
  softwareVersion: string;
  /** Most bytes of messages that wait for the broker; 64 MiB by default. */
  outboxLimitBytes?: number;
  /** How long a write waits for another process's lock; 5000 by default. */
  busyTimeoutMs?: number;
}

/**
 * Opens the station's database to write: checks it, restores it if it is damaged or gone, and
 * brings it to the newest schema. Hold the station's lock while it is open: one process writes.
 *
 * Unless the outcome is `ok`, rebuild the models from their folders and scan the pictures again.
 *
 * @throws {AgentError} STORE_TOO_NEW; STATION_BUSY if another process holds a lock; STORE_FAILED;
 *   DISK_FULL. The file is then as it was.
 */
export async function openStore(
  options: OpenStoreOptions,
): Promise<{ store: Store; outcome: OpenOutcome }> {
  const { path, backupDir, keepBackups, clock, softwareVersion } = options;
  if (!Number.isInteger(keepBackups) || keepBackups < 1) {
    throw new RangeError(`keepBackups: expected a whole number of at least 1, got ${keepBackups}`);
  }
  await mkdir(dirname(path), { recursive: true });
  const outcome = await recover(options);
  const connection = connect(path, options.busyTimeoutMs);
  try {
    const signal = new AbortController().signal;
    await migrate(connection, {
      softwareVersion,
      clock,
      backup: async () => {
        await makeBackup(connection, { backupDir, keepBackups, clock, signal });
      },
    });
  } catch (error) {
    connection.close();
    throw error;
  }
  const outboxLimitBytes = options.outboxLimitBytes ?? 64 * 1024 * 1024;
  return { store: new Store(connection, { ...options, outboxLimitBytes }), outcome };
}

/** Sees to it that the path holds a sound database or nothing. */
async function recover(options: OpenStoreOptions): Promise<OpenOutcome> {
  const { path, backupDir, clock, log } = options;
  const size = await sizeOf(path);
  const soundness = size === undefined ? undefined : inspect(path, options.busyTimeoutMs);
  if (soundness?.kind === "sound" && soundness.schemaVersion > 0) {
    refuseNewer(path, soundness.schemaVersion);
    return { kind: "ok" };
  }
  const reason =
    soundness === undefined
      ? "the file was gone"
      : soundness.kind === "damaged"
        ? soundness.reason
        : "the file was empty";
  // A start that died before its first commit leaves an empty file, which is as good as none.
  const isUnused = soundness?.kind === "sound" && (await listBackups(backupDir)).length === 0;
  if (isUnused) return { kind: "created" };
  const aside = (await setAside(path, clock)) ?? null;
  if (soundness?.kind === "damaged") {
    log.error({ path, setAside: aside, reason }, "the database is damaged and was set aside");
  }
  const backup = await restoreNewest(path, backupDir, log);
  if (backup !== undefined) {
    log.error({ path, backup, reason }, "restored the database from a backup");
    return { kind: "restored", backup, reason, setAside: aside };
  }
  if (soundness?.kind !== "damaged") return { kind: "created" };
  log.error({ path, reason }, "no backup can be used: starting with an empty database");
  return { kind: "created-after-corruption", reason, setAside: aside };
}

/** Opening to write first replays the write-ahead log of a process that died. */
function inspect(path: string, busyTimeoutMs: number | undefined): Soundness {
  try {
    const connection = connect(path, busyTimeoutMs);
    try {
      return checkSoundness(connection);
    } finally {
      connection.close();
    }
  } catch (error) {
    if (isDamage(error)) return { kind: "damaged", reason: messageOf(error) };
    throw error;
  }
}

async function sizeOf(path: string): Promise<number | undefined> {
  try {
    return (await stat(path)).size;
  } catch (error) {
    if (systemCode(error) === "ENOENT") return undefined;
    throw new AgentError("STORE_FAILED", `${path}: cannot look at the file`, { cause: error });
  }
}

/** A database open to read, beside the process that writes it. */
export interface ReadOnlyStore {
  reports: Reports;
  close(): void;
}

/**
 * Opens the database of a station, running or not, for questions only.
 *
 * @throws {AgentError} STORE_FAILED if there is none, or it was never brought to this schema;
 *   STORE_TOO_NEW.
 */
export function openStoreReadOnly(path: string): ReadOnlyStore {
  const connection = connectReadOnly(path);
  try {
    refuseOtherSchema(connection);
  } catch (error) {
    connection.close();
    throw error;
  }
  return { reports: new Reports(connection), close: () => connection.close() };
}

function refuseOtherSchema(connection: Connection): void {
  const version = Number(connection.pragma("user_version"));
  refuseNewer(connection.path, version);
  if (version === SCHEMA_VERSION) return;
  throw new AgentError(
    "STORE_FAILED",
    `${connection.path} has schema version ${version}, expected ${SCHEMA_VERSION}: start the ` +
      `agent once ("taco run"), which brings it up to date`,
  );
}
