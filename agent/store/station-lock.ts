import Database from "better-sqlite3";
import { AgentError, systemCode } from "../errors.ts";

/** Held by the one process that may change a station. */
export interface StationLock {
  release(): void;
}

/**
 * Takes the station for this process. The lock is an exclusive SQLite transaction on a file of its
 * own, hence a POSIX lock that the kernel drops with the process: a killed agent leaves no stale
 * lock behind, and a process id that was given out again cannot be mistaken for it.
 *
 * @param path the lock file; created where it is missing.
 * @param waitMs how long to wait for it: a command that looks whether the agent runs holds it for
 *   a moment.
 * @throws {AgentError} STATION_BUSY where another process holds it.
 */
export function lockStation(path: string, waitMs = 200): StationLock {
  const file = new Database(path, { timeout: waitMs });
  try {
    file.pragma("journal_mode = MEMORY");
    file.exec("BEGIN EXCLUSIVE");
  } catch (error) {
    file.close();
    if (systemCode(error)?.startsWith("SQLITE_BUSY") !== true) throw error;
    throw new AgentError(
      "STATION_BUSY",
      `another process already runs this station (${path} is locked): stop it first, or give each station its own station.dir`,
      { cause: error },
    );
  }
  return { release: () => file.close() };
}
