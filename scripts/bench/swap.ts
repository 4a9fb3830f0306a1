import { systemClock } from "../../agent/clock.ts";
import type { Inference } from "../../agent/serve/inference.ts";
import { swapTo } from "../../agent/serve/swap.ts";
import { openServingSubject, percentile } from "./serving-subject.ts";

/** How much is measured. */
export interface SwapBenchOptions {
  /** Swaps; default 10. */
  swaps?: number;
  /** Seconds of load before each swap, the yardstick; default 2. */
  quietSeconds?: number;
  /** Pictures offered a second; default 15, about half of what two cores can do. */
  framesPerSecond?: number;
}

interface Sample {
  sentMs: number;
  answeredMs: number;
}

/**
 * What a swap costs the pictures that come meanwhile: their latency (asked → answered) from the
 * start of the load to half a second after the switch, over that of the time between swaps, at a
 * constant rate of arrival.
 */
export async function benchSwap(options: SwapBenchOptions = {}): Promise<object> {
  const { swaps = 10, quietSeconds = 2, framesPerSecond = 15 } = options;
  const subject = await openServingSubject(40);
  const { registry, inference, pictures, sha256s } = subject;
  try {
    await inference.start();
    const stop = new AbortController();
    const load = constantLoad(inference, pictures, framesPerSecond, stop.signal);
    const spans: { fromMs: number; toMs: number }[] = [];
    for (let swap = 0; swap < swaps; swap++) {
      await systemClock.sleep(quietSeconds * 1000);
      const fromMs = systemClock.monotonicMs();
      const sha256 = sha256s[(swap + 1) % 2] ?? sha256s[0];
      const outcome = await swapTo({ registry, inference, sha256 });
      if (outcome.kind === "refused") throw new Error(`expected a swap, got: ${outcome.reason}`);
      await systemClock.sleep(500);
      spans.push({ fromMs, toMs: systemClock.monotonicMs() });
    }
    stop.abort();
    const samples = await load;
    const during = samples.filter((s) => spans.some((span) => overlaps(s, span)));
    const quiet = samples.filter((s) => !during.includes(s));
    const latency = (some: readonly Sample[]) => some.map((s) => s.answeredMs - s.sentMs);
    const p99Quiet = percentile(latency(quiet), 0.99);
    const p99During = percentile(latency(during), 0.99);
    return {
      subject: subject.name,
      swaps,
      // One that is lost would never be answered, and one that failed is thrown.
      framesAnswered: samples.length,
      framesDuringSwaps: during.length,
      p50QuietMs: percentile(latency(quiet), 0.5),
      p50DuringMs: percentile(latency(during), 0.5),
      p99QuietMs: p99Quiet,
      p99DuringMs: p99During,
      p99Ratio: p99During / p99Quiet,
      longestGapQuietMs: longestGap(quiet),
      longestGapDuringMs: longestGap(during),
      swapMs: percentile(
        spans.map((span) => span.toMs - span.fromMs - 500),
        0.5,
      ),
    };
  } finally {
    await subject.close();
  }
}

function overlaps(sample: Sample, span: { fromMs: number; toMs: number }): boolean {
  return sample.sentMs < span.toMs && sample.answeredMs > span.fromMs;
}

/** Offers pictures at a constant rate until told to stop; every one must be classified. */
async function constantLoad(
  inference: Inference,
  pictures: readonly string[],
  framesPerSecond: number,
  signal: AbortSignal,
): Promise<Sample[]> {
  const samples: Promise<Sample>[] = [];
  const startMs = systemClock.monotonicMs();
  while (!signal.aborted) {
    const dueMs = startMs + (samples.length * 1000) / framesPerSecond;
    const waitMs = dueMs - systemClock.monotonicMs();
    if (waitMs > 0) await systemClock.sleep(waitMs);
    const path = pictures[samples.length % pictures.length] ?? "";
    samples.push(timed(inference, path, dueMs));
  }
  return Promise.all(samples);
}

/** One picture; its latency counts from when it was due, also where this process was late. */
async function timed(inference: Inference, path: string, sentMs: number): Promise<Sample> {
  const answer = await inference.classify({ path });
  if (answer.kind === "failed") throw new Error(`expected a class, got: ${answer.reason}`);
  return { sentMs, answeredMs: systemClock.monotonicMs() };
}

/** Longest time between two answers among frames that were sent one after the other. */
function longestGap(samples: readonly Sample[]): number {
  const gaps = samples.flatMap((sample, i) => {
    const before = samples[i - 1];
    // A pair across two spans is no gap.
    if (before === undefined || sample.sentMs - before.sentMs > 1000) return [];
    return [sample.answeredMs - before.answeredMs];
  });
  return Math.max(...gaps);
}
