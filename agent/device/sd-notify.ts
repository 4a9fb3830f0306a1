import { execFile } from "node:child_process";
import { promisify } from "node:util";
import type { Clock } from "../clock.ts";
import { messageOf } from "../errors.ts";
import type { Logger } from "../log.ts";

const run = promisify(execFile);

/** What a {@link SystemdNotifier} needs. */
export interface NotifierOptions {
  /** NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID are read. */
  environment: NodeJS.ProcessEnv;
  clock: Clock;
  log: Logger;
  /** Whether the station makes progress; asked before every watchdog message. */
  isAlive: () => Promise<boolean>;
}

/**
 * Tells systemd how the service does (sd_notify(3)). Node has no datagram sockets, so each message
 * spawns `systemd-notify` (about 50 ms), which the unit must allow by `NotifyAccess=all`.
 *
 * Without NOTIFY_SOCKET (not started by systemd, or not as Type=notify) every method does nothing.
 * A message that cannot be sent is logged and never fails the station.
 */
export class SystemdNotifier {
  readonly #environment: NodeJS.ProcessEnv;
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #isAlive: () => Promise<boolean>;
  readonly #stop = new AbortController();
  #watching: Promise<void> | null = null;

  constructor({ environment, clock, log, isAlive }: NotifierOptions) {
    this.#environment = environment;
    this.#clock = clock;
    this.#log = log;
    this.#isAlive = isAlive;
  }

  /** The service is up (READY=1); begins to feed the watchdog where the unit has one. */
  async start(status: string): Promise<void> {
    await this.#send(["READY=1", `STATUS=${oneLine(status)}`]);
    const periodMs = watchdogPeriodMs(this.#environment, process.pid);
    if (periodMs !== null) this.#watching = this.#watch(periodMs);
  }

  /** One line for `systemctl status`. */
  async status(text: string): Promise<void> {
    await this.#send([`STATUS=${oneLine(text)}`]);
  }

  /** Asks for more time to start or stop, counted from now. */
  async extendTimeout(ms: number): Promise<void> {
    await this.#send([`EXTEND_TIMEOUT_USEC=${Math.round(ms * 1000)}`]);
  }

  /** The service is going down (STOPPING=1); the watchdog is fed no more. */
  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#watching;
    this.#watching = null;
    await this.#send(["STOPPING=1"]);
  }

  async #watch(periodMs: number): Promise<void> {
    const { signal } = this.#stop;
    while (!signal.aborted) {
      if (await this.#answers(periodMs)) await this.#send(["WATCHDOG=1"]);
      try {
        await this.#clock.sleep(periodMs, signal);
      } catch (error) {
        if (!signal.aborted) throw error;
      }
    }
  }

  /** A question that is not answered within the period counts as no. */
  async #answers(periodMs: number): Promise<boolean> {
    const answered = new AbortController();
    const signal = AbortSignal.any([answered.signal, this.#stop.signal]);
    const late = this.#clock.sleep(periodMs, signal).then(
      () => "no answer in time",
      () => "stopping",
    );
    const answer = Promise.resolve()
      .then(this.#isAlive)
      .then((alive) => (alive ? null : "not alive"), messageOf);
    const reason = await Promise.race([answer, late]);
    answered.abort();
    if (reason === null) return true;
    if (!this.#stop.signal.aborted) this.#log.warn({ reason }, "watchdog of systemd not fed");
    return false;
  }

  async #send(fields: string[]): Promise<void> {
    if (!this.#environment["NOTIFY_SOCKET"]) return;
    try {
      await run("systemd-notify", fields, { env: this.#environment, timeout: 10_000 });
    } catch (error) {
      this.#log.warn({ fields, reason: messageOf(error) }, "systemd could not be told");
    }
  }
}

/**
 * Half of what the unit's WatchdogSec= allows, in milliseconds; null where there is no watchdog or
 * it is meant for another process (sd_watchdog_enabled(3)).
 */
export function watchdogPeriodMs(environment: NodeJS.ProcessEnv, pid: number): number | null {
  const { WATCHDOG_USEC, WATCHDOG_PID } = environment;
  if (WATCHDOG_PID !== undefined && WATCHDOG_PID !== String(pid)) return null;
  const microseconds = Number(WATCHDOG_USEC);
  return Number.isFinite(microseconds) && microseconds > 0 ? microseconds / 2000 : null;
}

const oneLine = (text: string) => text.replaceAll(/\s+/g, " ").trim();
