import { type Clock, isoTime } from "../clock.ts";
import type { Connection } from "./connection.ts";
import type { Models } from "./models.ts";
import type { Outbox, OutboxMessage } from "./outbox.ts";

/** One class and its probability, in [0, 1]. */
interface RankedLabel {
  label: string;
  probability: number;
}

/** What one model said about one picture. */
export interface Prediction {
  mediaId: number;
  label: string;
  /** In [0, 1]. */
  probability: number;
  /** The most probable classes, best first. */
  top5: readonly RankedLabel[];
  modelSha256: string;
  /** Inside the network. */
  runMs: number;
  /** From file to the network's input. */
  decodeMs: number;
  /** Waiting between the two. */
  queuedMs: number;
}

/** What {@link Predictions.retain} may remove; without a number, a kind is kept for ever. */
export interface Retention {
  predictionsDays?: number;
  eventsDays?: number;
}

/** Exactly one prediction a picture. */
export class Predictions {
  readonly #db: Connection;
  readonly #clock: Clock;
  readonly #models: Models;
  readonly #outbox: Outbox;

  constructor(db: Connection, clock: Clock, models: Models, outbox: Outbox) {
    this.#db = db;
    this.#clock = clock;
    this.#models = models;
    this.#outbox = outbox;
  }

  /**
   * Writes a prediction and the messages that report it, in one transaction. A model that is not
   * in the database gets a row without details: no prediction is lost for that.
   *
   * @returns false, writing nothing at all, if the picture already had its prediction.
   * @throws {RangeError} if there is no such picture or a value is out of range.
   */
  recordPrediction(prediction: Prediction, messages: readonly OutboxMessage[]): boolean {
    return this.#db.transaction(() => {
      const { mediaId, top5, ...values } = prediction;
      const picture = this.#db.get<{ state: string }>(
        "SELECT state FROM media WHERE id = :mediaId",
        { mediaId },
      );
      if (!picture) throw new RangeError(`expected the id of a recorded picture, got ${mediaId}`);
      // Done says so also where retention has removed the prediction since.
      if (picture.state === "done") return false;
      this.#models.ensure(prediction.modelSha256);
      this.#db.run(
        `INSERT INTO predictions (media_id, label, probability, top5, model_sha256, run_ms,
           decode_ms, queued_ms, predicted_at)
         VALUES (:mediaId, :label, :probability, :top5, :modelSha256, :runMs, :decodeMs,
           :queuedMs, :at)`,
        { ...values, mediaId, top5: JSON.stringify(top5), at: isoTime(this.#clock.nowMs()) },
      );
      this.#db.run("UPDATE media SET state = 'done', reject_reason = NULL WHERE id = :mediaId", {
        mediaId,
      });
      this.#outbox.enqueue(messages);
      return true;
    });
  }

  /** The newest predictions of a model, newest first. */
  newestOf(modelSha256: string, limit: number): { label: string; runMs: number }[] {
    return this.#db.all(
      `SELECT label, run_ms AS runMs FROM predictions WHERE model_sha256 = :modelSha256
       ORDER BY id DESC LIMIT :limit`,
      { modelSha256, limit },
    );
  }

  /**
   * Removes what is older than asked. Days count back from now or from the newest row, whichever
   * is earlier, so that a clock that jumped into the future does not empty the station.
   *
   * @returns rows removed.
   */
  retain({ predictionsDays, eventsDays }: Retention): { predictions: number; events: number } {
    return this.#db.transaction(() => {
      const predictions = this.#removeOld("predictions", "predicted_at", predictionsDays);
      const events = this.#removeOld("events", "at", eventsDays);
      // What no file, label or prediction refers to any more.
      if (predictions > 0) {
        this.#db.run(
          `DELETE FROM media WHERE state <> 'waiting'
             AND id NOT IN (SELECT media_id FROM files)
             AND id NOT IN (SELECT media_id FROM labels)
             AND id NOT IN (SELECT media_id FROM predictions)`,
        );
      }
      return { predictions, events };
    });
  }

  #removeOld(table: "predictions" | "events", column: string, days: number | undefined): number {
    if (days === undefined) return 0;
    const newest = this.#db.get<{ at: string | null }>(`SELECT max(${column}) AS at FROM ${table}`);
    if (!newest?.at) return 0;
    const fromMs = Math.min(this.#clock.nowMs(), Date.parse(newest.at));
    const before = isoTime(fromMs - days * 86_400_000);
    return this.#db.run(`DELETE FROM ${table} WHERE ${column} < :before`, { before }).changes;
  }
}
