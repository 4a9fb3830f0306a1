import type { Clock } from "../clock.ts";
import { messageOf } from "../errors.ts";
import type { Logger } from "../log.ts";
import { type PublishOptions, type PublishOutcome, sleepOrAbort } from "./broker-session.ts";
import type { OutboxMessage } from "./messages.ts";

/** A message as the outbox keeps it. */
export interface OutboxEntry {
  readonly id: number;
  readonly message: OutboxMessage;
  /** How often {@link Outbox.failed} was told of it. */
  readonly attempts: number;
  /** ISO 8601 in UTC. */
  readonly createdAt: string;
}

/** What the pump needs of the store. All calls return when the disk has it. */
export interface Outbox {
  /** The next messages to send, in order, without those of `excludeIds`; at most `limit`. */
  next(limit: number, excludeIds: ReadonlySet<number>): OutboxEntry[];
  /** Removes a message that the broker has. */
  delivered(id: number): void;
  /** Counts one refused attempt; the message stays. */
  failed(id: number): void;
  /** Removes a message that can never be delivered, and counts it as dropped. */
  discard(id: number): void;
  /** Messages not yet removed. */
  pendingCount(): number;
}

/** What the pump needs of the connection. */
interface PumpConnection {
  readonly online: boolean;
  readonly receiveMaximum: number;
  onOnline(listener: () => void): () => void;
  publish(topic: string, payload: string, options: PublishOptions): Promise<PublishOutcome>;
}

/** What a pump needs. */
export interface PumpOptions {
  readonly outbox: Outbox;
  readonly connection: PumpConnection;
  readonly clock: Clock;
  readonly logger: Logger;
  /** Messages sent and not yet acknowledged, at most. */
  readonly inFlight: number;
  /** Told of every message that was removed without being delivered. */
  readonly onDropped?: (message: OutboxMessage, reason: string) => void;
  /** A message older than this is sent as replayed; 60 s by default. */
  readonly historicalSeconds?: number;
  /** Replayed messages sent a second, at most; 500 by default. */
  readonly replayPerSecond?: number;
  /** A message that the broker refused so often is dropped; 8 by default. */
  readonly poisonLimit?: number;
}

/** What a pump did since its start. */
export interface PumpCounts {
  readonly delivered: number;
  readonly dropped: number;
  readonly inFlight: number;
}

/** Reason codes that the same bytes will always meet: bad topic, too large, bad payload. */
const PERMANENT_CODES: ReadonlySet<number> = new Set([0x90, 0x95, 0x99]);

/** Messages that wait after a refusal, at most; with more, the pump waits for the first. */
const MAX_ASIDE = 64;

/** Connections that the broker closed with a message in flight before it is sent alone. */
const SUSPECT_AFTER = 2;

/** Messages whose lost connections are remembered, at most. */
const MAX_REMEMBERED_LOSSES = 1024;

const FIRST_ASIDE_MS = 1000;
const LONGEST_ASIDE_MS = 120_000;
const STORE_TROUBLE_MS = 5000;

/**
 * Carries messages from the outbox to the broker while there is a connection. A message leaves
 * the outbox on its PUBACK (QoS 0: when written), so each arrives at least once, and never more
 * than a window of them is in memory.
 *
 * A message that cannot be delivered does not stop the others. Refused by a reason code: it is
 * tried again later and later, and dropped after `poisonLimit` times (at once where the code
 * says that it can never pass). Answered by a closed connection, as brokers of MQTT 3.1.1 do:
 * after two such ends each message that was in flight is sent alone, and the one that ends
 * `poisonLimit` more connections, on each of which the station's status passed, is dropped.
 */
export class OutboxPump {
  readonly #options: Required<Omit<PumpOptions, "onDropped">> & Pick<PumpOptions, "onDropped">;
  readonly #inFlight = new Set<number>();
  /** Monotonic time from which a refused message may be sent again, by id. */
  readonly #aside = new Map<number, number>();
  /** Connections that the broker closed while a message was in flight, by id. */
  readonly #losses = new Map<number, number>();
  #tokens = 0;
  #tokensAtMs = 0;
  #troubleUntilMs = 0;
  #delivered = 0;
  #dropped = 0;
  #wake: (() => void) | undefined;
  #awake = false;
  #abort: AbortController | undefined;
  #loop: Promise<void> | undefined;
  #stopListening: (() => void) | undefined;

  constructor(options: PumpOptions) {
    this.#options = {
      ...options,
      historicalSeconds: options.historicalSeconds ?? 60,
      replayPerSecond: options.replayPerSecond ?? 500,
      poisonLimit: options.poisonLimit ?? 8,
    };
  }

  /** See {@link PumpCounts}. */
  get counts(): PumpCounts {
    return { delivered: this.#delivered, dropped: this.#dropped, inFlight: this.#inFlight.size };
  }

  /** Begins to send, now and at every connection that comes online. */
  start(): void {
    if (this.#loop !== undefined) throw new TypeError("the pump was started already");
    this.#abort = new AbortController();
    this.#stopListening = this.#options.connection.onOnline(() => this.wake());
    this.#loop = this.#run(this.#abort.signal);
  }

  /** Sends nothing new, and waits up to `drainMs` milliseconds for what is in flight. */
  async stop(drainMs = 2000): Promise<void> {
    this.#stopListening?.();
    this.#abort?.abort();
    await this.#loop;
    this.#loop = undefined;
    const { clock } = this.#options;
    const untilMs = clock.monotonicMs() + drainMs;
    while (this.#inFlight.size > 0 && clock.monotonicMs() < untilMs) await clock.sleep(10);
    this.#abort = undefined;
  }

  /** Says that the outbox has new messages. Cheap; call it after every transaction. */
  wake(): void {
    this.#awake = true;
    this.#wake?.();
  }

  async #run(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      this.#awake = false;
      const waitMs = this.#fill();
      if (!this.#awake) await this.#nap(waitMs, signal);
    }
  }

  /** Sleeps for `ms` (may be Infinity) or until {@link wake}, or until the signal. */
  async #nap(ms: number, signal: AbortSignal): Promise<void> {
    const nap = new AbortController();
    // With a reason of its own: the usual one is an error with a stack, made at every wake.
    const end = (): void => nap.abort("awake");
    this.#wake = end;
    signal.addEventListener("abort", end, { once: true });
    if (Number.isFinite(ms)) {
      await sleepOrAbort(this.#options.clock, ms, nap.signal);
    } else {
      await new Promise<void>((resolve) => {
        if (signal.aborted || nap.signal.aborted) resolve();
        else nap.signal.addEventListener("abort", () => resolve(), { once: true });
      });
    }
    signal.removeEventListener("abort", end);
    this.#wake = undefined;
  }

  /** Sends what may be sent now. @returns milliseconds until more may be, if nothing wakes it. */
  #fill(): number {
    const { connection, clock, inFlight } = this.#options;
    if (!connection.online) return Number.POSITIVE_INFINITY;
    const nowMs = clock.monotonicMs();
    if (nowMs < this.#troubleUntilMs) return this.#troubleUntilMs - nowMs;
    for (const [id, fromMs] of this.#aside) if (fromMs <= nowMs) this.#aside.delete(id);
    const untilAsideMs = this.#untilAside(nowMs);
    if (this.#aside.size >= MAX_ASIDE) return untilAsideMs;

    const window = Math.max(1, Math.min(inFlight, connection.receiveMaximum));
    const room = window - this.#inFlight.size;
    if (room <= 0 || this.#suspectInFlight()) return Number.POSITIVE_INFINITY;
    const entries = this.#load(room);
    if (entries === undefined) return STORE_TROUBLE_MS;
    for (const entry of entries) {
      if (this.#isSuspect(entry.id)) {
        if (this.#inFlight.size === 0) this.#send(entry);
        return untilAsideMs;
      }
      const waitMs = this.#isHistorical(entry) ? this.#takeToken(nowMs) : 0;
      if (waitMs > 0) return Math.min(waitMs, untilAsideMs);
      this.#send(entry);
    }
    return untilAsideMs;
  }

  #untilAside(nowMs: number): number {
    let untilMs = Number.POSITIVE_INFINITY;
    for (const fromMs of this.#aside.values()) untilMs = Math.min(untilMs, fromMs - nowMs);
    return untilMs;
  }

  #load(limit: number): OutboxEntry[] | undefined {
    const excludeIds = new Set([...this.#inFlight, ...this.#aside.keys()]);
    try {
      return this.#options.outbox.next(limit, excludeIds);
    } catch (error) {
      this.#reportTrouble("the outbox cannot be read", error);
      return undefined;
    }
  }

  #isSuspect(id: number): boolean {
    return (this.#losses.get(id) ?? 0) >= SUSPECT_AFTER;
  }

  #suspectInFlight(): boolean {
    for (const id of this.#inFlight) if (this.#isSuspect(id)) return true;
    return false;
  }

  #isHistorical({ createdAt }: OutboxEntry): boolean {
    // A clock that was set back makes the age negative: then it counts as new.
    const ageMs = this.#options.clock.nowMs() - Date.parse(createdAt);
    return ageMs > this.#options.historicalSeconds * 1000;
  }

  /** Token bucket of a tenth of a second. @returns 0, or milliseconds until the next token. */
  #takeToken(nowMs: number): number {
    const { replayPerSecond } = this.#options;
    const full = Math.max(1, replayPerSecond / 10);
    const earned = ((nowMs - this.#tokensAtMs) * replayPerSecond) / 1000;
    this.#tokens = Math.min(full, this.#tokens + earned);
    this.#tokensAtMs = nowMs;
    if (this.#tokens >= 1) {
      this.#tokens -= 1;
      return 0;
    }
    return Math.ceil(((1 - this.#tokens) * 1000) / replayPerSecond);
  }

  #send(entry: OutboxEntry): void {
    const { topic, payload, qos, retain } = entry.message;
    const alone = this.#isSuspect(entry.id);
    this.#inFlight.add(entry.id);
    const replayed = this.#isHistorical(entry);
    const settle = (outcome: PublishOutcome): void => this.#settle(entry, outcome, alone);
    this.#options.connection.publish(topic, payload, { qos, retain, replayed }).then(
      settle,
      // The connection promises not to reject; if it does, the message is simply sent again.
      (error) => {
        this.#reportTrouble("publishing failed", error);
        settle({ kind: "lost", byBroker: false });
      },
    );
  }

  #settle(entry: OutboxEntry, outcome: PublishOutcome, alone: boolean): void {
    if (this.#abort === undefined) return;
    try {
      if (outcome.kind === "acknowledged") this.#remove(entry.id);
      else if (outcome.kind === "refused") this.#refuse(entry, outcome);
      else if (outcome.byBroker) this.#blame(entry, alone);
    } catch (error) {
      this.#reportTrouble("the outbox cannot be changed", error);
    }
    this.#inFlight.delete(entry.id);
    const { inFlight } = this.#options;
    // Half a window at a time: one query for many acknowledgments.
    if (this.#inFlight.size <= inFlight / 2) this.wake();
  }

  #remove(id: number): void {
    this.#options.outbox.delivered(id);
    this.#losses.delete(id);
    this.#delivered += 1;
  }

  #refuse(entry: OutboxEntry, refusal: PublishOutcome & { kind: "refused" }): void {
    const { clock, outbox, logger, poisonLimit } = this.#options;
    const attempts = entry.attempts + 1;
    const topic = entry.message.topic;
    if (PERMANENT_CODES.has(refusal.code) || attempts >= poisonLimit) {
      this.#drop(entry, `the broker refused it ${attempts} times: ${refusal.reason}`);
      return;
    }
    outbox.failed(entry.id);
    const waitMs = Math.min(LONGEST_ASIDE_MS, FIRST_ASIDE_MS * 2 ** entry.attempts);
    this.#aside.set(entry.id, clock.monotonicMs() + waitMs);
    logger.warn(
      { topic, code: refusal.code, reason: refusal.reason, attempts, waitMs },
      "the broker refused a message; check the rights and limits of this user at the broker",
    );
  }

  #blame(entry: OutboxEntry, alone: boolean): void {
    const losses = (this.#losses.get(entry.id) ?? 0) + 1;
    if (alone && losses >= SUSPECT_AFTER + this.#options.poisonLimit) {
      this.#drop(entry, `the broker closed the connection ${losses} times when it was sent`);
      return;
    }
    const [oldest] = this.#losses.keys();
    if (oldest !== undefined && this.#losses.size >= MAX_REMEMBERED_LOSSES) {
      this.#losses.delete(oldest);
    }
    this.#losses.set(entry.id, losses);
  }

  #drop({ id, message }: OutboxEntry, reason: string): void {
    const { outbox, logger, onDropped } = this.#options;
    outbox.discard(id);
    this.#losses.delete(id);
    this.#dropped += 1;
    const sizeBytes = Buffer.byteLength(message.payload);
    logger.error({ topic: message.topic, sizeBytes, reason }, "dropped a message");
    onDropped?.(message, reason);
  }

  #reportTrouble(what: string, error: unknown): void {
    this.#troubleUntilMs = this.#options.clock.monotonicMs() + STORE_TROUBLE_MS;
    this.#options.logger.error({ error: messageOf(error) }, `${what}; trying again in a while`);
  }
}
