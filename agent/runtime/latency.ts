/** Runs a model once and tells how many milliseconds that took. */
export type LatencyProbe = (round: number) => Promise<number>;

/** Milliseconds of one run, over all rounds. */
export interface Latency {
  medianMs: number;
  p90Ms: number;
  rounds: number;
}

/**
 * Compares models in one process: each round runs every model once, and each round begins with
 * another one, so that heat, frequency steps, caches and other programs weigh on all alike.
 *
 * @param betweenRounds lets other work of the process have its turn.
 * @returns milliseconds by probe, then by round.
 */
export async function measureByTurns(
  probes: readonly LatencyProbe[],
  rounds: number,
  betweenRounds: () => Promise<void>,
): Promise<number[][]> {
  const samplesMs = probes.map((): number[] => []);
  for (let round = 0; round < rounds; round++) {
    for (let i = 0; i < probes.length; i++) {
      const which = (i + round) % probes.length;
      samplesMs[which]!.push(await probes[which]!(round));
    }
    await betweenRounds();
  }
  return samplesMs;
}

/** Median and 90th percentile of samples in milliseconds; NaN where there are none. */
export function summarizeLatency(samplesMs: readonly number[]): Latency {
  const sorted = [...samplesMs].sort((a, b) => a - b);
  const at = (share: number) => sorted[Math.min(sorted.length - 1, share * sorted.length) | 0];
  return { medianMs: at(0.5) ?? Number.NaN, p90Ms: at(0.9) ?? Number.NaN, rounds: sorted.length };
}
