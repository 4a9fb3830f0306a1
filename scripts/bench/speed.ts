import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { createLogger } from "../../agent/log.ts";
import { modelManifestSchema, readModelJson } from "../../agent/model.ts";
import { readGraph } from "../../agent/onnx/graph.ts";
import { type CompressionPlan, describePlan } from "../../agent/specialize/compression-plan.ts";
import { createEngine, type Engine } from "../../agent/specialize/engine.ts";
import { compareLatency, type TimedGraph } from "../../agent/specialize/graph-latency.ts";
import { applyPlan } from "../../agent/specialize/pipeline.ts";
import type { RunResult } from "../../agent/specialize/spec.ts";
import { meanWithInterval } from "./interval.ts";
import { watchMemory } from "./process-memory.ts";
import { openSpecialist } from "./specialist.ts";

/** What to measure. */
export interface SpeedOptions {
  /** Models of the bench data; default EfficientNet-B0, MobileNetV2 and ViT-Tiny. */
  readonly models?: readonly string[];
  /** Seeds of the shots; default 5 of them. A search is made on the first. */
  readonly seeds?: readonly number[];
  /** Minutes that the search may take; default 5. */
  readonly searchMinutes?: number;
  /** Flags of the aim; default the least latency at one point. */
  readonly aim?: readonly string[];
  readonly labels?: string;
}

const ROOT = join(import.meta.dirname, "..", "..");
const BENCH = join(ROOT, "..", "shared", "bench");

/**
 * What a search reaches: `taco specialize` as a person starts it, for one aim, on the first seed's
 * 32 shots a class; and what the plan that it chose is worth when it is carried out anew on the
 * shots of the other seeds, which the search never saw. Accuracy is that of held-out pictures; speed
 * is measured here, by turns, between the dense and the compressed network.
 *
 * @returns `skipped` with the reason where the bench data is absent.
 */
export async function benchSpeed(options: SpeedOptions = {}): Promise<object> {
  const models = options.models ?? [
    "efficientnet_b0_imagenet1k",
    "mobilenetv2_1.0_imagenet1k",
    "vit_tiny_patch16_224_imagenet1k",
  ];
  const aim = options.aim ?? ["--aim", "latency", "--max-drop-points", "1"];
  const labels = join(BENCH, "images", options.labels ?? "monkeys-10");
  if (!existsSync(join(BENCH, "models")) || !existsSync(labels)) {
    return { skipped: "the bench data is not beside this checkout (../shared/bench)" };
  }
  const rows: object[] = [];
  const [first = 1, ...others] = options.seeds ?? [1, 2, 3, 4, 5];
  const flags = [...aim, "--search-minutes", `${options.searchMinutes ?? 5}`];
  for (const model of models) {
    const path = join(BENCH, "models", `${model}.onnx`);
    const { plan, ...searched } = await oneRun(path, labels, first, flags);
    const carriedOut: Awaited<ReturnType<typeof carryOut>>[] = [];
    for (const seed of others) carriedOut.push(await carryOut(model, labels, seed, plan));
    const all = [searched, ...carriedOut];
    rows.push({
      model,
      plan: describePlan(plan),
      differencePoints: meanWithInterval(all.map((run) => run.differencePoints)),
      speedupBatch1: meanWithInterval(all.map((run) => run.speedup.batch1)),
      speedupBatch8: meanWithInterval(all.map((run) => run.speedup.batch8)),
      searched,
      carriedOut,
    });
  }
  return { aim: flags.join(" "), rows };
}

/** Builds a plan on the shots of another seed. */
async function carryOut(model: string, labels: string, seed: number, plan: CompressionPlan) {
  const subject = { model, labels: basename(labels), seed };
  const own = await openSpecialist(subject);
  const size = plan.inputSize;
  const sized = size === null ? own : await openSpecialist({ ...subject, size: size.height });
  try {
    const { backbone: dense } = own.network;
    const before = await own.evaluate(dense);
    const { graph } = await applyPlan(dense, plan, {
      environmentAt: () => Promise.resolve(sized.environment()),
    });
    const after = await sized.evaluate(graph);
    const { height, width } = own.preprocessing;
    const graphs = [
      { graph: dense, height, width },
      { graph, ...(size ?? { height, width }) },
    ];
    return {
      seed,
      accuracy: { dense: before.accuracy, candidate: after.accuracy },
      differencePoints: 100 * (after.accuracy - before.accuracy),
      speedup: await speedupOf(graphs, own.engine),
    };
  } finally {
    await own.close();
    if (sized !== own) await sized.close();
  }
}

async function oneRun(model: string, labels: string, seed: number, aim: readonly string[]) {
  const out = await mkdtemp(join(tmpdir(), "taco-bench-speed-"));
  try {
    const main = join(ROOT, "agent", "main.ts");
    const flags = ["--generalist", model, "--labels", labels, "--shots", "32", "--json"];
    const child = spawn(
      process.execPath,
      ["--import", "tsx", main, "specialize", ...flags, ...aim, "--seed", `${seed}`, "--out", out],
      { stdio: ["ignore", "pipe", "ignore"] },
    );
    let text = "";
    child.stdout.on("data", (chunk) => {
      text += String(chunk);
    });
    const start = performance.now();
    const peaks = watchMemory(child.pid ?? 0);
    const [code] = (await once(child, "close")) as [number];
    peaks.stop();
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
async function speedupOf(graphs: readonly TimedGraph[], engine: Engine) {
  const ratio = async (batch: number): Promise<number> => {
    const signal = new AbortController().signal;
    const [dense, candidate] = await compareLatency(graphs, batch, engine, signal);
    return dense! / candidate!;
  };
  return { batch1: await ratio(1), batch8: await ratio(8) };
}
