import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, readdirSync } from "node:fs";
import { copyFile, mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { stringify } from "yaml";
import { openStoreReadOnly } from "../../agent/store/open.ts";
import { watchMemory } from "./process-memory.ts";

/** How much a station is given. */
export interface StationBenchOptions {
  /** Pictures that come at once; default 300. */
  pictures?: number;
  /** Files that lie in the inbox beside them, for the second half; default 10,000. */
  others?: number;
}

const ROOT = join(import.meta.dirname, "..", "..");
const BENCH = join(ROOT, "..", "shared", "bench");
const POLL_MS = 100;
/** For what takes some hundredths of a second. */
const SHORT_POLL_MS = 2;
/** Pictures that come one by one. */
const SINGLE = 20;
/** Time in which a station has got over files that came at once. */
const CALM_MS = 3000;

/**
 * A whole station as a process: pictures a second from the file in the inbox to the prediction in
 * SQLite, every commit flushed to the disk, and the peak memory of each process; and how much longer
 * one picture takes, alone, where many files lie in the inbox already.
 *
 * @returns `skipped` with the reason where the bench data is absent.
 */
export async function benchStation(options: StationBenchOptions = {}): Promise<object> {
  const generalist = join(BENCH, "models", "efficientnet_b0_imagenet1k.onnx");
  const source = join(BENCH, "images", "imagenet-sample");
  if (!existsSync(generalist) || !existsSync(source)) {
    return { skipped: "the bench data is not beside this checkout (../shared/bench)" };
  }
  const root = await mkdtemp(join(tmpdir(), "taco-bench-station-"));
  const dir = join(root, "station");
  const config = join(root, "station.yaml");
  const settings = {
    station: { id: "bench", dir },
    generalist,
    intake: { scanIntervalSeconds: 1, settleMilliseconds: 0 },
    schedule: { enabled: false },
    log: { level: "error" },
  };
  await writeFile(config, stringify(settings));
  const main = join(ROOT, "agent", "main.ts");
  const agent = spawn(process.execPath, ["--import", "tsx", main, "run", "--config", config], {
    stdio: ["ignore", "ignore", "inherit"],
  });
  const memory = watchMemory(agent.pid ?? 0);
  try {
    const all = readdirSync(source);
    const names = all.slice(0, options.pictures ?? 300);
    const inbox = join(dir, "inbox");
    await mkdir(inbox, { recursive: true });
    // The first picture says that the station serves.
    await copyFile(join(source, names[0]!), join(inbox, names[0]!));
    await until(() => predictions(dir) === 1);
    for (const name of names.slice(1)) await copyFile(join(source, name), join(inbox, name));
    const start = performance.now();
    await until(() => predictions(dir) === names.length);
    const seconds = (performance.now() - start) / 1000;
    let known = names.length;
    const singly = async (): Promise<number> => {
      const ms: number[] = [];
      await delay(CALM_MS);
      for (const name of all.slice(known, known + SINGLE)) {
        await copyFile(join(source, name), join(inbox, name));
        const began = performance.now();
        known++;
        await until(() => predictions(dir) === known, SHORT_POLL_MS);
        ms.push(performance.now() - began);
      }
      return ms.sort((a, b) => a - b)[ms.length >> 1]!;
    };
    const aloneMs = await singly();
    const others = options.others ?? 10_000;
    for (let i = 0; i < others; i++) await writeFile(join(inbox, `${i}.txt`), "");
    const amongManyMs = await singly();
    return {
      subject: "EfficientNet-B0",
      pictures: names.length - 1,
      framesPerSecond: (names.length - 1) / seconds,
      oneByOne: { aloneMs, files: others, amongManyMs, ratio: amongManyMs / aloneMs },
      peakMemoryBytes: memory.stop(),
    };
  } finally {
    memory.stop();
    agent.kill("SIGTERM");
    await once(agent, "exit");
    await rm(root, { recursive: true, force: true });
  }
}

function predictions(dir: string): number {
  const path = join(dir, "taco.db");
  if (!existsSync(path)) return 0;
  const store = openStoreReadOnly(path);
  try {
    return store.reports.summary(Date.now()).predictionsTotal;
  } finally {
    store.close();
  }
}

async function until(condition: () => boolean, pollMs = POLL_MS): Promise<void> {
  const end = performance.now() + 300_000;
  for (;;) {
    try {
      if (condition()) return;
    } catch (error) {
      // The database is being made.
      if (performance.now() > end) throw error;
    }
    if (performance.now() > end) throw new Error("the station did not get there in five minutes");
    await delay(pollMs);
  }
}
