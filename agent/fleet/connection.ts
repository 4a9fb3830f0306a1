import type { IClientOptions } from "mqtt";
import { type Clock, isoTime } from "../clock.ts";
import { messageOf } from "../errors.ts";
import type { Logger } from "../log.ts";
import { type Backoff, backoffMs } from "./backoff.ts";
import { readCredentials } from "./broker-credentials.ts";
import {
  BrokerSession,
  type PublishOptions,
  type PublishOutcome,
  type ReceivedMessage,
  type SessionEnd,
  sleepOrAbort,
} from "./broker-session.ts";
import { type BuildMessage, messageBuilder } from "./messages.ts";
import { commandFilter, stationClientId, stationPrefix } from "./topics.ts";

/** Largest packet that a broker may send to a station (MQTT 5); a command is far below it. */
const MAX_INCOMING_BYTES = 256 * 1024;

/** Messages that a broker may send before the station acknowledged the first (MQTT 5). */
const MAX_INCOMING_IN_FLIGHT = 32;

/** A failure that repeats is told again at the level of a warning every so many times. */
const REPEAT_WARNING_EVERY = 50;

/** A command or other message as it came in, its topic below the station's prefix. */
export interface IncomingMessage {
  readonly topic: string;
  readonly payload: Buffer;
  readonly retained: boolean;
  /** Monotonic time in milliseconds after which it no longer holds; undefined: holds for ever. */
  readonly expiresMonotonicMs: number | undefined;
}

/** What a connection needs. Times that have a default are for tests and odd networks. */
export interface ConnectionOptions {
  readonly fleet: string;
  readonly station: string;
  /** `mqtt://`, `mqtts://`, `ws://` or `wss://`. */
  readonly url: string;
  /** 5, or 4 for MQTT 3.1.1. */
  readonly protocolVersion: 4 | 5;
  readonly username?: string | undefined;
  readonly passwordFile?: string | undefined;
  readonly caFile?: string | undefined;
  /** A connection that carries nothing for 1.5 times as long is given up. */
  readonly keepaliveSeconds: number;
  readonly softwareVersion: string;
  readonly clock: Clock;
  /** Uniform in [0, 1), for the jitter. */
  readonly random: () => number;
  /** A new unique id at every call. */
  readonly newId: () => string;
  readonly logger: Logger;
  /** Called for every message on `cmd/+/+`; must not block. */
  readonly onMessage: (message: IncomingMessage) => void;
  readonly environment?: NodeJS.ProcessEnv;
  /** Waits between attempts; 1 s doubling up to 2 min by default. */
  readonly backoff?: Backoff;
  /** A connection that held so long starts the backoff anew; 1 min by default. */
  readonly stableMs?: number;
  /** 20 s by default. */
  readonly connectTimeoutMs?: number;
  /** 60 s by default. */
  readonly ackTimeoutMs?: number;
  /** The broker tells "offline" only after so long, so that a blip stays unseen; 10 s. MQTT 5. */
  readonly willDelaySeconds?: number;
  /** How long the broker keeps commands for a station that is away; 7 days. MQTT 5. */
  readonly sessionExpirySeconds?: number;
}

type Settings = ConnectionOptions &
  Required<
    Pick<
      ConnectionOptions,
      | "environment"
      | "backoff"
      | "stableMs"
      | "connectTimeoutMs"
      | "ackTimeoutMs"
      | "willDelaySeconds"
      | "sessionExpirySeconds"
    >
  >;

/**
 * Keeps a station connected to its broker for as long as it runs. On every connection it
 * subscribes to commands and publishes the retained `status`; only after the broker has
 * acknowledged that is the connection online. The Last Will says `offline` in its place.
 */
export class FleetConnection {
  readonly #settings: Settings;
  readonly #prefix: string;
  readonly #build: BuildMessage;
  readonly #onlineListeners = new Set<() => void>();
  #abort: AbortController | undefined;
  #loop: Promise<void> | undefined;
  #session: BrokerSession | undefined;
  #online = false;
  #connects = 0;
  #failure: { reason: string; times: number } = { reason: "", times: 0 };

  /** @throws {RangeError} if the fleet or station id cannot be a level of a topic. */
  constructor(options: ConnectionOptions) {
    this.#settings = {
      ...options,
      environment: options.environment ?? process.env,
      backoff: options.backoff ?? { baseMs: 1000, capMs: 120_000 },
      stableMs: options.stableMs ?? 60_000,
      connectTimeoutMs: options.connectTimeoutMs ?? 20_000,
      ackTimeoutMs: options.ackTimeoutMs ?? 60_000,
      willDelaySeconds: options.willDelaySeconds ?? 10,
      sessionExpirySeconds: options.sessionExpirySeconds ?? 7 * 24 * 3600,
    };
    this.#prefix = stationPrefix(options.fleet, options.station);
    this.#build = messageBuilder(options.station, options.clock, options.newId);
  }

  /** True while the broker takes messages and has been told that the station is online. */
  get online(): boolean {
    return this.#online;
  }

  /** Connections that came online since the start. */
  get connects(): number {
    return this.#connects;
  }

  /** QoS 1 messages that the broker allows in flight at one time. */
  get receiveMaximum(): number {
    return this.#session?.receiveMaximum ?? 0xffff;
  }

  /** Calls `listener` each time the connection comes online. @returns how to stop it. */
  onOnline(listener: () => void): () => void {
    this.#onlineListeners.add(listener);
    return () => this.#onlineListeners.delete(listener);
  }

  /** Begins to connect, and goes on until {@link stop}; returns at once. */
  start(): void {
    if (this.#loop !== undefined) throw new TypeError("the connection was started already");
    this.#abort = new AbortController();
    this.#loop = this.#run(this.#abort.signal);
  }

  /** Tells the broker "offline" where it can be told, disconnects, and ends within seconds. */
  async stop(): Promise<void> {
    const session = this.#session;
    if (session !== undefined && this.#online) {
      const told = new AbortController();
      const farewell = this.#publishStatus(session, "offline", "stopped");
      await Promise.race([farewell, sleepOrAbort(this.#settings.clock, 2000, told.signal)]);
      told.abort();
    }
    this.#abort?.abort();
    await session?.close(1000);
    await this.#loop;
    this.#loop = undefined;
  }

  /**
   * Publishes below the station's prefix. Never rejects: a message that finds no connection, or
   * whose connection ends first, is `lost`.
   */
  async publish(topic: string, payload: string, options: PublishOptions): Promise<PublishOutcome> {
    if (this.#session === undefined || !this.#online) return { kind: "lost", byBroker: false };
    return await this.#session.publish(`${this.#prefix}/${topic}`, payload, options);
  }

  async #run(signal: AbortSignal): Promise<void> {
    const { clock, stableMs, backoff, random } = this.#settings;
    let attempt = 0;
    while (!signal.aborted) {
      const { end, onlineMs } = await this.#connectOnce(signal);
      if (signal.aborted) return;
      if (onlineMs >= stableMs) attempt = 0;
      const waitMs = backoffMs(attempt, backoff, random);
      attempt += 1;
      this.#logEnd(end, waitMs);
      await sleepOrAbort(clock, waitMs, signal);
    }
  }

  /** Connects, stays online as long as it holds, and says why it ended. Never rejects. */
  async #connectOnce(signal: AbortSignal): Promise<{ end: SessionEnd; onlineMs: number }> {
    const { clock } = this.#settings;
    let session: BrokerSession;
    try {
      session = new BrokerSession(await this.#sessionOptions());
    } catch (error) {
      return {
        end: { reason: messageOf(error), code: undefined, byBroker: false },
        onlineMs: 0,
      };
    }
    this.#session = session;
    session.open();
    const stopWhileConnecting = (): void => {
      if (!this.#online) session.abort("closed by the station");
    };
    signal.addEventListener("abort", stopWhileConnecting, { once: true });
    if (signal.aborted) stopWhileConnecting();
    let onlineSinceMs = Number.POSITIVE_INFINITY;
    if ((await session.connected) && (await this.#greet(session))) {
      onlineSinceMs = clock.monotonicMs();
      this.#comeOnline();
    }
    const end = await session.ended;
    signal.removeEventListener("abort", stopWhileConnecting);
    this.#online = false;
    this.#session = undefined;
    return { end, onlineMs: Math.max(0, clock.monotonicMs() - onlineSinceMs) };
  }

  /** Subscribes and says "online". @returns false where the session ended meanwhile. */
  async #greet(session: BrokerSession): Promise<boolean> {
    const { logger } = this.#settings;
    const filter = commandFilter(this.#prefix);
    const [refusal, birth] = await Promise.all([
      session.subscribe(filter),
      this.#publishStatus(session, "online", null),
    ]);
    if (birth.kind === "lost") return false;
    if (refusal !== undefined) {
      logger.error(
        { filter, refusal },
        "the broker refuses the subscription: no commands can arrive; let this user read the topic",
      );
    }
    if (birth.kind === "refused") {
      logger.error(
        { topic: `${this.#prefix}/status`, refusal: birth.reason },
        "the broker refuses the station's status; let this user write the station's topics",
      );
    }
    return true;
  }

  #comeOnline(): void {
    this.#online = true;
    this.#connects += 1;
    this.#failure = { reason: "", times: 0 };
    this.#settings.logger.info({ url: this.#shownUrl() }, "connected to the broker");
    for (const listener of this.#onlineListeners) listener();
  }

  #publishStatus(
    session: BrokerSession,
    state: "online" | "offline",
    reason: string | null,
  ): Promise<PublishOutcome> {
    const { softwareVersion } = this.#settings;
    const { topic, payload, qos, retain } = this.#build("status", {
      state,
      reason,
      softwareVersion,
    });
    return session.publish(`${this.#prefix}/${topic}`, payload, { qos, retain });
  }

  async #sessionOptions(): Promise<ConstructorParameters<typeof BrokerSession>[0]> {
    const { url, clock, connectTimeoutMs, ackTimeoutMs, logger, environment } = this.#settings;
    const { password, ca } = await readCredentials(this.#settings, environment);
    return {
      url: checkedUrl(url),
      client: this.#clientOptions(password, ca),
      clock,
      connectTimeoutMs,
      ackTimeoutMs,
      onMessage: (message) => this.#receive(message),
      onReceiveError: (error) =>
        logger.error({ error: messageOf(error) }, "a message was not taken"),
    };
  }

  #clientOptions(password: string | undefined, ca: Buffer | undefined): IClientOptions {
    const { protocolVersion, username, keepaliveSeconds, fleet, station } = this.#settings;
    const options: IClientOptions = {
      protocolVersion,
      clientId: stationClientId(fleet, station),
      clean: false,
      keepalive: keepaliveSeconds,
      will: this.#will(),
    };
    if (username !== undefined) options.username = username;
    if (password !== undefined) options.password = password;
    if (ca !== undefined) options.ca = ca;
    if (protocolVersion === 5) {
      options.properties = {
        sessionExpiryInterval: this.#settings.sessionExpirySeconds,
        maximumPacketSize: MAX_INCOMING_BYTES,
        receiveMaximum: MAX_INCOMING_IN_FLIGHT,
      };
    }
    return options;
  }

  /** `at` of the Will is the time of connecting: the broker tells it when the station cannot. */
  #will(): NonNullable<IClientOptions["will"]> {
    const { protocolVersion, willDelaySeconds, softwareVersion } = this.#settings;
    const { topic, payload, qos, retain } = this.#build("status", {
      state: "offline",
      reason: "connection lost",
      softwareVersion,
    });
    const will = {
      topic: `${this.#prefix}/${topic}`,
      payload: Buffer.from(payload),
      qos,
      retain,
    };
    if (protocolVersion !== 5) return will;
    return { ...will, properties: { willDelayInterval: willDelaySeconds } };
  }

  #receive({ topic, payload, retained, expirySeconds }: ReceivedMessage): void {
    if (!topic.startsWith(`${this.#prefix}/`)) return;
    const { clock, onMessage } = this.#settings;
    onMessage({
      topic: topic.slice(this.#prefix.length + 1),
      payload,
      retained,
      expiresMonotonicMs:
        expirySeconds === undefined ? undefined : clock.monotonicMs() + expirySeconds * 1000,
    });
  }

  #logEnd({ reason, code }: SessionEnd, waitMs: number): void {
    const { logger, clock } = this.#settings;
    const same = this.#failure.reason === reason;
    this.#failure = { reason, times: same ? this.#failure.times + 1 : 1 };
    const told = (this.#failure.times - 1) % REPEAT_WARNING_EVERY === 0;
    const advice = adviceFor(code, this.#settings.protocolVersion);
    logger[told ? "warn" : "debug"](
      {
        url: this.#shownUrl(),
        reason,
        ...(code === undefined ? {} : { code }),
        ...(advice === undefined ? {} : { advice }),
        times: this.#failure.times,
        nextAttemptAt: isoTime(clock.nowMs() + waitMs),
      },
      "not connected to the broker; messages wait in the outbox",
    );
  }

  #shownUrl(): string {
    return this.#settings.url.replace(/\/\/[^/@]*@/, "//");
  }
}

/** The URL as given. @throws {RangeError} where it is none that a broker can have. */
function checkedUrl(url: string): string {
  const shown = JSON.stringify(url.replace(/\/\/[^/@]*@/, "//"));
  const problem = `mqtt.url: expected mqtt://, mqtts://, ws:// or wss:// and a host, got ${shown}`;
  if (!URL.canParse(url)) throw new RangeError(problem);
  const { protocol, hostname } = new URL(url);
  if (!["mqtt:", "mqtts:", "ws:", "wss:"].includes(protocol) || hostname === "") {
    throw new RangeError(problem);
  }
  return url;
}

/** What a person can do about the reason code of a CONNACK or DISCONNECT. */
function adviceFor(code: number | undefined, protocolVersion: 4 | 5): string | undefined {
  switch (code) {
    case 1:
    case 0x84:
      return `the broker does not speak this version: set mqtt.protocolVersion to ${protocolVersion === 5 ? 4 : 5}`;
    case 2:
    case 0x85:
      return "the broker does not accept the client id: allow it, or change station.id";
    case 4:
    case 0x86:
      return "check mqtt.username and the file of mqtt.passwordFile";
    case 5:
    case 0x87:
    case 0x8a:
      return "give this user the right to connect at the broker";
    case 0x8e:
      return "another client uses this station's id: give each station its own";
    default:
      return undefined;
  }
}
