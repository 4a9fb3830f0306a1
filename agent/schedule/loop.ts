import type { Clock } from "../clock.ts";
import type { Logger } from "../log.ts";
import { type Decision, decide, type ScheduleRules, type ScheduleState } from "./policy.ts";

/** What a {@link ScheduleLoop} is made of. */
export interface ScheduleLoopOptions {
  rules: ScheduleRules;
  clock: Clock;
  log: Logger;
  /** Milliseconds between two decisions. */
  intervalMs: number;
  /** The state at this moment; the loop adds the clock's time. */
  readState: () => Promise<Omit<ScheduleState, "nowMs">>;
  /** Gets every decision, before `onRun`; keep its two times, and show its reasons. */
  onDecision: (decision: Decision) => void | Promise<void>;
  /**
   * Begins a run; resolves as soon as `readState` shows it as `runningRun`. Where it rejects, the
   * next try is at the next occurrence of the cron.
   */
  onRun: () => Promise<void>;
}

/**
 * Decides at an interval whether a run starts. An error of what it was given is logged and the
 * loop goes on, as it must outlive a full disk.
 */
export class ScheduleLoop {
  readonly #options: ScheduleLoopOptions;
  #stop: AbortController | null = null;
  #looping: Promise<void> = Promise.resolve();

  constructor(options: ScheduleLoopOptions) {
    this.#options = options;
  }

  /** Takes the first decision at once. Does nothing where it runs already. */
  start(): void {
    if (this.#stop !== null) return;
    this.#stop = new AbortController();
    this.#looping = this.#loop(this.#stop.signal);
  }

  /** Resolves when no decision is being taken any more. */
  async stop(): Promise<void> {
    this.#stop?.abort();
    await this.#looping;
    this.#stop = null;
  }

  async #loop(signal: AbortSignal): Promise<void> {
    const { clock, intervalMs, log } = this.#options;
    while (!signal.aborted) {
      try {
        await this.#decide(signal);
        await clock.sleep(intervalMs, signal);
      } catch (error) {
        if (signal.aborted) return;
        log.error({ error }, "the schedule could not decide; it tries again");
        await clock.sleep(intervalMs, signal).catch(() => undefined);
      }
    }
  }

  async #decide(signal: AbortSignal): Promise<void> {
    const { rules, clock, readState, onDecision, onRun } = this.#options;
    const state = await readState();
    if (signal.aborted) return;
    const decision = decide(rules, { ...state, nowMs: clock.nowMs() });
    await onDecision(decision);
    if (decision.action === "run") await onRun();
  }
}
