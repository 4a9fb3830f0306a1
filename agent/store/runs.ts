import { type Clock, isoTime } from "../clock.ts";
import type { Connection } from "./connection.ts";
import type { Outbox, OutboxMessage } from "./outbox.ts";

/** Who asked for a run. */
type RunKind = "scheduled" | "manual" | "remote";

/** `aborted` runs can be resumed: they may go back to `running`. */
export type RunState = "queued" | "running" | "finished" | "failed" | "aborted";

/** What must be known to make a run. */
export interface NewRun {
  id: string;
  kind: RunKind;
  /** Why now, in words. */
  reason: string | null;
  /** Anything that JSON can hold. */
  spec: unknown;
  seed: number;
  /** Its folder. */
  dir: string;
}

/** A run as the database knows it. Times are ISO 8601 in UTC. */
export interface RunRecord extends NewRun {
  /** Counts up with every run of this station. */
  number: number;
  state: RunState;
  createdAt: string;
  startedAt: string | null;
  endedAt: string | null;
}

/** One stage of a run. */
export interface StageRecord {
  name: string;
  state: "running" | "finished" | "failed" | "aborted";
  startedAt: string;
  /** Null while it goes on. */
  seconds: number | null;
  /** In words. */
  detail: string | null;
}

/** How far a run is. */
export interface RunProgress {
  stage: string;
  /** Of the whole run, in [0, 1]. */
  share: number;
  secondsLeft: number | null;
}

/** What the gate decided about a run's candidate. */
export interface VerdictEntry {
  runId: string;
  accepted: boolean;
  /** Accepted on thin evidence. */
  onProbation: boolean;
  /** In words; all of them. */
  reasons: readonly string[];
  /** Figures of each, as JSON; `accuracy`, `macroF1`, `bytes` in them appear in `v_runs`. */
  metrics: { dense: unknown; incumbent: unknown; candidate: unknown };
  candidateSha256: string | null;
}

/** A {@link VerdictEntry} with its time. */
export interface VerdictRecord extends VerdictEntry {
  at: string;
}

/** One point of a run's loss curve. */
export interface TrainingPoint {
  /** Optimizer steps done so far, over all rounds. */
  step: number;
  /** Seconds of training so far. */
  seconds: number;
  learningRate: number;
  /** Mean over the steps since the last point. */
  loss: number;
  /** On training bursts that are not trained on; null where there are none. */
  validationLoss: number | null;
  /** Share of their pictures that are right, in [0, 1]. */
  validationAccuracy: number | null;
}

/** Specialize runs, their stages and their verdicts. */
export class Runs {
  readonly #db: Connection;
  readonly #clock: Clock;
  readonly #outbox: Outbox;

  constructor(db: Connection, clock: Clock, outbox: Outbox) {
    this.#db = db;
    this.#clock = clock;
    this.#outbox = outbox;
  }

  /** Records a queued run and the labels that existed when it was made. */
  createRun({ id, kind, reason, spec, seed, dir }: NewRun): void {
    this.#db.run(
      `INSERT INTO runs (id, kind, state, reason, spec, seed, dir, created_at, labels_up_to)
       VALUES (:id, :kind, 'queued', :reason, :spec, :seed, :dir, :at,
         (SELECT coalesce(max(id), 0) FROM labels))`,
      { id, kind, reason, spec: JSON.stringify(spec), seed, dir, at: this.#now() },
    );
  }

  /**
   * @param reason replaces the earlier one, if given.
   * @throws {RangeError} if there is no such run.
   */
  setRunState(id: string, state: RunState, reason?: string): void {
    const isOver = state === "finished" || state === "failed" || state === "aborted";
    this.#db.transaction(() => {
      const { changes } = this.#db.run(
        `UPDATE runs SET state = :state, reason = coalesce(:reason, reason),
           started_at = iif(:state = 'running', coalesce(started_at, :at), started_at),
           ended_at = iif(:isOver, :at, NULL)
         WHERE id = :id`,
        { id, state, reason: reason ?? null, at: this.#now(), isOver: isOver ? 1 : 0 },
      );
      if (changes === 0) throw new RangeError(`expected the id of a run, got "${id}"`);
      if (isOver) this.#db.run("DELETE FROM run_progress WHERE run_id = :id", { id });
    });
  }

  /** Records the start of a stage; one that starts again after an abort loses its old end. */
  startStage(runId: string, name: string): void {
    this.#db.run(
      `INSERT INTO run_stages (run_id, name, state, started_at)
       VALUES (:runId, :name, 'running', :at)
       ON CONFLICT (run_id, name) DO UPDATE
         SET state = 'running', started_at = :at, seconds = NULL, detail = NULL`,
      { runId, name, at: this.#now() },
    );
  }

  /** @throws {RangeError} if the stage was never started. */
  endStage(
    runId: string,
    name: string,
    end: { state: "finished" | "failed" | "aborted"; seconds: number; detail?: string },
  ): void {
    const { changes } = this.#db.run(
      `UPDATE run_stages SET state = :state, seconds = :seconds, detail = :detail
       WHERE run_id = :runId AND name = :name`,
      { runId, name, state: end.state, seconds: end.seconds, detail: end.detail ?? null },
    );
    if (changes === 0) throw new RangeError(`expected a started stage of ${runId}, got "${name}"`);
  }

  /** Adds a point to a run's loss curve; one of the same step is replaced. */
  addTrainingPoint(runId: string, point: TrainingPoint): void {
    this.#db.run(
      `INSERT OR REPLACE INTO training_points (run_id, step, seconds, learning_rate, loss,
         validation_loss, validation_accuracy, at)
       VALUES (:runId, :step, :seconds, :learningRate, :loss, :validationLoss,
         :validationAccuracy, :at)`,
      { runId, ...point, at: this.#now() },
    );
  }

  /** For other processes to see. Each call is a write to the disk: at most one every seconds. */
  setProgress(runId: string, { stage, share, secondsLeft }: RunProgress): void {
    this.#db.run(
      `INSERT INTO run_progress (run_id, stage, share, seconds_left, at)
       VALUES (:runId, :stage, :share, :secondsLeft, :at)
       ON CONFLICT (run_id) DO UPDATE
         SET stage = :stage, share = :share, seconds_left = :secondsLeft, at = :at`,
      { runId, stage, share, secondsLeft, at: this.#now() },
    );
  }

  /**
   * Writes a run's verdict and the messages that report it, in one transaction.
   *
   * @returns false, writing nothing, if the run already has one.
   */
  recordVerdict(verdict: VerdictEntry, messages: readonly OutboxMessage[]): boolean {
    return this.#db.transaction(() => {
      const { runId, accepted, onProbation, reasons, metrics, candidateSha256 } = verdict;
      const { changes } = this.#db.run(
        `INSERT INTO verdicts (run_id, accepted, on_probation, reasons, metrics,
           candidate_sha256, at)
         VALUES (:runId, :accepted, :onProbation, :reasons, :metrics, :candidateSha256, :at)
         ON CONFLICT (run_id) DO NOTHING`,
        {
          runId,
          accepted: accepted ? 1 : 0,
          onProbation: onProbation ? 1 : 0,
          reasons: JSON.stringify(reasons),
          metrics: JSON.stringify(metrics),
          candidateSha256,
          at: this.#now(),
        },
      );
      if (changes === 0) return false;
      this.#outbox.enqueue(messages);
      return true;
    });
  }

  /** Queued and running ones, oldest first: what a restart must resume or give up. */
  unfinishedRuns(): RunRecord[] {
    return selectRuns(this.#db, "WHERE state IN ('queued', 'running') ORDER BY number", {});
  }

  findRun(id: string): RunRecord | undefined {
    return selectRuns(this.#db, "WHERE id = :id", { id })[0];
  }

  /** The newest run in one of the states (any, by default), by order of making. */
  lastRun(states?: readonly RunState[]): RunRecord | undefined {
    return lastRun(this.#db, states);
  }

  stages(runId: string): StageRecord[] {
    return this.#db.all<StageRecord>(
      `SELECT name, state, started_at AS startedAt, seconds, detail FROM run_stages
       WHERE run_id = :runId ORDER BY id`,
      { runId },
    );
  }

  verdict(runId: string): VerdictRecord | undefined {
    return selectVerdicts(this.#db, "WHERE run_id = :runId", { runId })[0];
  }

  #now(): string {
    return isoTime(this.#clock.nowMs());
  }
}

/** Runs in the order and number that the end of the statement says. */
export function selectRuns(
  db: Connection,
  where: string,
  bindings: Record<string, string | number>,
): RunRecord[] {
  const rows = db.all<Omit<RunRecord, "spec"> & { spec: string }>(
    `SELECT number, id, kind, state, reason, spec, seed, dir, created_at AS createdAt,
       started_at AS startedAt, ended_at AS endedAt FROM runs ${where}`,
    bindings,
  );
  return rows.map((row) => ({ ...row, spec: JSON.parse(row.spec) as unknown }));
}

/** See {@link Runs.lastRun}. */
export function lastRun(db: Connection, states?: readonly RunState[]): RunRecord | undefined {
  const where = `WHERE state IN (SELECT value FROM json_each(:states))
    ORDER BY number DESC LIMIT 1`;
  return selectRuns(db, where, { states: JSON.stringify(states ?? ALL_STATES) })[0];
}

const ALL_STATES: readonly RunState[] = ["queued", "running", "finished", "failed", "aborted"];

/** Verdicts in the order and number that the end of the statement says. */
export function selectVerdicts(
  db: Connection,
  where: string,
  bindings: Record<string, string | number>,
): VerdictRecord[] {
  interface Row {
    runId: string;
    accepted: 0 | 1;
    onProbation: 0 | 1;
    reasons: string;
    metrics: string;
    candidateSha256: string | null;
    at: string;
  }
  const rows = db.all<Row>(
    `SELECT run_id AS runId, accepted, on_probation AS onProbation, reasons, metrics,
       candidate_sha256 AS candidateSha256, at FROM verdicts ${where}`,
    bindings,
  );
  return rows.map((row) => ({
    ...row,
    accepted: row.accepted === 1,
    onProbation: row.onProbation === 1,
    reasons: JSON.parse(row.reasons) as string[],
    metrics: JSON.parse(row.metrics) as VerdictRecord["metrics"],
  }));
}
