import { type Clock, isoTime } from "../clock.ts";
import type { ModelManifest } from "../model.ts";
import type { Connection } from "./connection.ts";

/** A model as the database knows it; null where its manifest does not say. */
export interface ModelRecord {
  /** Counts up with every model of this station. */
  number: number;
  sha256: string;
  name: string;
  generalist: string | null;
  originRun: string | null;
  classes: string[] | null;
  parameters: number | null;
  nonzero: number | null;
  sizeBytes: number | null;
  accuracy: number | null;
  macroF1: number | null;
  latencyMsP50: number | null;
  createdAt: string | null;
  /** Its folder is on the disk. */
  present: boolean;
  /** It serves, by the record of swaps. */
  current: boolean;
}

/**
 * What is known about models, for people and reports. The folders on disk are the truth; all of
 * this can be made again from them.
 */
export class Models {
  readonly #db: Connection;
  readonly #clock: Clock;

  constructor(db: Connection, clock: Clock) {
    this.#db = db;
    this.#clock = clock;
  }

  /** Writes what a manifest says; the model's folder is on the disk. */
  registerModel(manifest: ModelManifest): void {
    const { metrics } = manifest;
    this.#db.run(
      `INSERT INTO models (sha256, name, generalist, origin_run, classes, parameters, nonzero,
         size_bytes, accuracy, macro_f1, latency_ms_p50, software_version, created_at,
         registered_at, present)
       VALUES (:sha256, :name, :generalist, :originRun, :classes, :parameters, :nonzero,
         :sizeBytes, :accuracy, :macroF1, :latencyMsP50, :softwareVersion, :createdAt, :at, 1)
       ON CONFLICT (sha256) DO UPDATE SET name = :name, generalist = :generalist,
         origin_run = :originRun, classes = :classes, parameters = :parameters,
         nonzero = :nonzero, size_bytes = :sizeBytes, accuracy = :accuracy, macro_f1 = :macroF1,
         latency_ms_p50 = coalesce(:latencyMsP50, latency_ms_p50),
         software_version = :softwareVersion, created_at = :createdAt, present = 1`,
      {
        sha256: manifest.sha256,
        name: manifest.name,
        generalist: manifest.origin.generalist,
        originRun: manifest.origin.run,
        classes: JSON.stringify(manifest.classes),
        parameters: metrics?.parameters ?? null,
        nonzero: metrics?.nonzero ?? null,
        sizeBytes: metrics?.bytes ?? null,
        accuracy: metrics?.accuracy ?? null,
        macroF1: metrics?.macroF1 ?? null,
        latencyMsP50: metrics?.latencyMsP50 ?? null,
        softwareVersion: manifest.softwareVersion,
        createdAt: manifest.createdAt,
        at: isoTime(this.#clock.nowMs()),
      },
    );
  }

  /**
   * Makes the rows agree with the folders: those of `manifests` are present, all others are not.
   *
   * @returns how many were not known, and sha256 of those that are not on the disk any more.
   */
  rebuildModels(manifests: readonly ModelManifest[]): { added: number; missing: string[] } {
    return this.#db.transaction(() => {
      const before = this.#count();
      for (const manifest of manifests) this.registerModel(manifest);
      const found = JSON.stringify(manifests.map((manifest) => manifest.sha256));
      const missing = this.#db.all<{ sha256: string }>(
        `SELECT sha256 FROM models
         WHERE present = 1 AND sha256 NOT IN (SELECT value FROM json_each(:found))`,
        { found },
      );
      for (const { sha256 } of missing) this.markAbsent(sha256);
      return {
        added: this.#count() - before,
        missing: missing.map((row) => row.sha256),
      };
    });
  }

  /** Its folder was removed; the row stays for the predictions that name it. */
  markAbsent(sha256: string): void {
    this.#db.run("UPDATE models SET present = 0 WHERE sha256 = :sha256", { sha256 });
  }

  /** Median milliseconds of one picture, as measured where the model serves. */
  setLatency(sha256: string, latencyMsP50: number): void {
    this.#db.run("UPDATE models SET latency_ms_p50 = :latencyMsP50 WHERE sha256 = :sha256", {
      sha256,
      latencyMsP50,
    });
  }

  /** Makes a row without details where there is none, so that others can refer to it. */
  ensure(sha256: string): void {
    this.#db.run(
      `INSERT INTO models (sha256, name, registered_at, present)
       VALUES (:sha256, '(not registered)', :at, 0) ON CONFLICT DO NOTHING`,
      { sha256, at: isoTime(this.#clock.nowMs()) },
    );
  }

  findModel(sha256: string): ModelRecord | undefined {
    return selectModels(this.#db, "WHERE sha256 = :sha256", { sha256 })[0];
  }

  #count(): number {
    return this.#db.get<{ n: number }>("SELECT count(*) AS n FROM models")?.n ?? 0;
  }
}

/** Models in the order and number that the end of the statement says. */
export function selectModels(
  db: Connection,
  where: string,
  bindings: Record<string, string | number>,
): ModelRecord[] {
  type Row = Omit<ModelRecord, "classes" | "present" | "current"> & {
    classes: string | null;
    present: 0 | 1;
    current: 0 | 1 | null;
  };
  const rows = db.all<Row>(
    `SELECT number, sha256, name, generalist, origin_run AS originRun, classes, parameters,
       nonzero, size_bytes AS sizeBytes, accuracy, macro_f1 AS macroF1,
       latency_ms_p50 AS latencyMsP50, created_at AS createdAt, present,
       sha256 = (SELECT sha256 FROM current_model) AS current
     FROM models ${where}`,
    bindings,
  );
  return rows.map((row) => ({
    ...row,
    classes: row.classes === null ? null : (JSON.parse(row.classes) as string[]),
    present: row.present === 1,
    current: row.current === 1,
  }));
}
