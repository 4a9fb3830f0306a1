import { type Clock, isoTime } from "../clock.ts";
import type { Connection } from "./connection.ts";

/** The folder a file was found in. */
export type PictureSource = "inbox" | "labeled";

/** `waiting` for a prediction, `done` with what its folder asks for, or `rejected`. */
export type PictureState = "waiting" | "done" | "rejected";

/** A settled file whose content was hashed. */
export interface FoundPicture {
  /** Of the bytes, lower-case hexadecimal: what a picture is identified by. */
  sha256: string;
  path: string;
  source: PictureSource;
  sizeBytes: number;
  /** As `stat` gives it; parts of a millisecond are ignored. */
  mtimeMs: number;
  widthPx: number | null;
  heightPx: number | null;
  /** Camera-local where the camera names no zone. */
  capturedAt: string | null;
  /** Where `capturedAt` comes from (`exif`, `label file`, …). */
  captureTimeSource: string | null;
  burstId: string | null;
}

/** What became of a {@link FoundPicture}. */
export interface RecordedPicture {
  mediaId: number;
  /** The content was never seen before. */
  isNew: boolean;
  /** `waiting`: it is to be classified now. */
  state: PictureState;
}

/** A picture that still has no prediction. */
export interface WaitingPicture {
  mediaId: number;
  sha256: string;
  path: string;
  burstId: string | null;
  capturedAt: string | null;
}

/** A picture with its time and its burst. */
export interface CapturedPicture {
  path: string;
  burstId: string;
  capturedAt: string;
}

/** A file as the last scan left it. */
export interface KnownFile {
  path: string;
  sha256: string;
  source: PictureSource;
  sizeBytes: number;
  mtimeMs: number;
}

/** A file that cannot be used. */
export interface Rejection {
  /** Null where it was not even recorded as a picture. */
  mediaId: number | null;
  path: string;
  reason: string;
  /** Where the file lies now; null if it could not be moved and stays where it is. */
  quarantinedPath: string | null;
  sizeBytes: number | null;
}

interface MediaRow {
  id: number;
  source: PictureSource;
  state: PictureState;
  rejectReason: string | null;
  burstId: string | null;
}

/**
 * Pictures by content, the files that hold them, and the quarantine. A picture that was ever in
 * the inbox gets exactly one prediction, under whatever names and however often its file comes.
 */
export class Pictures {
  readonly #db: Connection;
  readonly #clock: Clock;

  constructor(db: Connection, clock: Clock) {
    this.#db = db;
    this.#clock = clock;
  }

  /**
   * Whether exactly this file was dealt with, so that it need not be hashed again. A file of
   * `labeled/` counts once its label is recorded: a process may have died in between.
   */
  isKnownFile(path: string, sizeBytes: number, mtimeMs: number): boolean {
    const row = this.#db.get(
      `SELECT 1 FROM files AS f JOIN media AS m ON m.id = f.media_id
       WHERE f.path = :path AND f.size_bytes = :sizeBytes AND f.mtime_ms = :mtimeMs
         AND (f.source = 'inbox' OR m.state = 'rejected' OR EXISTS
           (SELECT 1 FROM labels
            WHERE origin = :path AND media_id = m.id AND ended_at IS NULL))`,
      { path, sizeBytes, mtimeMs: Math.trunc(mtimeMs) },
    );
    return row !== undefined;
  }

  /** The files of a folder as last seen; those no longer on disk go to {@link forgetFile}. */
  knownFiles(source: PictureSource): KnownFile[] {
    return this.#db.all<KnownFile>(
      `SELECT f.path, m.sha256, f.source, f.size_bytes AS sizeBytes, f.mtime_ms AS mtimeMs
       FROM files AS f JOIN media AS m ON m.id = f.media_id WHERE f.source = :source
       ORDER BY f.path`,
      { source },
    );
  }

  /** The picture with this content, if it was ever seen. */
  findPicture(sha256: string): (WaitingPicture & { state: PictureState }) | undefined {
    return this.#db.get(`SELECT ${PICTURE_COLUMNS}, state FROM media WHERE sha256 = :sha256`, {
      sha256,
    });
  }

  /**
   * Records a file. New content makes a picture; known content gets this path. A picture of the
   * inbox waits; one that had been rejected gets another try; one that is done stays done.
   *
   * A picture keeps its burst once that has a role, as it would otherwise change sides.
   */
  recordPicture(found: FoundPicture): RecordedPicture {
    return this.#db.transaction(() => {
      const now = isoTime(this.#clock.nowMs());
      if (found.burstId !== null) {
        this.#db.run(
          "INSERT INTO bursts (id, first_seen_at) VALUES (:id, :now) ON CONFLICT DO NOTHING",
          { id: found.burstId, now },
        );
      }
      const known = this.#db.get<MediaRow>(
        `SELECT id, source, state, reject_reason AS rejectReason, burst_id AS burstId
         FROM media WHERE sha256 = :sha256`,
        { sha256: found.sha256 },
      );
      const recorded = known ? this.#seenAgain(known, found) : this.#insert(found, now);
      this.#holdFile(found, recorded.mediaId);
      return recorded;
    });
  }

  /**
   * Pictures taken from `from` to `to`, compared as the cameras wrote the times; those whose time
   * is only that of the file are left out. For finding the burst that a new picture belongs to.
   */
  capturedBetween(from: string, to: string): CapturedPicture[] {
    return this.#db.all<CapturedPicture>(
      `SELECT path, burst_id AS burstId, captured_at AS capturedAt FROM media
       WHERE captured_at BETWEEN :from AND :to AND burst_id IS NOT NULL
         AND capture_time_source <> 'file-modified'
       ORDER BY captured_at LIMIT 1000`,
      { from, to },
    );
  }

  /** Pictures without a prediction, longest waiting first. `afterId` pages on. */
  waitingPictures(limit: number, afterId = 0): WaitingPicture[] {
    return this.#db.all<WaitingPicture>(
      `SELECT ${PICTURE_COLUMNS} FROM media WHERE state = 'waiting' AND id > :afterId
       ORDER BY id LIMIT :limit`,
      { limit, afterId },
    );
  }

  /**
   * Records that a file is unusable. Call it in one transaction with the message about it.
   *
   * @returns false, writing nothing, if its picture is already done or rejected.
   */
  reject(rejection: Rejection): boolean {
    return this.#db.transaction(() => {
      const { mediaId, path, reason, quarantinedPath, sizeBytes } = rejection;
      if (mediaId !== null) {
        const { changes } = this.#db.run(
          `UPDATE media SET state = 'rejected', reject_reason = :reason
           WHERE id = :mediaId AND (state = 'waiting' OR source = 'labeled' AND state = 'done')`,
          { mediaId, reason },
        );
        if (changes === 0) return false;
      }
      this.#db.run(
        `INSERT INTO quarantine (media_id, path, reason, quarantined_path, size_bytes, at)
         VALUES (:mediaId, :path, :reason, :quarantinedPath, :sizeBytes, :at)`,
        { mediaId, path, reason, quarantinedPath, sizeBytes, at: isoTime(this.#clock.nowMs()) },
      );
      if (quarantinedPath !== null) this.#db.run("DELETE FROM files WHERE path = :path", { path });
      return true;
    });
  }

  /**
   * Records that a file is gone: the human label that its place in the folder meant ends, and a
   * picture that waits with no other file is rejected. Record a renamed file first.
   */
  forgetFile(path: string): void {
    this.#db.transaction(() => {
      const row = this.#db.get<{ mediaId: number }>(
        "SELECT media_id AS mediaId FROM files WHERE path = :path",
        { path },
      );
      this.#db.run(
        `UPDATE labels SET ended_at = :at
         WHERE origin = :path AND source = 'human' AND ended_at IS NULL`,
        { path, at: isoTime(this.#clock.nowMs()) },
      );
      this.#db.run("DELETE FROM files WHERE path = :path", { path });
      if (row) this.#lostFile(row.mediaId, path, "the file disappeared before it was classified");
    });
  }

  #insert(found: FoundPicture, now: string): RecordedPicture {
    const state = found.source === "inbox" ? "waiting" : "done";
    const { rowId } = this.#db.run(
      `INSERT INTO media (sha256, path, source, size_bytes, width_px, height_px, captured_at,
         capture_time_source, burst_id, seen_at, state)
       VALUES (:sha256, :path, :source, :sizeBytes, :widthPx, :heightPx, :capturedAt,
         :captureTimeSource, :burstId, :now, :state)`,
      { ...found, now, state },
    );
    return { mediaId: rowId, isNew: true, state };
  }

  #seenAgain(known: MediaRow, found: FoundPicture): RecordedPicture {
    const source = known.source === "inbox" ? "inbox" : found.source;
    // Done in labeled/ never meant predicted, so its first time in the inbox still makes it wait.
    const isFirstInbox = source === "inbox" && known.source === "labeled";
    const isRetried = known.state === "rejected";
    const fresh: PictureState = source === "inbox" ? "waiting" : "done";
    const state = isFirstInbox || isRetried ? fresh : known.state;
    const isBurstFixed =
      known.burstId !== null &&
      this.#db.get("SELECT 1 FROM bursts WHERE id = :id AND role IS NOT NULL", {
        id: known.burstId,
      }) !== undefined;
    const burstId = isBurstFixed ? known.burstId : (found.burstId ?? known.burstId);
    this.#db.run(
      `UPDATE media SET path = :path, source = :source, state = :state, burst_id = :burstId,
         reject_reason = iif(:state = 'rejected', reject_reason, NULL),
         width_px = coalesce(:widthPx, width_px), height_px = coalesce(:heightPx, height_px),
         captured_at = coalesce(:capturedAt, captured_at),
         capture_time_source = iif(:capturedAt IS NULL, capture_time_source, :captureTimeSource)
       WHERE id = :id`,
      { ...found, id: known.id, source, state, burstId },
    );
    return { mediaId: known.id, isNew: false, state };
  }

  #holdFile(found: FoundPicture, mediaId: number): void {
    const { path, source, sizeBytes } = found;
    const before = this.#db.get<{ mediaId: number }>(
      "SELECT media_id AS mediaId FROM files WHERE path = :path",
      { path },
    );
    this.#db.run(
      `INSERT INTO files (path, media_id, source, size_bytes, mtime_ms)
       VALUES (:path, :mediaId, :source, :sizeBytes, :mtimeMs)
       ON CONFLICT (path) DO UPDATE SET media_id = :mediaId, source = :source,
         size_bytes = :sizeBytes, mtime_ms = :mtimeMs`,
      { path, mediaId, source, sizeBytes, mtimeMs: Math.trunc(found.mtimeMs) },
    );
    if (before === undefined || before.mediaId === mediaId) return;
    this.#lostFile(before.mediaId, path, "another picture took its file name before it was read");
  }

  /** Points a picture at another of its files, or gives up on one that has none and waits. */
  #lostFile(mediaId: number, path: string, reason: string): void {
    const other = this.#db.get<{ path: string }>(
      "SELECT path FROM files WHERE media_id = :mediaId ORDER BY rowid DESC LIMIT 1",
      { mediaId },
    );
    if (other) {
      this.#db.run("UPDATE media SET path = :other WHERE id = :mediaId AND path = :path", {
        mediaId,
        path,
        other: other.path,
      });
    } else {
      this.#db.run(
        `UPDATE media SET state = 'rejected', reject_reason = :reason
         WHERE id = :mediaId AND state = 'waiting'`,
        { mediaId, reason },
      );
    }
  }
}

const PICTURE_COLUMNS =
  "id AS mediaId, sha256, path, burst_id AS burstId, captured_at AS capturedAt";
