import { AgentError } from "../errors.ts";
import { APPLICATION_ID, type Connection } from "./connection.ts";
import { SCHEMA_VERSION } from "./migrate.ts";

/** What is wrong with a database file, or that nothing is. */
export type Soundness =
  /** `schemaVersion` 0: an empty database. */
  { kind: "sound"; schemaVersion: number } | { kind: "damaged"; reason: string };

/**
 * Runs `quick_check`, which reads every page but compares no index with its table.
 *
 * @throws {AgentError} STORE_FAILED if the file is some other program's database.
 */
export function checkSoundness(connection: Connection): Soundness {
  const verdict = connection.pragma("quick_check(1)");
  if (verdict !== "ok") return { kind: "damaged", reason: String(verdict) };
  const schemaVersion = Number(connection.pragma("user_version"));
  const tables = connection.get<{ n: number }>("SELECT count(*) AS n FROM sqlite_schema");
  const isEmpty = schemaVersion === 0 && tables?.n === 0;
  if (!isEmpty && connection.pragma("application_id") !== APPLICATION_ID) {
    throw new AgentError(
      "STORE_FAILED",
      `${connection.path} is a database, but not one of a station: move it away, or set ` +
        `station.dir to another folder`,
    );
  }
  return { kind: "sound", schemaVersion };
}

/**
 * @throws {AgentError} STORE_TOO_NEW if a newer version of the agent wrote the file.
 */
export function refuseNewer(path: string, version: number, known = SCHEMA_VERSION): void {
  if (version <= known) return;
  throw new AgentError(
    "STORE_TOO_NEW",
    `${path} has schema version ${version}, this agent knows up to ${known}: install the newer ` +
      `agent again, or restore a backup made before the update`,
  );
}
