import type { DemoStation } from "./station.ts";

/** A classified frame of the inbox. */
export interface Predicted {
  /** Where the picture lies now. */
  readonly path: string;
  readonly label: string;
  /** In [0, 1]. */
  readonly probability: number;
  readonly model: string;
  readonly modelSha256: string;
  /** 1 for a model that a run made, 0 for the bare generalist. */
  readonly specialized: 0 | 1;
  readonly runMs: number;
  /** ISO time in UTC. */
  readonly at: string;
}

/** A run and its verdict. */
export interface JudgedRun {
  readonly id: string;
  /** Null without a verdict. */
  readonly accepted: 0 | 1 | null;
  readonly reasons: string | null;
}

/** How far a run is. */
export interface RunState {
  readonly stages: readonly {
    readonly name: string;
    readonly state: string;
    readonly seconds: number | null;
  }[];
  /** In [0, 1]. */
  readonly share: number;
  readonly secondsLeft: number | null;
}

/** A change of the serving model. */
export interface SwapRow {
  readonly state: string;
  readonly reason: string | null;
  readonly startedAt: string;
  readonly switchedAt: string | null;
}

/** All predictions, oldest first. */
export function predictions(station: DemoStation): Predicted[] {
  return station.rows<Predicted>(
    `SELECT m.path, p.label, p.probability, mo.name AS model, p.model_sha256 AS modelSha256,
       mo.origin_run IS NOT NULL AS specialized, p.run_ms AS runMs, p.predicted_at AS at
     FROM predictions AS p JOIN media AS m ON m.id = p.media_id
     JOIN models AS mo ON mo.sha256 = p.model_sha256 ORDER BY p.id`,
  );
}

/** Frames with a prediction, and those that were set aside as no pictures. */
export function countAnswered(station: DemoStation): number {
  return countOf(
    station,
    `SELECT (SELECT count(*) FROM predictions)
       + (SELECT count(*) FROM media WHERE state = 'rejected') AS n`,
  );
}

/** Pictures with a label that the station has taken in. */
export function countLabels(station: DemoStation): number {
  return countOf(station, "SELECT count(*) AS n FROM current_labels");
}

/** Paths of what was set aside as no pictures. */
export function rejectedPaths(station: DemoStation): string[] {
  const rows = station.rows<{ path: string }>("SELECT path FROM media WHERE state = 'rejected'");
  return rows.map(({ path }) => path);
}

/** Number of the newest run; runs after it have higher ones. */
export function lastRunNumber(station: DemoStation): number {
  return countOf(station, "SELECT coalesce(max(number), 0) AS n FROM runs");
}

/** The run after run number `after`, if it has begun. */
export function judgedRun(station: DemoStation, after: number): JudgedRun | undefined {
  const [run] = station.rows<JudgedRun>(
    `SELECT r.id, v.accepted,
       (SELECT group_concat(value, '; ') FROM json_each(v.reasons)) AS reasons
     FROM runs AS r LEFT JOIN verdicts AS v ON v.run_id = r.id
     WHERE r.number > :after ORDER BY r.number LIMIT 1`,
    { after },
  );
  return run;
}

/** How far the run after run number `after` is. */
export function runState(station: DemoStation, after: number): RunState {
  const stages = station.rows<RunState["stages"][number]>(
    `SELECT s.name, s.state, s.seconds FROM run_stages AS s JOIN runs AS r ON r.id = s.run_id
     WHERE r.number > :after ORDER BY s.id`,
    { after },
  );
  const [progress] = station.rows<{ share: number; secondsLeft: number | null }>(
    `SELECT p.share, p.seconds_left AS secondsLeft FROM run_progress AS p
     JOIN runs AS r ON r.id = p.run_id WHERE r.number > :after`,
    { after },
  );
  return { stages, share: progress?.share ?? 0, secondsLeft: progress?.secondsLeft ?? null };
}

/** The swap to the model of a run, if it was begun. */
export function swapOf(station: DemoStation, run: string): SwapRow | undefined {
  const [swap] = station.rows<SwapRow>(
    `SELECT state, reason, started_at AS startedAt, switched_at AS switchedAt
     FROM swaps WHERE run_id = :run ORDER BY id DESC LIMIT 1`,
    { run },
  );
  return swap;
}

/** Where a command stands, if the station has it. */
export function commandState(
  station: DemoStation,
  id: string,
): { state: string; reason: string | null } | undefined {
  const [command] = station.rows<{ state: string; reason: string | null }>(
    "SELECT state, reason FROM commands WHERE id = :id",
    { id },
  );
  return command;
}

function countOf(station: DemoStation, sql: string): number {
  return station.rows<{ n: number }>(sql)[0]?.n ?? 0;
}
