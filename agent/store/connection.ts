import Database from "better-sqlite3";
import { AgentError } from "../errors.ts";

/** What SQLite binds; booleans and dates are the caller's to convert. */
export type Bindings = Readonly<Record<string, string | number | null>>;

/** Marks the file as a station's database (`PRAGMA application_id`): "taco" in ASCII. */
export const APPLICATION_ID = 0x7461636f;

/** How long a statement waits for another process's lock before it gives up. */
const BUSY_TIMEOUT_MS = 5000;

/** The write-ahead log is cut back to this after a checkpoint that found it larger. */
const JOURNAL_LIMIT_BYTES = 16 * 1024 * 1024;

/**
 * One SQLite connection whose errors are the agent's. Statements are compiled once and kept by
 * their text, so that SQL can stand beside the code that uses it.
 */
export class Connection {
  readonly path: string;
  readonly #database: Database.Database;
  readonly #statements = new Map<string, Database.Statement>();
  readonly #atomically: Database.Transaction<(work: () => unknown) => unknown>;

  constructor(database: Database.Database) {
    this.#database = database;
    this.path = database.name;
    this.#atomically = database.transaction((work: () => unknown) => work());
  }

  /** First row, or undefined. The caller vouches that `Row` is what the SQL selects. */
  get<Row>(sql: string, bindings: Bindings = {}): Row | undefined {
    return this.#wrapped(() => this.#prepared(sql).get(bindings) as Row | undefined);
  }

  /** All rows. The caller vouches that `Row` is what the SQL selects. */
  all<Row>(sql: string, bindings: Bindings = {}): Row[] {
    return this.#wrapped(() => this.#prepared(sql).all(bindings) as Row[]);
  }

  /** Executes one statement. `changes` counts rows it touched itself, not its triggers. */
  run(sql: string, bindings: Bindings = {}): { changes: number; rowId: number } {
    return this.#wrapped(() => {
      const result = this.#prepared(sql).run(bindings);
      return { changes: result.changes, rowId: Number(result.lastInsertRowid) };
    });
  }

  /** Executes any number of statements without results. */
  exec(sql: string): void {
    this.#wrapped(() => this.#database.exec(sql));
  }

  /** The single value of a pragma. */
  pragma(source: string): unknown {
    return this.#wrapped(() => this.#database.pragma(source, { simple: true }));
  }

  /**
   * All of `work` or nothing of it. Nests: an inner one undoes only itself.
   *
   * @throws {TypeError} if `work` returns a promise: a transaction cannot stay open across turns.
   */
  transaction<T>(work: () => T): T {
    return this.#wrapped(() => this.#atomically.immediate(work) as T);
  }

  /** Copies the database, page by page between other work, to a file that must not exist. */
  async copyTo(path: string, signal: AbortSignal): Promise<void> {
    try {
      await this.#database.backup(path, {
        progress: () => {
          signal.throwIfAborted();
          return PAGES_A_TURN;
        },
      });
    } catch (error) {
      throw storeError(error, path);
    }
  }

  close(): void {
    this.#statements.clear();
    this.#database.close();
  }

  #prepared(sql: string): Database.Statement {
    const known = this.#statements.get(sql);
    if (known) return known;
    const statement = this.#database.prepare(sql);
    this.#statements.set(sql, statement);
    return statement;
  }

  #wrapped<T>(work: () => T): T {
    try {
      return work();
    } catch (error) {
      throw storeError(error, this.path);
    }
  }
}

/** 256 pages of 4 KiB: about 1 MiB between two turns of the event loop. */
const PAGES_A_TURN = 256;

/**
 * Opens a file to write. `synchronous` is per connection and better-sqlite3's build opens WAL
 * files at NORMAL, which may lose the last commits on a power cut: FULL is set and verified.
 *
 * @throws {AgentError} STORE_FAILED, DISK_FULL or STATION_BUSY.
 */
export function connect(path: string, busyTimeoutMs = BUSY_TIMEOUT_MS): Connection {
  const connection = new Connection(openDatabase(path, { timeout: busyTimeoutMs }));
  try {
    expectPragma(connection, "journal_mode = WAL", "wal");
    connection.pragma("synchronous = FULL");
    expectPragma(connection, "synchronous", 2);
    connection.pragma("foreign_keys = ON");
    expectPragma(connection, "foreign_keys", 1);
    connection.pragma(`journal_size_limit = ${JOURNAL_LIMIT_BYTES}`);
    connection.pragma("trusted_schema = OFF");
  } catch (error) {
    connection.close();
    throw error;
  }
  return connection;
}

/**
 * Opens an existing file to read, beside the process that writes it.
 *
 * @throws {AgentError} STORE_FAILED where there is no such database or it cannot be read.
 */
export function connectReadOnly(path: string): Connection {
  const options = { readonly: true, fileMustExist: true, timeout: BUSY_TIMEOUT_MS };
  return new Connection(openDatabase(path, options));
}

function openDatabase(path: string, options: Database.Options): Database.Database {
  try {
    return new Database(path, options);
  } catch (error) {
    throw storeError(error, path);
  }
}

function expectPragma(connection: Connection, pragma: string, expected: unknown): void {
  const got = connection.pragma(pragma);
  if (got === expected) return;
  throw new AgentError(
    "STORE_FAILED",
    `${connection.path}: expected "PRAGMA ${pragma}" to give ${expected}, got ${got}: the file ` +
      `must lie on a local disk that supports SQLite's write-ahead log`,
  );
}

/**
 * Turns an error of SQLite into one of the agent; any other error stays as it is. A broken
 * constraint is the caller's mistake and becomes a RangeError.
 */
function storeError(error: unknown, path: string): unknown {
  if (!(error instanceof Database.SqliteError)) return error;
  const { code, message } = error;
  const because = { cause: error };
  if (code === "SQLITE_FULL") {
    return new AgentError(
      "DISK_FULL",
      `no room on the disk for ${path}: nothing of this change was written; free some space`,
      because,
    );
  }
  if (code.startsWith("SQLITE_BUSY") || code.startsWith("SQLITE_LOCKED")) {
    return new AgentError(
      "STATION_BUSY",
      `${path} is locked by another process (${code}): expected to be the only writer; stop the ` +
        `other "taco run", or close the sqlite3 shell that holds a transaction`,
      because,
    );
  }
  if (code.startsWith("SQLITE_CONSTRAINT")) {
    return new RangeError(`the database refuses a value: ${message} (${code})`, because);
  }
  const advice = isDamage(error)
    ? "the file is damaged; restart the agent, which restores the newest good backup"
    : "check that the disk works and that the agent's user may write there";
  return new AgentError("STORE_FAILED", `${path}: ${message} (${code}): ${advice}`, because);
}

/** Whether an error (or what caused it) says that the file itself is not a sound database. */
export function isDamage(error: unknown): boolean {
  const origin = error instanceof AgentError ? error.cause : error;
  if (!(origin instanceof Database.SqliteError)) return false;
  return origin.code.startsWith("SQLITE_CORRUPT") || origin.code === "SQLITE_NOTADB";
}
