import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createLogger } from "../../agent/log.ts";
import { modelManifestSchema, readModelJson } from "../../agent/model.ts";
import { readGraph } from "../../agent/onnx/graph.ts";
import { describePlan } from "../../agent/specialize/compression-plan.ts";
import { createEngine, type Engine } from "../../agent/specialize/engine.ts";
import { compareLatency, type TimedGraph } from "../../agent/specialize/graph-latency.ts";
import type { RunResult } from "../../agent/specialize/spec.ts";

const MAIN = join(import.meta.dirname, "..", "..", "agent", "main.ts");

/**
 * One `taco specialize` as a person starts it, 32 shots a class, and what came of it.
 *
 * @param model path of an ONNX file. @param labels folder of labeled pictures.
 * @param flags further ones. @throws {Error} where the run fails.
 */
export async function runSpecialize(
  model: string,
  labels: string,
  seed: number,
  flags: readonly string[],
) {
  const out = await mkdtemp(join(tmpdir(), "taco-bench-run-"));
  try {
    const given = ["--generalist", model, "--labels", labels, "--shots", "32", "--json"];
    const child = spawn(
      process.execPath,
      [
        "--import",
        "tsx",
        MAIN,
        "specialize",
        ...given,
        ...flags,
        "--seed",
        `${seed}`,
        "--out",
        out,
      ],
      { stdio: ["ignore", "pipe", "ignore"] },
    );
    let text = "";
    child.stdout.on("data", (chunk) => {
      text += String(chunk);
    });
    const start = performance.now();
    const [code] = (await once(child, "close")) as [number];
    if (code !== 0) throw new Error(`taco specialize of ${model} ended with code ${code}`);
    const result = JSON.parse(text) as RunResult;
    const { dense, candidate, verdict, chosen } = result;
    return {
      seed,
      accuracy: { dense: dense.accuracy, candidate: candidate.accuracy },
      differencePoints: verdict.againstDense.points,
      interval: [verdict.againstDense.lowPoints, verdict.againstDense.highPoints],
      accepted: verdict.accepted,
      speedup: await speedup(out),
      predictedLatencyRatio: chosen.predictedLatencyRatio,
      builtLatencyRatio: chosen.latencyRatio,
      expectedDropPoints: chosen.expectedDropPoints,
      nonzeroReduction: result.generalistParameters / candidate.nonzero,
      bytesOfDense: candidate.bytes / dense.bytes,
      plan: chosen.plan,
      planInWords: describePlan(chosen.plan),
      training: chosen.training,
      stages: result.stages,
      seconds: (performance.now() - start) / 1000,
      peakMemoryBytes: result.peakMemoryBytes,
    };
  } finally {
    await rm(out, { recursive: true, force: true });
  }
}

/** Median time of the dense model over the candidate's, in sessions that are opened alike. */
async function speedup(runDir: string): Promise<{ batch1: number; batch8: number }> {
  const engine = await createEngine({
    executionProviders: ["cpu"],
    intraOpThreads: 0,
    log: createLogger("error"),
  });
  try {
    const graphs = await Promise.all(
      ["dense", "candidate"].map(async (name) => {
        const { preprocessing } = await readModelJson(
          join(runDir, name, "model.json"),
          modelManifestSchema,
        );
        const graph = readGraph(await readFile(join(runDir, name, "model.onnx")));
        return { graph, height: preprocessing.height, width: preprocessing.width };
      }),
    );
    return await speedupOf(graphs, engine);
  } finally {
    await engine.close();
  }
}

/** How many times as fast the second network is as the first. */
export async function speedupOf(graphs: readonly TimedGraph[], engine: Engine) {
  const ratio = async (batch: number): Promise<number> => {
    const signal = new AbortController().signal;
    const [dense, candidate] = await compareLatency(graphs, batch, engine, signal);
    return dense! / candidate!;
  };
  return { batch1: await ratio(1), batch8: await ratio(8) };
}
