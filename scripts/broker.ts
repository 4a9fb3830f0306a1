import { once } from "node:events";
import { createServer, type Socket } from "node:net";
import { Aedes } from "aedes";

/** What the broker saw of one kind of message. */
interface SeenMessages {
  kind: string;
  count: number;
  bytes: number;
  /** Payload of the last one, as UTF-8, cut at 400 characters. */
  last: string;
}

/** A running broker. */
export interface EmbeddedBroker {
  /** `mqtt://127.0.0.1:<port>`; speaks MQTT 3.1 and 3.1.1, not 5. */
  url: string;
  /** Kinds in the order in which they first appeared; counted just after their delivery. */
  seen(): SeenMessages[];
  /** Closes every connection and the port; may be called twice. */
  stop(): Promise<void>;
}

/** Counts messages by kind in bounded memory; fed by a broker or by a subscription of `taco/#`. */
export interface MessageTally {
  note(topic: string, payload: Uint8Array | string): void;
  seen(): SeenMessages[];
}

/** Topics come from outside: a stranger with random topics must not fill the memory. */
const MAX_KINDS = 200;

/**
 * Starts an MQTT broker inside this process, for a demo or a test without one on the machine.
 * The default port is one that the system picks.
 */
export async function startBroker(options: { port?: number } = {}): Promise<EmbeddedBroker> {
  const tally = createTally();
  const aedes = await Aedes.createBroker();
  aedes.on("publish", (packet, client) => {
    // Without a client it is the broker's own $SYS chatter.
    if (client) tally.note(packet.topic, packet.payload);
  });
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
    aedes.handle(socket);
  });
  server.listen(options.port ?? 0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  if (address === null || typeof address === "string") {
    throw new TypeError(`expected a TCP address of the broker, got ${String(address)}`);
  }
  let stopping: Promise<void> | undefined;
  return {
    url: `mqtt://127.0.0.1:${address.port}`,
    seen: tally.seen,
    stop() {
      stopping ??= (async () => {
        const closed = once(server, "close");
        server.close();
        await new Promise<void>((resolve) => aedes.close(resolve));
        for (const socket of sockets) socket.destroy();
        await closed;
      })();
      return stopping;
    },
  };
}

/** An empty tally. Kinds beyond the 200th are counted together under `(other)`. */
export function createTally(): MessageTally {
  const kinds = new Map<string, SeenMessages>();
  return {
    note(topic, payload) {
      let kind = messageKind(topic);
      if (!kinds.has(kind) && kinds.size >= MAX_KINDS) kind = "(other)";
      const entry = kinds.get(kind) ?? { kind, count: 0, bytes: 0, last: "" };
      const text = typeof payload === "string" ? payload : Buffer.from(payload).toString("utf8");
      entry.count++;
      entry.bytes += payload.length;
      entry.last = text.slice(0, 400);
      kinds.set(kind, entry);
    },
    seen: () => [...kinds.values()].map((entry) => ({ ...entry })),
  };
}

/**
 * The part of a topic that says what a message is: `taco/<fleet>/<station>/` is dropped, and the
 * id of a command too (`cmd/specialize/42/state` → `cmd/specialize/state`).
 */
export function messageKind(topic: string): string {
  const levels = topic.split("/");
  const below = levels[0] === "taco" && levels.length > 3 ? levels.slice(3) : levels;
  if (below[0] === "cmd") return ["cmd", below[1], ...below.slice(3)].join("/");
  return below.join("/");
}
