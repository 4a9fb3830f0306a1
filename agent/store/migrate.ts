import { type Clock, isoTime } from "../clock.ts";
import { AgentError } from "../errors.ts";
import { APPLICATION_ID, type Connection } from "./connection.ts";
import { STATION_SQL } from "./migrations/0001-station.ts";
import { TRAINING_SQL } from "./migrations/0002-training.ts";

/** One step of the schema; its number is its place in the list, counted from 1. */
export interface Migration {
  name: string;
  sql: string;
}

/** Every step ever released, in order. A released step is never changed. */
export const MIGRATIONS: readonly Migration[] = [
  { name: "0001-station", sql: STATION_SQL },
  { name: "0002-training", sql: TRAINING_SQL },
];

/** `user_version` of a database that this agent writes. */
export const SCHEMA_VERSION = MIGRATIONS.length;

/** How to {@link migrate}. */
export interface MigrateOptions {
  softwareVersion: string;
  clock: Clock;
  /** Called before the first step, unless the database is still empty. */
  backup: () => Promise<void>;
  migrations?: readonly Migration[];
}

/**
 * Brings a database to the newest schema: forward only, one transaction a step.
 *
 * @returns names of the steps taken, in order.
 * @throws {AgentError} STORE_FAILED if a step breaks a foreign key; that step is undone.
 */
export async function migrate(connection: Connection, options: MigrateOptions): Promise<string[]> {
  const steps = options.migrations ?? MIGRATIONS;
  const from = Number(connection.pragma("user_version"));
  if (from >= steps.length) return [];
  if (from > 0) await options.backup();
  // A step that rebuilds a table must drop it while others refer to it (sqlite.org/lang_altertable
  // section 7); the pragma does nothing inside a transaction.
  connection.pragma("foreign_keys = OFF");
  try {
    for (const [i, step] of steps.entries()) {
      if (i >= from) connection.transaction(() => apply(connection, step, i + 1, options));
    }
  } finally {
    connection.pragma("foreign_keys = ON");
  }
  return steps.slice(from).map((step) => step.name);
}

function apply(
  connection: Connection,
  step: Migration,
  version: number,
  { clock, softwareVersion }: MigrateOptions,
): void {
  connection.exec(step.sql);
  const broken = connection.get("SELECT * FROM pragma_foreign_key_check LIMIT 1");
  if (broken) {
    throw new AgentError(
      "STORE_FAILED",
      `migration ${step.name} of ${connection.path} would break a foreign key ` +
        `(${JSON.stringify(broken)}): nothing was changed; report this as a bug`,
    );
  }
  connection.run(
    `INSERT INTO schema_history (version, name, applied_at, software_version)
     VALUES (:version, :name, :at, :softwareVersion)`,
    { version, name: step.name, at: isoTime(clock.nowMs()), softwareVersion },
  );
  connection.pragma(`application_id = ${APPLICATION_ID}`);
  connection.pragma(`user_version = ${version}`);
}
