import { type Clock, isoTime } from "../clock.ts";
import type { Connection } from "./connection.ts";

/** `executing` until it ends, once. */
export type CommandState = "executing" | "successful" | "failed";

/** A command of the fleet as the database knows it. Times are ISO 8601 in UTC. */
export interface CommandRecord {
  id: string;
  op: string;
  /** As received. */
  payload: string;
  state: CommandState;
  reason: string | null;
  receivedAt: string;
  endedAt: string | null;
}

/** Commands by their id, so that each runs once however often it is delivered. */
export class Commands {
  readonly #db: Connection;
  readonly #clock: Clock;

  constructor(db: Connection, clock: Clock) {
    this.#db = db;
    this.#clock = clock;
  }

  /** Records a command as executing. @returns "new", or where it stands if it came before. */
  begin(
    id: string,
    op: string,
    payload: string,
  ): "new" | { state: CommandState; reason: string | null } {
    return this.#db.transaction(() => {
      const known = this.findCommand(id);
      if (known) return { state: known.state, reason: known.reason };
      this.#db.run(
        `INSERT INTO commands (id, op, payload, state, received_at)
         VALUES (:id, :op, :payload, 'executing', :at)`,
        { id, op, payload, at: isoTime(this.#clock.nowMs()) },
      );
      return "new";
    });
  }

  /** Records how a command ended. @returns false, writing nothing, if it had ended before. */
  finish(id: string, state: "successful" | "failed", reason: string | null): boolean {
    const { changes } = this.#db.run(
      `UPDATE commands SET state = :state, reason = :reason, ended_at = :at
       WHERE id = :id AND state = 'executing'`,
      { id, state, reason, at: isoTime(this.#clock.nowMs()) },
    );
    return changes > 0;
  }

  findCommand(id: string): CommandRecord | undefined {
    return findCommand(this.#db, id);
  }

  /** Those that have not ended, oldest first: at a start, what the last process died in. */
  executingCommands(): CommandRecord[] {
    return this.#db.all<CommandRecord>(
      `${SELECT_COMMAND} WHERE state = 'executing' ORDER BY number`,
    );
  }
}

/** See {@link Commands.findCommand}. */
export function findCommand(db: Connection, id: string): CommandRecord | undefined {
  return db.get<CommandRecord>(`${SELECT_COMMAND} WHERE id = :id`, { id });
}

const SELECT_COMMAND = `SELECT id, op, payload, state, reason, received_at AS receivedAt,
  ended_at AS endedAt FROM commands`;
