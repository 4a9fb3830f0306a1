import type { Clock } from "../clock.ts";

/** Longest time between two readings that is still taken as measured. */
const MAX_GAP_MS = 10 * 60_000;

/**
 * Adds up the energy of a run from power readings at any interval: trapezoids over monotonic
 * time. Time with no reading at either end, or with more than ten minutes between two, is not
 * guessed but counted as missed.
 */
export class EnergyMeter {
  readonly #clock: Clock;
  #last: { atMs: number; watts: number | null } | null = null;
  #joules = 0;
  #measuredMs = 0;
  #missedMs = 0;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** @param watts power drawn now, or null where it cannot be read. */
  add(watts: number | null): void {
    const now = { atMs: this.#clock.monotonicMs(), watts };
    const last = this.#last;
    this.#last = now;
    if (last === null) return;
    const elapsedMs = now.atMs - last.atMs;
    if (last.watts === null || now.watts === null || elapsedMs > MAX_GAP_MS) {
      this.#missedMs += elapsedMs;
      return;
    }
    this.#joules += (((last.watts + now.watts) / 2) * elapsedMs) / 1000;
    this.#measuredMs += elapsedMs;
  }

  /** Watt-hours between the first reading and the last; null where no time could be measured. */
  get energyWh(): number | null {
    return this.#measuredMs === 0 ? null : this.#joules / 3600;
  }

  /** Milliseconds between the first reading and the last that `energyWh` does not hold. */
  get missedMs(): number {
    return this.#missedMs;
  }
}
