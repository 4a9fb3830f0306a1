import { type Clock, isoTime } from "../clock.ts";
import type { Connection } from "./connection.ts";
import type { Models } from "./models.ts";

/** Why a model is loaded: a run's candidate, a way back, or the start of the agent. */
type SwapKind = "swap" | "rollback" | "boot";

/** `loading` → `probation` or `committed` → the end. Refused and interrupted ones never served. */
type SwapState = "loading" | "probation" | "committed" | "rolled_back" | "refused" | "interrupted";

/** What must be known to begin a swap. */
export interface NewSwap {
  fromSha256: string | null;
  toSha256: string;
  kind: SwapKind;
  /** Run that made the model; null where none did. */
  runId: string | null;
  /** Why, in words. */
  reason: string | null;
}

/** A swap as the database knows it. Times are ISO 8601 in UTC. */
export interface SwapRecord extends NewSwap {
  id: number;
  state: SwapState;
  startedAt: string;
  /** When the first picture could go to the new model. */
  switchedAt: string | null;
  decidedAt: string | null;
  /** Counters of the probation, as the caller saved them. */
  probation: unknown;
}

/** Every change of the serving model and how it ended. */
export class Swaps {
  readonly #db: Connection;
  readonly #clock: Clock;
  readonly #models: Models;

  constructor(db: Connection, clock: Clock, models: Models) {
    this.#db = db;
    this.#clock = clock;
    this.#models = models;
  }

  /** @returns id of the swap, which is loading. An older one that still loads is interrupted. */
  beginSwap({ fromSha256, toSha256, kind, runId, reason }: NewSwap): number {
    return this.#db.transaction(() => {
      if (fromSha256 !== null) this.#models.ensure(fromSha256);
      this.#models.ensure(toSha256);
      this.interruptLoading("another swap began");
      const { rowId } = this.#db.run(
        `INSERT INTO swaps (from_sha256, to_sha256, kind, state, run_id, reason, started_at)
         VALUES (:fromSha256, :toSha256, :kind, 'loading', :runId, :reason, :at)`,
        { fromSha256, toSha256, kind, runId, reason, at: this.#now() },
      );
      return rowId;
    });
  }

  /**
   * Records that the new model serves now. A probation of the model before it is interrupted.
   *
   * @param onProbation false: committed at once (a rollback, a start).
   * @throws {RangeError} if the swap is not loading.
   */
  markSwitched(id: number, onProbation: boolean): void {
    this.#db.transaction(() => {
      const at = this.#now();
      const { changes } = this.#db.run(
        `UPDATE swaps SET state = :state, switched_at = :at, decided_at = :decidedAt
         WHERE id = :id AND state = 'loading'`,
        {
          id,
          at,
          state: onProbation ? "probation" : "committed",
          decidedAt: onProbation ? null : at,
        },
      );
      if (changes === 0) throw new RangeError(`expected a swap that is loading, got ${id}`);
      this.#db.run(
        `UPDATE swaps SET state = 'interrupted', decided_at = :at,
           reason = 'another model took its place before it was decided'
         WHERE state = 'probation' AND id <> :id`,
        { id, at },
      );
    });
  }

  /** Keeps the counters of a probation, so that a restart goes on where it was. */
  saveProbation(id: number, counters: unknown): void {
    this.#db.run("UPDATE swaps SET probation = :counters WHERE id = :id", {
      id,
      counters: JSON.stringify(counters),
    });
  }

  /**
   * Ends a swap.
   *
   * @returns false, writing nothing, if it has ended before.
   */
  decideSwap(
    id: number,
    state: "committed" | "rolled_back" | "refused" | "interrupted",
    reason: string,
  ): boolean {
    const { changes } = this.#db.run(
      `UPDATE swaps SET state = :state, reason = :reason, decided_at = :at
       WHERE id = :id AND state IN ('loading', 'probation')`,
      { id, state, reason, at: this.#now() },
    );
    return changes > 0;
  }

  /** The swap whose model serves on probation, if any. */
  currentProbation(): SwapRecord | undefined {
    return currentProbation(this.#db);
  }

  /** The swap that is loading, if any: at a start, one that the last process died in. */
  loadingSwap(): SwapRecord | undefined {
    return selectSwaps(this.#db, "WHERE state = 'loading' ORDER BY id DESC LIMIT 1", {})[0];
  }

  /** @returns how many swaps were loading. A start calls it, as no load outlives its process. */
  interruptLoading(reason: string): number {
    const { changes } = this.#db.run(
      `UPDATE swaps SET state = 'interrupted', reason = :reason, decided_at = :at
       WHERE state = 'loading'`,
      { reason, at: this.#now() },
    );
    return changes;
  }

  findSwap(id: number): SwapRecord | undefined {
    return selectSwaps(this.#db, "WHERE id = :id", { id })[0];
  }

  #now(): string {
    return isoTime(this.#clock.nowMs());
  }
}

/** See {@link Swaps.currentProbation}. */
export function currentProbation(db: Connection): SwapRecord | undefined {
  return selectSwaps(db, "WHERE state = 'probation' ORDER BY id DESC LIMIT 1", {})[0];
}

/** Swaps in the order and number that the end of the statement says. */
export function selectSwaps(
  db: Connection,
  where: string,
  bindings: Record<string, string | number>,
): SwapRecord[] {
  const rows = db.all<Omit<SwapRecord, "probation"> & { probation: string | null }>(
    `SELECT id, from_sha256 AS fromSha256, to_sha256 AS toSha256, kind, state, run_id AS runId,
       reason, started_at AS startedAt, switched_at AS switchedAt, decided_at AS decidedAt,
       probation FROM swaps ${where}`,
    bindings,
  );
  return rows.map((row) => ({
    ...row,
    probation: row.probation === null ? null : (JSON.parse(row.probation) as unknown),
  }));
}
