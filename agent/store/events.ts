import { type Clock, isoTime } from "../clock.ts";
import type { Connection } from "./connection.ts";
import type { Outbox, OutboxMessage } from "./outbox.ts";

/** Something that people may want to know later. */
export interface EventEntry {
  /** One word: `start`, `run`, `swap`, `quarantine`, `hardware`, … */
  kind: string;
  /** A sentence. */
  text: string;
  /** Anything that JSON can hold. */
  detail?: unknown;
}

/** An {@link EventEntry} with its time. */
export interface EventRecord {
  id: number;
  /** ISO 8601 in UTC. */
  at: string;
  kind: string;
  text: string;
  detail: unknown;
}

/** The station's diary. */
export class Events {
  readonly #db: Connection;
  readonly #clock: Clock;
  readonly #outbox: Outbox;

  constructor(db: Connection, clock: Clock, outbox: Outbox) {
    this.#db = db;
    this.#clock = clock;
    this.#outbox = outbox;
  }

  /** Writes an event and the messages that report it, in one transaction. */
  recordEvent({ kind, text, detail }: EventEntry, messages: readonly OutboxMessage[] = []): void {
    this.#db.transaction(() => {
      this.#db.run(
        "INSERT INTO events (at, kind, text, detail) VALUES (:at, :kind, :text, :detail)",
        {
          at: isoTime(this.#clock.nowMs()),
          kind,
          text,
          detail: detail === undefined ? null : JSON.stringify(detail),
        },
      );
      this.#outbox.enqueue(messages);
    });
  }
}

/** The newest events first. */
export function selectEvents(db: Connection, limit: number): EventRecord[] {
  const rows = db.all<Omit<EventRecord, "detail"> & { detail: string | null }>(
    "SELECT id, at, kind, text, detail FROM events ORDER BY id DESC LIMIT :limit",
    { limit },
  );
  return rows.map((row) => ({
    ...row,
    detail: row.detail === null ? undefined : (JSON.parse(row.detail) as unknown),
  }));
}
