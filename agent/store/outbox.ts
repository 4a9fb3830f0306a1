import { type Clock, isoTime } from "../clock.ts";
import type { Connection } from "./connection.ts";
import type { Counters } from "./counters.ts";

/** A message to the fleet. */
export interface OutboxMessage {
  /** Below the station's prefix, e.g. `e/prediction`. */
  topic: string;
  /** JSON. */
  payload: string;
  qos: 0 | 1;
  /** The broker keeps it, so that only the newest of a topic matters. */
  retain: boolean;
  /** 0 is least important (predictions), 2 most (verdicts, swaps). */
  priority: 0 | 1 | 2;
}

/** A message that has not been acknowledged. */
export interface PendingMessage {
  /** Never given twice, so that a late acknowledgment cannot hit another message. */
  id: number;
  message: OutboxMessage;
  /** How often sending failed. */
  attempts: number;
  /** ISO 8601 in UTC. */
  createdAt: string;
}

interface OutboxRow {
  id: number;
  topic: string;
  payload: string;
  qos: 0 | 1;
  retain: 0 | 1;
  priority: 0 | 1 | 2;
  attempts: number;
  createdAt: string;
}

const PRIORITIES = [0, 1, 2] as const;

/**
 * The durable queue of messages. They leave it only by acknowledgment, by a newer retained
 * message of the same topic, or, above the limit, counted: produced = delivered + replaced +
 * dropped + pending.
 */
export class Outbox {
  readonly #db: Connection;
  readonly #clock: Clock;
  readonly #counters: Counters;
  readonly #limitBytes: number;
  /** Handed out by the last `next` or named as under way in it: at most the pump's window. */
  #underWay = new Set<number>();
  /** Dropped while under way, by id: not lost after all if the acknowledgment still comes. */
  readonly #droppedUnderWay = new Map<number, number>();

  /** @param limitBytes most bytes of topics and payloads that wait; 0: no fleet, nothing is kept. */
  constructor(db: Connection, clock: Clock, counters: Counters, limitBytes: number) {
    this.#db = db;
    this.#clock = clock;
    this.#counters = counters;
    this.#limitBytes = limitBytes;
  }

  /**
   * Appends messages; inside a transaction, they live and die with it. Above the limit, the
   * oldest of the least important priority go first.
   */
  enqueue(messages: readonly OutboxMessage[]): void {
    if (messages.length === 0 || this.#limitBytes === 0) return;
    this.#db.transaction(() => {
      for (const message of messages) this.#insert(message);
      this.#dropAboveLimit();
    });
  }

  /** Up to `limit` messages to send, most important first, then oldest, without `excludeIds`. */
  next(limit: number, excludeIds: Iterable<number> = []): PendingMessage[] {
    const excluded = [...excludeIds];
    const rows: OutboxRow[] = [];
    for (const priority of PRIORITIES.toReversed()) {
      if (rows.length >= limit) break;
      rows.push(...this.#oldest(priority, limit - rows.length, excluded));
    }
    this.#underWay = new Set([...excluded, ...rows.map((row) => row.id)]);
    for (const id of this.#droppedUnderWay.keys()) {
      if (!this.#underWay.has(id)) this.#droppedUnderWay.delete(id);
    }
    return rows.map(({ id, topic, payload, qos, retain, priority, attempts, createdAt }) => ({
      id,
      message: { topic, payload, qos, retain: retain === 1, priority },
      attempts,
      createdAt,
    }));
  }

  /** Removes a message that the broker has acknowledged. Nothing happens if it is gone. */
  delivered(id: number): void {
    this.#db.transaction(() => {
      const { changes } = this.#db.run("DELETE FROM outbox WHERE id = :id", { id });
      const priority = this.#droppedUnderWay.get(id);
      // The row is still there where the transaction that dropped it was undone.
      if (changes === 0 && priority !== undefined) this.#counters.add(droppedCounter(priority), -1);
    });
    this.#droppedUnderWay.delete(id);
    this.#underWay.delete(id);
  }

  /** Counts one more failed attempt; the message stays. */
  failed(id: number): void {
    this.#db.run("UPDATE outbox SET attempts = attempts + 1 WHERE id = :id", { id });
    this.#droppedUnderWay.delete(id);
    this.#underWay.delete(id);
  }

  /** Gives up on a message that can never be delivered, and counts it as dropped. */
  discard(id: number): void {
    this.#db.transaction(() => {
      const row = this.#db.get<{ priority: number }>("SELECT priority FROM outbox WHERE id = :id", {
        id,
      });
      if (row) this.#drop(id, row.priority);
    });
    this.#droppedUnderWay.delete(id);
    this.#underWay.delete(id);
  }

  pendingCount(): number {
    return this.#counters.value("outbox_pending_messages");
  }

  pendingBytes(): number {
    return this.#counters.value("outbox_pending_bytes");
  }

  /** Messages lost to the limit since the database was made. */
  droppedCount(): number {
    return this.droppedByPriority().reduce((sum, n) => sum + n, 0);
  }

  /** {@link droppedCount} of priority 0, 1 and 2. */
  droppedByPriority(): [number, number, number] {
    const [p0, p1, p2] = PRIORITIES.map((p) => this.#counters.value(droppedCounter(p)));
    return [p0 ?? 0, p1 ?? 0, p2 ?? 0];
  }

  /** Retained messages that gave way to a newer one of their topic before they were sent. */
  replacedCount(): number {
    return this.#counters.value("outbox_replaced");
  }

  #insert({ topic, payload, qos, retain, priority }: OutboxMessage): void {
    if (retain) {
      const { changes } = this.#db.run("DELETE FROM outbox WHERE topic = :topic AND retain = 1", {
        topic,
      });
      if (changes > 0) this.#counters.add("outbox_replaced", changes);
    }
    this.#db.run(
      `INSERT INTO outbox (topic, payload, qos, retain, priority, created_at, size_bytes)
       VALUES (:topic, :payload, :qos, :retain, :priority, :at, :sizeBytes)`,
      {
        topic,
        payload,
        qos,
        retain: retain ? 1 : 0,
        priority,
        at: isoTime(this.#clock.nowMs()),
        sizeBytes: Buffer.byteLength(topic) + Buffer.byteLength(payload),
      },
    );
  }

  #oldest(priority: number, limit: number, excluded: readonly number[]): OutboxRow[] {
    return this.#db.all<OutboxRow>(
      `SELECT id, topic, payload, qos, retain, priority, attempts, created_at AS createdAt
       FROM outbox
       WHERE priority = :priority AND id NOT IN (SELECT value FROM json_each(:excluded))
       ORDER BY id LIMIT :limit`,
      { priority, limit, excluded: JSON.stringify(excluded) },
    );
  }

  #dropAboveLimit(): void {
    while (this.pendingBytes() > this.#limitBytes) {
      const victim = this.#db.get<{ id: number; priority: number }>(
        "SELECT id, priority FROM outbox ORDER BY priority, id LIMIT 1",
      );
      if (!victim) return;
      this.#drop(victim.id, victim.priority);
      if (this.#underWay.has(victim.id)) this.#droppedUnderWay.set(victim.id, victim.priority);
    }
  }

  #drop(id: number, priority: number): void {
    this.#db.run("DELETE FROM outbox WHERE id = :id", { id });
    this.#counters.add(droppedCounter(priority), 1);
  }
}

function droppedCounter(priority: number): string {
  return `outbox_dropped_priority_${priority}`;
}
