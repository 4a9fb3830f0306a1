import type { Clock } from "../clock.ts";
import type { ModelSession, TensorValue } from "./session.ts";

/** Runs a model once and tells how many milliseconds that took. */
export type LatencyProbe = () => Promise<number>;

/** Milliseconds of one run, over all rounds. */
export interface Latency {
  medianMs: number;
  p90Ms: number;
  rounds: number;
}

/** A probe of one session with fixed feeds. */
export function sessionProbe(
  session: ModelSession,
  feeds: Readonly<Record<string, TensorValue>>,
  clock: Clock,
): LatencyProbe {
  return async () => {
    const startMs = clock.monotonicMs();
    await session.run(feeds);
    return clock.monotonicMs() - startMs;
  };
}

/**
 * Compares models in one process: each round runs every model once, and each round begins with
 * another one, so that heat, frequency steps and other programs weigh on all of them alike.
 *
 * @returns one latency a probe, in their order.
 * @throws the signal's reason between two runs.
 */
export async function measureLatency(
  probes: readonly LatencyProbe[],
  options: { rounds: number; warmUp: number; signal?: AbortSignal },
): Promise<Latency[]> {
  const { rounds, warmUp, signal } = options;
  const samples = probes.map((): number[] => []);
  for (let round = -warmUp; round < rounds; round++) {
    for (let i = 0; i < probes.length; i++) {
      signal?.throwIfAborted();
      const which = (i + Math.max(round, 0)) % probes.length;
      const ms = await probes[which]!();
      if (round >= 0) samples[which]!.push(ms);
    }
  }
  return samples.map(summarizeLatency);
}

/** Median and 90th percentile of samples in milliseconds; NaN where there are none. */
export function summarizeLatency(samplesMs: readonly number[]): Latency {
  const sorted = [...samplesMs].sort((a, b) => a - b);
  const at = (share: number) => sorted[Math.min(sorted.length - 1, share * sorted.length) | 0];
  return { medianMs: at(0.5) ?? Number.NaN, p90Ms: at(0.9) ?? Number.NaN, rounds: sorted.length };
}
