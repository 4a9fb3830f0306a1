import type { Clock } from "../clock.ts";
import { AgentError, messageOf } from "../errors.ts";
import type { Logger } from "../log.ts";
import { type Backup, makeBackup } from "./backup.ts";
import { Bursts } from "./bursts.ts";
import { Commands } from "./commands.ts";
import type { Connection } from "./connection.ts";
import { Counters } from "./counters.ts";
import { Events } from "./events.ts";
import { Labels } from "./labels.ts";
import { Models } from "./models.ts";
import { Outbox } from "./outbox.ts";
import { Pictures } from "./pictures.ts";
import { Predictions } from "./predictions.ts";
import { Reports } from "./reports.ts";
import { Runs } from "./runs.ts";
import { StationState } from "./station-state.ts";
import { Swaps } from "./swaps.ts";

/** What {@link Store} needs beside its connection. */
export interface StoreOptions {
  backupDir: string;
  /** Finished backups that stay; at least 1. */
  keepBackups: number;
  clock: Clock;
  log: Logger;
  /** Most bytes of messages that wait for the broker. */
  outboxLimitBytes: number;
}

/**
 * The station's database, open to write. Every method is one transaction, or a part of the one
 * it is called in, and on an error leaves everything as it was.
 */
export class Store {
  readonly pictures: Pictures;
  readonly predictions: Predictions;
  readonly labels: Labels;
  readonly bursts: Bursts;
  readonly runs: Runs;
  readonly models: Models;
  readonly swaps: Swaps;
  readonly commands: Commands;
  readonly events: Events;
  readonly outbox: Outbox;
  readonly counters: Counters;
  readonly state: StationState;
  readonly reports: Reports;
  readonly #db: Connection;
  readonly #options: StoreOptions;
  readonly #closing = new AbortController();
  #backup: Promise<Backup> | undefined;

  /** @param db open, migrated; closed by {@link close}. */
  constructor(db: Connection, options: StoreOptions) {
    const { clock, outboxLimitBytes } = options;
    this.#db = db;
    this.#options = options;
    this.counters = new Counters(db);
    this.outbox = new Outbox(db, clock, this.counters, outboxLimitBytes);
    this.models = new Models(db, clock);
    this.pictures = new Pictures(db, clock);
    this.predictions = new Predictions(db, clock, this.models, this.outbox);
    this.labels = new Labels(db, clock);
    this.bursts = new Bursts(db, clock);
    this.runs = new Runs(db, clock, this.outbox);
    this.swaps = new Swaps(db, clock, this.models);
    this.commands = new Commands(db, clock);
    this.events = new Events(db, clock, this.outbox);
    this.state = new StationState(db, clock);
    this.reports = new Reports(db);
  }

  /**
   * All of the calls in `work` or none of them. Synchronous: a promise is refused.
   *
   * @throws what `work` throws, after undoing it.
   */
  transaction<T>(work: () => T): T {
    return this.#db.transaction(work);
  }

  /**
   * Makes a checked copy beside other work; a call during another one shares its result.
   *
   * @throws {AgentError} DISK_FULL, STORE_FAILED; the copies there were are untouched.
   */
  backup(): Promise<Backup> {
    if (this.#closing.signal.aborted) {
      return Promise.reject(new AgentError("STORE_FAILED", "the database is being closed"));
    }
    this.#backup ??= makeBackup(this.#db, {
      ...this.#options,
      signal: this.#closing.signal,
    }).finally(() => {
      this.#backup = undefined;
    });
    return this.#backup;
  }

  /** Gives up a backup under way, folds the write-ahead log into the file, and closes it. */
  async close(): Promise<void> {
    if (this.#closing.signal.aborted) return;
    this.#closing.abort(new AgentError("STORE_FAILED", "the backup was given up: closing"));
    await Promise.allSettled([this.#backup]);
    const { log } = this.#options;
    try {
      this.#db.pragma("optimize");
      // Busy (1) where someone reads; the log is then folded in at the next start.
      const busy = this.#db.pragma("wal_checkpoint(TRUNCATE)");
      log.debug({ busy }, "closed the database");
    } catch (error) {
      log.warn(
        { error: messageOf(error) },
        "could not fold the write-ahead log into the database; nothing is lost",
      );
    } finally {
      this.#db.close();
    }
  }
}
