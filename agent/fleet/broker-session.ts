import { Socket } from "node:net";
import { connect, type IClientOptions, type IPublishPacket, type MqttClient, Store } from "mqtt";
import type { Clock } from "../clock.ts";
import { messageOf, systemCode } from "../errors.ts";

/** MQTT 5.0, section 2.4, and what mqtt.js uses for the codes of 3.1.1 alike. */
const PACKET_TOO_LARGE = 0x95;

/** Bytes of a PUBLISH beside topic and payload: fixed header, packet id, our properties. */
const PUBLISH_OVERHEAD_BYTES = 64;

/** How a message is to be published. */
export interface PublishOptions {
  readonly qos: 0 | 1;
  readonly retain: boolean;
  /** Mark it as told late (MQTT 5 user property `replayed: true`). */
  readonly replayed?: boolean;
}

/** What became of a published message. */
export type PublishOutcome =
  /** QoS 1: the broker has it. QoS 0: it was written to the connection. */
  | { readonly kind: "acknowledged" }
  /** The connection ended first: send it again. `byBroker` where the broker closed it. */
  | { readonly kind: "lost"; readonly byBroker: boolean }
  /** The broker will not take it. `code` is an MQTT 5 reason code from 0x80. */
  | { readonly kind: "refused"; readonly code: number; readonly reason: string };

/** A message that the broker delivered. */
export interface ReceivedMessage {
  /** The whole topic. */
  readonly topic: string;
  readonly payload: Buffer;
  readonly retained: boolean;
  /** Seconds for which it still holds, where its sender said so (MQTT 5 message expiry). */
  readonly expirySeconds: number | undefined;
}

/** Why a session is over. */
export interface SessionEnd {
  /** For people. */
  readonly reason: string;
  /** Reason or return code of the broker's CONNACK or DISCONNECT, where it gave one. */
  readonly code: number | undefined;
  /** True where the broker, not the network or this side, ended it. */
  readonly byBroker: boolean;
}

/** What a session needs. */
export interface SessionOptions {
  readonly url: string;
  /** Options of mqtt.js; those that this class depends on are set by it. */
  readonly client: IClientOptions;
  readonly clock: Clock;
  /** Longest time from the start until the broker's CONNACK. */
  readonly connectTimeoutMs: number;
  /** Longest wait for a PUBACK before the connection is given up as dead. */
  readonly ackTimeoutMs: number;
  /** Called for every message; what it throws goes to `onReceiveError`. */
  readonly onMessage: (message: ReceivedMessage) => void;
  readonly onReceiveError: (error: unknown) => void;
}

interface Pending {
  readonly sinceMs: number;
  readonly settle: (outcome: PublishOutcome) => void;
}

/**
 * One connection to a broker, from CONNECT to its end, on a fresh mqtt.js client: mqtt.js's own
 * queue, store and reconnect keep messages in memory without bound and lose some of them, so
 * none of these is ever used. Whatever goes wrong ends the session; nothing is repaired in it.
 */
export class BrokerSession {
  /** True once the broker accepted the connection; false where it never did. Never rejects. */
  readonly connected: Promise<boolean>;
  /** Resolves when the session is over. Never rejects. */
  readonly ended: Promise<SessionEnd>;

  readonly #options: SessionOptions;
  readonly #pending = new Set<Pending>();
  readonly #abort = new AbortController();
  readonly #resolveConnected: (connected: boolean) => void;
  readonly #resolveEnded: (end: SessionEnd) => void;
  #client: MqttClient | undefined;
  #end: SessionEnd | undefined;

  constructor(options: SessionOptions) {
    this.#options = options;
    const connected = deferred<boolean>();
    const ended = deferred<SessionEnd>();
    this.connected = connected.promise;
    this.ended = ended.promise;
    this.#resolveConnected = connected.resolve;
    this.#resolveEnded = ended.resolve;
  }

  /** Publications that the broker allows in flight at one time (MQTT 5 Receive Maximum). */
  get receiveMaximum(): number {
    return this.#client?.serverProperties?.receiveMaximum ?? 0xffff;
  }

  /** Starts to connect; the outcome shows in `connected` and `ended`. */
  open(): void {
    let client: MqttClient;
    try {
      client = connect(this.#options.url, {
        ...this.#options.client,
        reconnectPeriod: 0,
        resubscribe: false,
        queueQoSZero: false,
        // mqtt.js handles packets that it parsed before the end after it has closed its stores,
        // and a closed store throws where nobody can catch it, unless it is not cleaned.
        incomingStore: new Store({ clean: false }),
        outgoingStore: new Store({ clean: false }),
        // Ours ends the session first; this one is the second line.
        connectTimeout: this.#options.connectTimeoutMs * 2,
      });
    } catch (error) {
      this.#finish({ reason: messageOf(error), code: undefined, byBroker: false });
      return;
    }
    this.#client = client;
    // Small packets that wait for answers: Nagle's algorithm would cost a round trip each.
    if (client.stream instanceof Socket) client.stream.setNoDelay(true);
    this.#listen(client);
    void this.#watch();
  }

  #listen(client: MqttClient): void {
    client.on("connect", () => this.#resolveConnected(true));
    client.on("error", (error) => this.#finish(endOfError(error)));
    client.on("disconnect", (packet) => {
      const code = packet.reasonCode;
      const reason = `the broker sent DISCONNECT (reason code ${code ?? 0})`;
      this.#finish({ reason, code, byBroker: true });
    });
    client.on("close", () => {
      this.#finish({
        reason: "the broker closed the connection",
        code: undefined,
        byBroker: true,
      });
    });
    client.on("message", (topic, payload, packet) => this.#receive(topic, payload, packet));
  }

  #receive(topic: string, payload: Buffer, packet: IPublishPacket): void {
    const expirySeconds = packet.properties?.messageExpiryInterval;
    try {
      this.#options.onMessage({ topic, payload, retained: packet.retain, expirySeconds });
    } catch (error) {
      this.#options.onReceiveError(error);
    }
  }

  /** Ends the session where the broker stays silent for too long. */
  async #watch(): Promise<void> {
    const { clock, connectTimeoutMs, ackTimeoutMs } = this.#options;
    const signal = this.#abort.signal;
    const timeout = sleepOrAbort(clock, connectTimeoutMs, signal);
    const silent = { code: undefined, byBroker: false };
    if ((await Promise.race([this.connected, timeout])) === undefined && !signal.aborted) {
      const reason = `no answer from the broker within ${connectTimeoutMs} ms`;
      this.#finish({ reason, ...silent });
    }
    while (!signal.aborted) {
      await sleepOrAbort(clock, Math.ceil(ackTimeoutMs / 4), signal);
      // A Set keeps the order of insertion: the first is the oldest.
      const [oldest] = this.#pending;
      if (oldest !== undefined && clock.monotonicMs() - oldest.sinceMs > ackTimeoutMs) {
        const reason = `the broker did not acknowledge a message within ${ackTimeoutMs} ms`;
        this.#finish({ reason, ...silent });
      }
    }
  }

  /** Publishes one message. Never rejects, and never stays open beyond the session's end. */
  publish(topic: string, payload: string, options: PublishOptions): Promise<PublishOutcome> {
    const client = this.#client;
    if (client === undefined || this.#end !== undefined) {
      return Promise.resolve({ kind: "lost", byBroker: false });
    }
    const limit = client.serverProperties?.maximumPacketSize;
    const size = PUBLISH_OVERHEAD_BYTES + Buffer.byteLength(topic) + Buffer.byteLength(payload);
    if (limit !== undefined && size > limit) {
      const reason = `about ${size} bytes, and the broker takes packets of at most ${limit}`;
      return Promise.resolve({ kind: "refused", code: PACKET_TOO_LARGE, reason });
    }
    return new Promise((resolve) => {
      const pending: Pending = {
        sinceMs: this.#options.clock.monotonicMs(),
        settle: (outcome) => {
          if (this.#pending.delete(pending)) resolve(outcome);
        },
      };
      this.#pending.add(pending);
      const { qos, retain, replayed } = options;
      const properties = replayed ? { properties: { userProperties: { replayed: "true" } } } : {};
      client.publish(topic, payload, { qos, retain, ...properties }, (error) => {
        // Without a reason code the connection is going down, and #finish settles it.
        if (error === undefined || error === null) pending.settle({ kind: "acknowledged" });
        else if (reasonCode(error) !== undefined) pending.settle(refusal(error));
      });
    });
  }

  /** Subscribes at QoS 1. @returns undefined, or why the broker refused. Never rejects. */
  async subscribe(filter: string): Promise<string | undefined> {
    const client = this.#client;
    if (client === undefined || this.#end !== undefined) return "the connection is over";
    const answer = new Promise<string | undefined>((resolve) => {
      client.subscribe(filter, { qos: 1 }, (error) => {
        resolve(error ? messageOf(error) || "refused" : undefined);
      });
    });
    return await Promise.race([answer, this.ended.then((end) => end.reason)]);
  }

  /** Ends the session at once, without DISCONNECT, so that the broker publishes the Will. */
  abort(reason: string): void {
    this.#finish({ reason, code: undefined, byBroker: false });
  }

  /** Says DISCONNECT, so that the broker drops the Will, and waits for the end. */
  async close(timeoutMs: number): Promise<void> {
    const client = this.#client;
    if (client !== undefined && this.#end === undefined) {
      client.end(false);
      await Promise.race([
        this.ended,
        sleepOrAbort(this.#options.clock, timeoutMs, this.#abort.signal),
      ]);
    }
    this.abort("closed by the station");
  }

  #finish(end: SessionEnd): void {
    if (this.#end !== undefined) return;
    this.#end = end;
    this.#abort.abort();
    this.#resolveConnected(false);
    for (const pending of [...this.#pending]) {
      pending.settle({ kind: "lost", byBroker: end.byBroker });
    }
    // The listeners stay: a client that was given up may still emit errors.
    this.#client?.end(true);
    this.#resolveEnded(end);
  }
}

function endOfError(error: unknown): SessionEnd {
  const code = reasonCode(error);
  const byBroker = code !== undefined || systemCode(error) === "ECONNRESET";
  return { reason: messageOf(error) || systemCode(error) || "unknown error", code, byBroker };
}

function refusal(error: unknown): PublishOutcome {
  return { kind: "refused", code: reasonCode(error) ?? 0x80, reason: messageOf(error) };
}

/** The MQTT reason code of an error of mqtt.js; system errors carry text there. */
function reasonCode(error: unknown): number | undefined {
  if (typeof error !== "object" || error === null || !("code" in error)) return undefined;
  return typeof error.code === "number" ? error.code : undefined;
}

function deferred<T>(): { promise: Promise<T>; resolve: (value: T) => void } {
  const made: { resolve?: (value: T) => void } = {};
  const promise = new Promise<T>((resolve) => {
    made.resolve = resolve;
  });
  return { promise, resolve: (value) => made.resolve?.(value) };
}

/** Sleeps until the time is over or the signal comes, whichever is first. Never rejects. */
export async function sleepOrAbort(
  clock: Pick<Clock, "sleep">,
  ms: number,
  signal: AbortSignal,
): Promise<void> {
  if (signal.aborted) return;
  try {
    await clock.sleep(ms, signal);
  } catch (error) {
    if (!signal.aborted) throw error;
  }
}
