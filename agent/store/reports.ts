import { isoTime } from "../clock.ts";
import { type CommandRecord, findCommand } from "./commands.ts";
import type { Connection } from "./connection.ts";
import { type EventRecord, selectEvents } from "./events.ts";
import { countNewLabelsSince } from "./labels.ts";
import { type ModelRecord, selectModels } from "./models.ts";
import {
  lastRun,
  type RunProgress,
  type RunRecord,
  type StageRecord,
  selectRuns,
  selectVerdicts,
  type VerdictRecord,
} from "./runs.ts";
import { getStationState } from "./station-state.ts";
import { currentProbation, type SwapRecord, selectSwaps } from "./swaps.ts";

/** A run with all that belongs to it. */
export interface RunReport extends RunRecord {
  stages: StageRecord[];
  verdict: VerdictRecord | null;
  /** Null unless it runs. */
  progress: RunProgress | null;
}

/** Where the station stands. */
export interface StationSummary {
  waitingPictures: number;
  /** Since the start of the day in UTC. */
  predictionsToday: number;
  predictionsTotal: number;
  labeledPictures: number;
  /** Labels since the last finished run; all, where none has finished. */
  newLabels: number;
  quarantinedFiles: number;
  /** By the record of swaps; `models/current` on disk is the truth. */
  currentModel: ModelRecord | null;
  probation: SwapRecord | null;
  lastRun: RunReport | null;
  lastVerdict: VerdictRecord | null;
  pendingMessages: number;
  pendingBytes: number;
  droppedMessages: number;
}

/** Questions that change nothing, for the command line and the reports. */
export class Reports {
  readonly #db: Connection;

  constructor(db: Connection) {
    this.#db = db;
  }

  /** Newest first. */
  listRuns(limit = 100): RunReport[] {
    return selectRuns(this.#db, "ORDER BY number DESC LIMIT :limit", { limit }).map((run) =>
      this.#withParts(run),
    );
  }

  findRun(id: string): RunReport | undefined {
    const [run] = selectRuns(this.#db, "WHERE id = :id", { id });
    return run && this.#withParts(run);
  }

  /** Newest first, with those whose folder is gone. */
  listModels(limit = 1000): ModelRecord[] {
    return selectModels(this.#db, "ORDER BY number DESC LIMIT :limit", { limit });
  }

  /** Newest first. */
  listSwaps(limit = 100): SwapRecord[] {
    return selectSwaps(this.#db, "ORDER BY id DESC LIMIT :limit", { limit });
  }

  /** Newest first. */
  listEvents(limit = 100): EventRecord[] {
    return selectEvents(this.#db, limit);
  }

  /** The value of `StationState.get`, to be validated by the caller. */
  /** A command of the fleet or of the command line. */
  findCommand(id: string): CommandRecord | undefined {
    return findCommand(this.#db, id);
  }

  stationState(key: string): unknown {
    return getStationState(this.#db, key);
  }

  /** @param nowMs says which day today is. */
  summary(nowMs: number): StationSummary {
    const last = lastRun(this.#db);
    const finished = lastRun(this.#db, ["finished"]);
    const dayStart = `${isoTime(nowMs).slice(0, 10)}T00:00:00.000Z`;
    const counter = (name: string): number =>
      this.#count("SELECT coalesce(sum(value), 0) AS n FROM counters WHERE name GLOB :name", {
        name,
      });
    return {
      waitingPictures: this.#count("SELECT count(*) AS n FROM media WHERE state = 'waiting'"),
      predictionsToday: this.#count(
        "SELECT count(*) AS n FROM predictions WHERE predicted_at >= :dayStart",
        { dayStart },
      ),
      predictionsTotal: this.#count("SELECT count(*) AS n FROM predictions"),
      labeledPictures: this.#count("SELECT count(*) AS n FROM current_labels"),
      newLabels: countNewLabelsSince(this.#db, finished?.id ?? null),
      quarantinedFiles: this.#count("SELECT count(*) AS n FROM quarantine"),
      currentModel:
        selectModels(this.#db, "WHERE sha256 = (SELECT sha256 FROM current_model)", {})[0] ?? null,
      probation: currentProbation(this.#db) ?? null,
      lastRun: last ? this.#withParts(last) : null,
      lastVerdict: selectVerdicts(this.#db, "ORDER BY id DESC LIMIT 1", {})[0] ?? null,
      pendingMessages: counter("outbox_pending_messages"),
      pendingBytes: counter("outbox_pending_bytes"),
      droppedMessages: counter("outbox_dropped_priority_*"),
    };
  }

  #withParts(run: RunRecord): RunReport {
    const runId = run.id;
    const stages = this.#db.all<StageRecord>(
      `SELECT name, state, started_at AS startedAt, seconds, detail FROM run_stages
       WHERE run_id = :runId ORDER BY id`,
      { runId },
    );
    const [verdict] = selectVerdicts(this.#db, "WHERE run_id = :runId", { runId });
    const progress = this.#db.get<RunProgress>(
      "SELECT stage, share, seconds_left AS secondsLeft FROM run_progress WHERE run_id = :runId",
      { runId },
    );
    return { ...run, stages, verdict: verdict ?? null, progress: progress ?? null };
  }

  #count(sql: string, bindings: Record<string, string> = {}): number {
    return this.#db.get<{ n: number }>(sql, bindings)?.n ?? 0;
  }
}
