import { once } from "node:events";
import { createConnection, createServer, type Server, type Socket } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import Database from "better-sqlite3";
import { connectAsync, type MqttClient } from "mqtt";
import { pino } from "pino";
import { systemClock } from "../../agent/clock.ts";
import { type ConnectionOptions, FleetConnection } from "../../agent/fleet/connection.ts";
import type { OutboxMessage } from "../../agent/fleet/messages.ts";
import type { Outbox, OutboxEntry } from "../../agent/fleet/pump.ts";
import type { Logger } from "../../agent/log.ts";

/** What every connection of these tests has, with waits of milliseconds. */
export function connectionOptions(
  url: string,
  protocolVersion: 4 | 5,
  more: Partial<ConnectionOptions> = {},
): ConnectionOptions {
  const made = { ids: 0 };
  return {
    fleet: "default",
    station: "creek-3",
    url,
    protocolVersion,
    keepaliveSeconds: 30,
    softwareVersion: "0.0.0",
    clock: systemClock,
    random: Math.random,
    newId: () => `status-${made.ids++}`,
    logger: silentLogger(),
    onMessage: () => undefined,
    environment: {},
    backoff: { baseMs: 20, capMs: 100 },
    willDelaySeconds: 0,
    ...more,
  };
}

/** A started connection; stop it in `t.after`. */
export function startConnection(
  url: string,
  protocolVersion: 4 | 5,
  more: Partial<ConnectionOptions> = {},
): FleetConnection {
  const connection = new FleetConnection(connectionOptions(url, protocolVersion, more));
  connection.start();
  return connection;
}

export function silentLogger(): Logger {
  return pino({ level: "silent" });
}

/** A logger and the lines that it wrote. */
export function listeningLogger(): { logger: Logger; lines: Record<string, unknown>[] } {
  const lines: Record<string, unknown>[] = [];
  const write = (line: string): void => {
    lines.push(JSON.parse(line));
  };
  return { logger: pino({ level: "debug" }, { write }), lines };
}

/** Waits until `condition` holds. @throws {Error} after `timeoutMs`. */
export async function until(
  what: string,
  condition: () => boolean,
  timeoutMs = 10_000,
): Promise<void> {
  const endMs = performance.now() + timeoutMs;
  while (!condition()) {
    if (performance.now() > endMs) throw new Error(`waited ${timeoutMs} ms in vain until ${what}`);
    await delay(5);
  }
}

/** A second client at the broker that remembers what it sees. */
export interface Witness {
  readonly client: MqttClient;
  /** Payloads that came, by topic, in order. */
  readonly seen: Map<string, string[]>;
  /** The last payload of a topic, parsed. */
  last(topic: string): Record<string, unknown> | undefined;
}

export async function watchBroker(
  url: string,
  filter: string,
  qos: 0 | 1,
  onMessage?: (topic: string, payload: string) => void,
): Promise<Witness> {
  const seen = new Map<string, string[]>();
  const client = await connectAsync(url, { protocolVersion: 4, reconnectPeriod: 0 });
  client.on("error", () => undefined);
  client.on("message", (topic, payload) => {
    const text = payload.toString();
    if (onMessage !== undefined) onMessage(topic, text);
    else seen.set(topic, [...(seen.get(topic) ?? []), text]);
  });
  await client.subscribeAsync(filter, { qos });
  const last = (topic: string): Record<string, unknown> | undefined => {
    const text = seen.get(topic)?.at(-1);
    return text === undefined || text === "" ? undefined : JSON.parse(text);
  };
  return { client, seen, last };
}

/** An outbox in a real SQLite file, as the store has it but with nothing else around it. */
export class SqliteOutbox implements Outbox {
  readonly #db: Database.Database;
  readonly #insert: Database.Statement;
  readonly #delete: Database.Statement;
  readonly #fail: Database.Statement;
  readonly #count: Database.Statement;
  readonly #next: Database.Statement;
  /** Most rows that were ever asked for at once. */
  largestLimit = 0;

  constructor(path: string) {
    this.#db = new Database(path);
    this.#db.pragma("journal_mode = WAL");
    this.#db.pragma("synchronous = OFF");
    this.#db.exec(`CREATE TABLE outbox (
      id INTEGER PRIMARY KEY AUTOINCREMENT, message TEXT NOT NULL, priority INTEGER NOT NULL,
      attempts INTEGER NOT NULL DEFAULT 0, created_at TEXT NOT NULL) STRICT;
      CREATE INDEX outbox_order ON outbox (priority DESC, id);`);
    this.#insert = this.#db.prepare(
      "INSERT INTO outbox (message, priority, created_at) VALUES (?, ?, ?)",
    );
    this.#delete = this.#db.prepare("DELETE FROM outbox WHERE id = ?");
    this.#fail = this.#db.prepare("UPDATE outbox SET attempts = attempts + 1 WHERE id = ?");
    this.#count = this.#db.prepare("SELECT count(*) FROM outbox").pluck();
    this.#next = this.#db.prepare(
      `SELECT id, message, attempts, created_at FROM outbox
       WHERE id NOT IN (SELECT value FROM json_each(?)) ORDER BY priority DESC, id LIMIT ?`,
    );
  }

  add(messages: readonly OutboxMessage[], createdAt = new Date().toISOString()): void {
    this.#db.transaction(() => {
      for (const message of messages) {
        this.#insert.run(JSON.stringify(message), message.priority, createdAt);
      }
    })();
  }

  next(limit: number, excludeIds: ReadonlySet<number>): OutboxEntry[] {
    this.largestLimit = Math.max(this.largestLimit, limit);
    const rows = this.#next.all(JSON.stringify([...excludeIds]), limit) as {
      id: number;
      message: string;
      attempts: number;
      created_at: string;
    }[];
    return rows.map(({ id, message, attempts, created_at }) => ({
      id,
      message: JSON.parse(message),
      attempts,
      createdAt: created_at,
    }));
  }

  delivered(id: number): void {
    this.#delete.run(id);
  }

  failed(id: number): void {
    this.#fail.run(id);
  }

  discard(id: number): void {
    this.#delete.run(id);
  }

  pendingCount(): number {
    return this.#count.get() as number;
  }

  close(): void {
    this.#db.close();
  }
}

/** An event with a unique id and little else. */
export function numberedEvent(number: number): OutboxMessage {
  const payload = JSON.stringify({ id: `event-${number}`, padding: "x".repeat(100) });
  return { topic: "e/prediction", payload, qos: 1, retain: false, priority: 0 };
}

/**
 * A door between a client and a broker: closed (connections are reset at once), open, or
 * frozen (connections stay and carry nothing, as a mobile link that went away).
 */
export class Gate {
  readonly port: number;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  #state: "open" | "closed" | "frozen" = "closed";

  constructor(server: Server, port: number, targetPort: number) {
    this.#server = server;
    this.port = port;
    server.on("connection", (near) => this.#connect(near, targetPort));
  }

  get url(): string {
    return `mqtt://127.0.0.1:${this.port}`;
  }

  open(): void {
    this.#state = "open";
  }

  /** Refuses new connections; those that stand stay. */
  shut(): void {
    this.#state = "closed";
  }

  /** Resets all connections that stand. */
  cut(): void {
    for (const socket of this.#sockets) socket.resetAndDestroy();
  }

  /** Stops all traffic without closing anything. */
  freeze(): void {
    this.#state = "frozen";
    for (const socket of this.#sockets) socket.unpipe().pause();
  }

  async remove(): Promise<void> {
    this.cut();
    this.#server.close();
    await once(this.#server, "close");
  }

  #connect(near: Socket, targetPort: number): void {
    this.#track(near);
    if (this.#state === "closed") {
      near.resetAndDestroy();
      return;
    }
    if (this.#state === "frozen") {
      near.pause();
      return;
    }
    const far = createConnection({ port: targetPort, host: "127.0.0.1" });
    this.#track(far);
    for (const socket of [near, far]) socket.setNoDelay(true);
    near.pipe(far).pipe(near);
    near.on("close", () => far.destroy());
    far.on("close", () => near.destroy());
  }

  #track(socket: Socket): void {
    this.#sockets.add(socket);
    socket.on("error", () => undefined);
    socket.on("close", () => this.#sockets.delete(socket));
  }
}

export async function startGate(targetPort: number): Promise<Gate> {
  const server = createServer();
  const port = await listen(server);
  return new Gate(server, port, targetPort);
}

/** Lets a server listen on a free port of 127.0.0.1. */
export async function listen(server: Server): Promise<number> {
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  if (address === null || typeof address === "string") throw new Error("no port was given");
  return address.port;
}
