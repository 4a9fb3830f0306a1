import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { RunResult } from "../../agent/specialize/spec.ts";
import { watchMemory } from "./process-memory.ts";

/** What the run is made of. */
export interface SpecializeBenchOptions {
  /** Training pictures a class; default 32. */
  shots?: number;
}

const ROOT = join(import.meta.dirname, "..", "..");
const BENCH = join(ROOT, "..", "shared", "bench");

/**
 * One whole run of `taco specialize` as a person starts it: seconds of each stage with the share
 * spent inside ONNX Runtime, and the peak memory of each process.
 *
 * @returns `skipped` with the reason where the bench data is absent.
 */
export async function benchSpecialize(options: SpecializeBenchOptions = {}): Promise<object> {
  const model = join(BENCH, "models", "efficientnet_b0_imagenet1k.onnx");
  const labels = join(BENCH, "images", "monkeys-10");
  if (!existsSync(model) || !existsSync(labels)) {
    return { skipped: "the bench data is not beside this checkout (../shared/bench)" };
  }
  const shots = options.shots ?? 32;
  const out = await mkdtemp(join(tmpdir(), "taco-bench-run-"));
  try {
    const main = join(ROOT, "agent", "main.ts");
    const flags = ["--generalist", model, "--labels", labels, "--shots", String(shots), "--json"];
    const child = spawn(
      process.execPath,
      ["--import", "tsx", main, "specialize", ...flags, "--out", out],
      { stdio: ["ignore", "pipe", "inherit"] },
    );
    let text = "";
    child.stdout.on("data", (chunk) => {
      text += String(chunk);
    });
    const peaks = watchMemory(child.pid ?? 0);
    const [code] = (await once(child, "close")) as [number];
    const peakBytes = peaks.stop();
    if (code !== 0) return { failed: `taco specialize ended with code ${code}` };
    const result = JSON.parse(text) as RunResult;
    return {
      subject: "EfficientNet-B0, monkeys-10",
      shots,
      trainingPictures: result.training.pictures,
      stages: result.stages.map(({ name, seconds, runtimeSeconds }) => ({
        name,
        seconds,
        runtimeShare: seconds > 0 ? runtimeSeconds / seconds : 0,
      })),
      totalSeconds: result.stages.reduce((sum, { seconds }) => sum + seconds, 0),
      peakMemoryBytes: { ...peakBytes, specializeByRusage: result.peakMemoryBytes },
      accuracy: { dense: result.dense.accuracy, candidate: result.candidate.accuracy },
      nonzeroRatio: result.dense.nonzero / result.candidate.nonzero,
    };
  } finally {
    await rm(out, { recursive: true, force: true });
  }
}
