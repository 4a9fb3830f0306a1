import { type Clock, isoTime } from "../clock.ts";
import type { Connection } from "./connection.ts";

/** The side of the split that a burst is on. */
export type BurstRole = "train" | "heldOut";

/** Sequences of frames. What a burst was first used for, it is used for ever. */
export class Bursts {
  readonly #db: Connection;
  readonly #clock: Clock;

  constructor(db: Connection, clock: Clock) {
    this.#db = db;
    this.#clock = clock;
  }

  /** @returns the role that holds from now on: the earlier one, if there is one. */
  assignBurstRole(id: string, role: BurstRole): BurstRole {
    return this.#db.transaction(() => {
      const at = isoTime(this.#clock.nowMs());
      this.#db.run(
        `INSERT INTO bursts (id, first_seen_at, role, role_fixed_at) VALUES (:id, :at, :role, :at)
         ON CONFLICT (id) DO UPDATE SET role = :role, role_fixed_at = :at WHERE role IS NULL`,
        { id, role, at },
      );
      const row = this.#db.get<{ role: BurstRole }>("SELECT role FROM bursts WHERE id = :id", {
        id,
      });
      return row?.role ?? role;
    });
  }

  /** Role by burst, of those that have one. */
  burstRoles(): Map<string, BurstRole> {
    const rows = this.#db.all<{ id: string; role: BurstRole }>(
      "SELECT id, role FROM bursts WHERE role IS NOT NULL ORDER BY number",
    );
    return new Map(rows.map((row) => [row.id, row.role]));
  }
}
