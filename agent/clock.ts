import { setTimeout as delay } from "node:timers/promises";

/** The only source of time for every part that decides something by it; tests pass their own. */
export interface Clock {
  /** Wall clock, milliseconds since 1970-01-01T00:00:00Z. May jump in either direction. */
  nowMs(): number;
  /** Milliseconds from an arbitrary start; never goes backwards. */
  monotonicMs(): number;
  /** Resolves after `ms` milliseconds, or rejects with the signal's reason. */
  sleep(ms: number, signal?: AbortSignal): Promise<void>;
}

const LONGEST_TIMER_MS = 2 ** 31 - 1;

/** The clock of the machine. */
export const systemClock: Clock = {
  nowMs: () => Date.now(),
  monotonicMs: () => performance.now(),
  sleep: async (ms, signal) => {
    // Node's timers hold 31 bits and fire at once beyond.
    for (let left = ms; left > 0 || ms === left; left -= LONGEST_TIMER_MS) {
      await delay(Math.min(left, LONGEST_TIMER_MS), undefined, signal ? { signal } : {});
    }
  },
};

/** ISO 8601 in UTC with milliseconds, as every time in the database and in messages is written. */
export function isoTime(ms: number): string {
  return new Date(ms).toISOString();
}
