import type { Connection } from "./connection.ts";

/** Numbers that only the database remembers, by name. */
export class Counters {
  readonly #db: Connection;

  constructor(db: Connection) {
    this.#db = db;
  }

  /** 0 for a name never counted. */
  value(name: string): number {
    const row = this.#db.get<{ value: number }>("SELECT value FROM counters WHERE name = :name", {
      name,
    });
    return row?.value ?? 0;
  }

  add(name: string, by: number): void {
    this.#db.run(
      `INSERT INTO counters (name, value) VALUES (:name, :by)
       ON CONFLICT (name) DO UPDATE SET value = value + :by`,
      { name, by },
    );
  }

  all(): Record<string, number> {
    const rows = this.#db.all<{ name: string; value: number }>(
      "SELECT name, value FROM counters ORDER BY name",
    );
    return Object.fromEntries(rows.map((row) => [row.name, row.value]));
  }
}
