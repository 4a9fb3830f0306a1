import { type Clock, isoTime } from "../clock.ts";
import type { Connection } from "./connection.ts";

/** Small facts that outlive the process, by name: when the last run was, what the plan is, … */
export class StationState {
  readonly #db: Connection;
  readonly #clock: Clock;

  constructor(db: Connection, clock: Clock) {
    this.#db = db;
    this.#clock = clock;
  }

  /** The value last set, to be validated by the caller; undefined if there is none. */
  get(key: string): unknown {
    return getStationState(this.#db, key);
  }

  /** @param value anything that JSON can hold; undefined removes the key. */
  set(key: string, value: unknown): void {
    if (value === undefined) {
      this.#db.run("DELETE FROM station_state WHERE key = :key", { key });
      return;
    }
    this.#db.run(
      `INSERT INTO station_state (key, value, updated_at) VALUES (:key, :value, :at)
       ON CONFLICT (key) DO UPDATE SET value = :value, updated_at = :at`,
      { key, value: JSON.stringify(value), at: isoTime(this.#clock.nowMs()) },
    );
  }
}

/** See {@link StationState.get}. */
export function getStationState(db: Connection, key: string): unknown {
  const row = db.get<{ value: string }>("SELECT value FROM station_state WHERE key = :key", {
    key,
  });
  return row === undefined ? undefined : (JSON.parse(row.value) as unknown);
}
