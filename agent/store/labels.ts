import { type Clock, isoTime } from "../clock.ts";
import type { BurstRole } from "./bursts.ts";
import type { Connection } from "./connection.ts";

/** Who said it: a person by the folder, a label file, or the fleet. */
export type LabelSource = "human" | "file" | "remote";

/** One word on one picture. */
export interface LabelEntry {
  mediaId: number;
  /** Compared exactly. */
  label: string;
  source: LabelSource;
  /** Where it comes from: path of the picture's file (human) or label file, or a command's id. */
  origin: string;
}

/** A usable picture with the last word on it. */
export interface LabeledPicture {
  mediaId: number;
  sha256: string;
  path: string;
  label: string;
  source: LabelSource;
  /** Null where nothing is known: the picture is a burst of its own. */
  burstId: string | null;
  capturedAt: string | null;
  /** Null until a run has decided. */
  role: BurstRole | null;
}

/** What {@link Labels.replaceLabelsOf} changed. */
export interface LabelChanges {
  set: number;
  ended: number;
}

/**
 * Labels with their history. Each origin has one word on a picture at a time; the last word of
 * all origins counts.
 */
export class Labels {
  readonly #db: Connection;
  readonly #clock: Clock;

  constructor(db: Connection, clock: Clock) {
    this.#db = db;
    this.#clock = clock;
  }

  /** @returns false, writing nothing, if the same origin says the same already. */
  setLabel(entry: LabelEntry): boolean {
    return this.#db.transaction(() => {
      const { mediaId, source, origin, label } = entry;
      const active = this.#db.get<{ label: string }>(
        `SELECT label FROM labels WHERE media_id = :mediaId AND source = :source
           AND origin = :origin AND ended_at IS NULL`,
        { mediaId, source, origin },
      );
      if (active?.label === label) return false;
      if (active) this.endLabel(mediaId, source, origin);
      this.#db.run(
        `INSERT INTO labels (media_id, label, source, origin, at)
         VALUES (:mediaId, :label, :source, :origin, :at)`,
        { mediaId, label, source, origin, at: this.#now() },
      );
      return true;
    });
  }

  /** @returns false if there was none. `Pictures.forgetFile` does it for files that left. */
  endLabel(mediaId: number, source: LabelSource, origin: string): boolean {
    const { changes } = this.#db.run(
      `UPDATE labels SET ended_at = :at WHERE media_id = :mediaId AND source = :source
         AND origin = :origin AND ended_at IS NULL`,
      { mediaId, source, origin, at: this.#now() },
    );
    return changes > 0;
  }

  /** Makes `labels` all that an origin says, as after a label file was read anew (or removed). */
  replaceLabelsOf(
    source: LabelSource,
    origin: string,
    labels: readonly { mediaId: number; label: string }[],
  ): LabelChanges {
    return this.#db.transaction(() => {
      const { changes: ended } = this.#db.run(
        `UPDATE labels SET ended_at = :at WHERE source = :source AND origin = :origin
           AND ended_at IS NULL AND media_id NOT IN (SELECT value FROM json_each(:kept))`,
        { source, origin, at: this.#now(), kept: JSON.stringify(labels.map((l) => l.mediaId)) },
      );
      let set = 0;
      for (const { mediaId, label } of labels) {
        if (this.setLabel({ mediaId, label, source, origin })) set++;
      }
      return { set, ended };
    });
  }

  currentLabel(mediaId: number): string | undefined {
    const row = this.#db.get<{ label: string }>(
      "SELECT label FROM current_labels WHERE media_id = :mediaId",
      { mediaId },
    );
    return row?.label;
  }

  /**
   * Pictures whose last word came after a run was made; null counts every labeled picture.
   *
   * @throws {RangeError} if there is no such run.
   */
  countNewLabelsSince(runId: string | null): number {
    return countNewLabelsSince(this.#db, runId);
  }

  /** Every labeled picture that can be used, in the order they came in. */
  labeledPictures(): LabeledPicture[] {
    return this.#db.all<LabeledPicture>(
      `SELECT m.id AS mediaId, m.sha256, m.path, l.label, l.source, m.burst_id AS burstId,
         m.captured_at AS capturedAt, b.role
       FROM current_labels AS l JOIN media AS m ON m.id = l.media_id
       LEFT JOIN bursts AS b ON b.id = m.burst_id
       WHERE m.state <> 'rejected' AND EXISTS (SELECT 1 FROM files WHERE media_id = m.id)
       ORDER BY m.id`,
    );
  }

  #now(): string {
    return isoTime(this.#clock.nowMs());
  }
}

/** See {@link Labels.countNewLabelsSince}. */
export function countNewLabelsSince(db: Connection, runId: string | null): number {
  let labelsUpTo = 0;
  if (runId !== null) {
    const run = db.get<{ labelsUpTo: number }>(
      "SELECT labels_up_to AS labelsUpTo FROM runs WHERE id = :runId",
      { runId },
    );
    if (!run) throw new RangeError(`expected the id of a run, got "${runId}"`);
    labelsUpTo = run.labelsUpTo;
  }
  const row = db.get<{ n: number }>(
    "SELECT count(*) AS n FROM current_labels WHERE id > :labelsUpTo",
    { labelsUpTo },
  );
  return row?.n ?? 0;
}
