import { join } from "node:path";
import { systemClock } from "../../agent/clock.ts";
import { readPicture } from "../../agent/data/picture.ts";
import type { ModelManifest } from "../../agent/model.ts";
import { runClassifier } from "../../agent/runtime/classifier.ts";
import { type ModelSession, openSession } from "../../agent/runtime/session.ts";
import type { Inference } from "../../agent/serve/inference.ts";
import { openServingSubject, percentile, SESSION } from "./serving-subject.ts";

/** How much is measured. */
export interface ServingBenchOptions {
  /** Rounds, each of all pictures by either way; default 8. */
  rounds?: number;
  /** Pictures a round; default 40. */
  pictures?: number;
}

const LIMITS = { maxMegapixels: 100 };

/**
 * What the agent costs: pictures a second from end to end through the inference child, over
 * those of a bare loop of decode + `session.run` in one process. The same pictures by turns.
 */
export async function benchServing(options: ServingBenchOptions = {}): Promise<object> {
  const { rounds = 8, pictures: count = 40 } = options;
  const subject = await openServingSubject(count);
  try {
    const { registry, inference, pictures, sha256s } = subject;
    await inference.start();
    const manifest = await registry.readManifest(sha256s[0]);
    const session = await openSession(join(registry.folder(sha256s[0]), "model.onnx"), SESSION);
    const bare: number[] = [];
    const ahead: number[] = [];
    const served: number[] = [];
    // The first round of each warms caches and pools, and is thrown away.
    for (let round = -1; round < rounds; round++) {
      const bareRate = await rate(() => bareLoop(session, manifest, pictures), pictures.length);
      const aheadRate = await rate(() => aheadLoop(session, manifest, pictures), pictures.length);
      const servedRate = await rate(() => throughChild(inference, pictures), pictures.length);
      if (round < 0) continue;
      bare.push(bareRate);
      ahead.push(aheadRate);
      served.push(servedRate);
    }
    await session.release();
    const ratios = over(served, bare);
    return {
      subject: subject.name,
      rounds,
      picturesPerRound: pictures.length,
      bareFramesPerSecond: percentile(bare, 0.5),
      servedFramesPerSecond: percentile(served, 0.5),
      servedOverBare: percentile(ratios, 0.5),
      servedOverBareWorst: Math.min(...ratios),
      target: 0.95,
      // The same loop with the next picture decoded meanwhile: what no overhead at all would be.
      aheadFramesPerSecond: percentile(ahead, 0.5),
      servedOverAhead: percentile(over(served, ahead), 0.5),
      childRssBytes: inference.status().health?.rssBytes ?? null,
    };
  } finally {
    await subject.close();
  }
}

function over(rates: readonly number[], yardstick: readonly number[]): number[] {
  return rates.map((value, i) => value / (yardstick[i] ?? Number.NaN));
}

async function rate(work: () => Promise<void>, frames: number): Promise<number> {
  const startMs = systemClock.monotonicMs();
  await work();
  return (1000 * frames) / (systemClock.monotonicMs() - startMs);
}

async function bareLoop(
  session: ModelSession,
  manifest: ModelManifest,
  pictures: readonly string[],
): Promise<void> {
  for (const path of pictures) {
    const { tensor } = await readPicture(path, manifest.preprocessing, LIMITS);
    await runClassifier(session, manifest, tensor);
  }
}

async function aheadLoop(
  session: ModelSession,
  manifest: ModelManifest,
  pictures: readonly string[],
): Promise<void> {
  const decode = (path: string) => readPicture(path, manifest.preprocessing, LIMITS);
  let next = pictures[0] === undefined ? undefined : decode(pictures[0]);
  for (let i = 1; next !== undefined; i++) {
    const { tensor } = await next;
    const path = pictures[i];
    next = path === undefined ? undefined : decode(path);
    await runClassifier(session, manifest, tensor);
  }
}

async function throughChild(inference: Inference, pictures: readonly string[]): Promise<void> {
  const calls = [];
  for (const path of pictures) {
    await inference.room();
    calls.push(inference.classify({ path }));
  }
  for (const answer of await Promise.all(calls)) {
    if (answer.kind === "failed") throw new Error(`expected a class, got: ${answer.reason}`);
  }
}
