import { type ChildProcess, fork } from "node:child_process";
import { mkdir, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import * as v from "valibot";
import type { Aim } from "../aim.ts";
import type { Clock } from "../clock.ts";
import { AgentError, ERROR_CODES, type ErrorCode, messageOf } from "../errors.ts";
import { readJsonIfExists, writeJsonAtomic } from "../files.ts";
import type { Logger } from "../log.ts";
import { createRandom } from "../math/random.ts";
import { parseMethod } from "../method.ts";
import { type ModelMetrics, modelManifestSchema, readModelJson } from "../model.ts";
import { evaluationSchema, type ModelEvaluation } from "./evaluation-file.ts";
import { type GateModel, judge } from "./gate.ts";
import {
  type RunResult,
  type RunSpec,
  runResultSchema,
  type StageName,
  type StageReport,
  stageReportSchema,
} from "./spec.ts";
import type { TrainingPoint } from "./training-point.ts";

/** What a run tells while it goes on. */
export type RunEvent =
  | { readonly type: "stage-started"; readonly stage: StageName }
  | { readonly type: "stage-finished"; readonly stage: StageName; readonly report: StageReport }
  /** A point of the loss curve: steps and seconds so far, and what was seen since the last one. */
  | { readonly type: "trained"; readonly stage: StageName; readonly point: TrainingPoint }
  | {
      readonly type: "progress";
      readonly stage: StageName;
      readonly done: number;
      readonly total: number;
    };

/** A message of the parent to its specialize child: training ends with what it has. */
export interface EndTraining {
  readonly type: "end-training";
}

/** A message of the specialize child to its parent. */
export type ChildMessage =
  | RunEvent
  | { readonly type: "finished"; readonly peakMemoryBytes: number }
  | { readonly type: "failed"; readonly code: ErrorCode; readonly message: string };

/** Measures models side by side in the process that will serve them, one value a folder. */
export type MeasureLatency = (
  modelDirs: readonly string[],
  signal: AbortSignal,
) => Promise<readonly number[]>;

/** Folders and files of one run. */
export function runPaths(runDir: string) {
  return {
    spec: join(runDir, "spec.json"),
    result: join(runDir, "metrics.json"),
    stages: join(runDir, "stages.json"),
    evaluation: join(runDir, "evaluation.json"),
    /** Loss curve of the training: one {@link TrainingPoint} a line; a step's last line counts. */
    training: join(runDir, "training.jsonl"),
    work: join(runDir, "work"),
    /** Networks that could be chosen, their heads, and the file that lists them. */
    front: join(runDir, "front"),
    frontFile: join(runDir, "front.json"),
    dense: join(runDir, "dense"),
    candidate: join(runDir, "candidate"),
  };
}

/**
 * Opens a finished run again for another aim: {@link specialize} then chooses among the networks
 * that the run built, and judges the chosen; nothing is searched or solved anew.
 *
 * @returns the run's spec with the new aim.
 * @throws {AgentError} RUN_FAILED where the run has no such networks, or did not search.
 */
export async function reopenRun(runDir: string, spec: RunSpec, aim: Aim): Promise<RunSpec> {
  const paths = runPaths(runDir);
  if (parseMethod(spec.options.method).kind !== "auto") {
    throw new AgentError(
      "RUN_FAILED",
      `${runDir} was made with --method ${spec.options.method}, so there is nothing to choose from: expected a run of method auto`,
    );
  }
  if ((await readJsonIfExists(paths.frontFile)) === undefined) {
    // Not there yet: the run goes on with the new aim.
    return { ...spec, options: { ...spec.options, aim } };
  }
  const kept: readonly StageName[] = ["head", "search", "compress", "head-refit"];
  const stages = v.parse(v.array(stageReportSchema), (await readJsonIfExists(paths.stages)) ?? []);
  await rm(paths.result, { force: true });
  await rm(paths.evaluation, { force: true });
  await writeJsonAtomic(
    paths.stages,
    stages.filter(({ name }) => kept.includes(name)),
  );
  return { ...spec, options: { ...spec.options, aim } };
}

/**
 * Makes one run in a child process and judges its candidate. A run that was killed is taken up
 * again at the stage where it stopped, by the same call; a finished one returns its result.
 *
 * @param options.onChild called with the child's process id, to lower its priority.
 * @throws {AgentError} RUN_ABORTED when the signal fires or the child is killed (the run can be
 *   resumed), INFERENCE_FAILED when the process that measures dies (so it can), RUN_FAILED or
 *   the child's own code when a stage cannot be done.
 */
export async function specialize(options: {
  spec: RunSpec;
  runDir: string;
  measureLatency: MeasureLatency;
  onEvent: (event: RunEvent) => void;
  onChild?: (pid: number) => void;
  /** Fires where training is to end with what it has: the run's energy is used up. */
  endTraining?: AbortSignal;
  clock: Clock;
  log: Logger;
  signal: AbortSignal;
}): Promise<RunResult> {
  const { spec, runDir, clock, signal } = options;
  const paths = runPaths(runDir);
  const finished = await readJsonIfExists(paths.result);
  if (finished !== undefined) {
    await rm(paths.work, { recursive: true, force: true });
    return v.parse(runResultSchema, finished);
  }
  await mkdir(runDir, { recursive: true });
  await writeJsonAtomic(paths.spec, spec);
  const { peakMemoryBytes } = await runChild(options);
  const evaluation = v.parse(
    evaluationSchema,
    JSON.parse(await readFile(paths.evaluation, "utf8")) as unknown,
  );
  const stages = v.parse(v.array(stageReportSchema), await readJsonIfExists(paths.stages));
  const timed = async <T>(stage: StageName, work: () => Promise<T>): Promise<T> => {
    options.onEvent({ type: "stage-started", stage });
    const start = clock.monotonicMs();
    const value = await work();
    const seconds = (clock.monotonicMs() - start) / 1000;
    // Latency is nothing but inference; the verdict calls the network not at all.
    const report = { name: stage, seconds, runtimeSeconds: stage === "latency" ? seconds : 0 };
    stages.push(report);
    options.onEvent({ type: "stage-finished", stage, report });
    return value;
  };
  const dirs = [paths.dense, paths.candidate];
  if (spec.incumbentDir !== null) dirs.push(spec.incumbentDir);
  const latencies = await timed("latency", () => options.measureLatency(dirs, signal));
  const [dense, candidate, incumbent] = latencies;
  if (dense === undefined || candidate === undefined) {
    throw new AgentError(
      "RUN_FAILED",
      `expected ${dirs.length} latencies, got ${latencies.length}`,
    );
  }
  const result = await timed("verdict", async (): Promise<RunResult> => {
    const verdict = judge(
      {
        dense: gateModel(evaluation.dense, dense),
        candidate: gateModel(evaluation.candidate, candidate),
        incumbent:
          evaluation.incumbent && incumbent !== undefined
            ? {
                ...gateModel(evaluation.incumbent, incumbent),
                keepsClasses: evaluation.incumbent.specialized,
              }
            : null,
      },
      spec.gate,
      createRandom(spec.options.seed).uniform,
    );
    return {
      run: spec.id,
      dense: metricsOf(evaluation.dense, dense),
      incumbent:
        evaluation.incumbent && incumbent !== undefined
          ? metricsOf(evaluation.incumbent, incumbent)
          : null,
      candidate: metricsOf(evaluation.candidate, candidate),
      heldOut: evaluation.heldOut,
      training: evaluation.training,
      generalistParameters: evaluation.generalistParameters,
      chosen: evaluation.chosen,
      refused: evaluation.refused,
      verdict: { ...verdict, reasons: [...verdict.reasons] },
      stages,
      peakMemoryBytes,
      candidateSha256: (
        await readModelJson(join(paths.candidate, "model.json"), modelManifestSchema)
      ).sha256,
      modelPath: join(paths.candidate, "model.onnx"),
      seed: spec.options.seed,
      problems: evaluation.problems,
    };
  });
  await completeManifest(paths.candidate, result.candidate);
  await writeJsonAtomic(paths.result, result);
  await rm(paths.work, { recursive: true, force: true });
  return result;
}

function gateModel(evaluation: ModelEvaluation, latencyMsP50: number): GateModel {
  return { ...evaluation, latencyMsP50 };
}

function metricsOf(evaluation: ModelEvaluation, latencyMsP50: number): ModelMetrics {
  const { parameters, nonzero, bytes } = evaluation;
  return { ...evaluation.scores, parameters, nonzero, bytes, latencyMsP50 };
}

/** The manifest was written before its latency could be known. */
async function completeManifest(candidateDir: string, metrics: ModelMetrics): Promise<void> {
  const path = join(candidateDir, "model.json");
  const manifest = await readModelJson(path, modelManifestSchema);
  await writeJsonAtomic(path, { ...manifest, metrics });
}

async function runChild(
  options: Parameters<typeof specialize>[0],
): Promise<{ peakMemoryBytes: number }> {
  const { runDir, signal, log } = options;
  signal.throwIfAborted();
  const extension = import.meta.url.endsWith(".ts") ? "ts" : "js";
  const script = fileURLToPath(new URL(`./child.${extension}`, import.meta.url));
  const child = fork(script, [runDir], {
    serialization: "advanced",
    stdio: ["ignore", "ignore", "inherit", "ipc"],
  });
  if (child.pid !== undefined) options.onChild?.(child.pid);
  const abort = () => child.kill("SIGKILL");
  signal.addEventListener("abort", abort, { once: true });
  const endTraining = () => child.send({ type: "end-training" } satisfies EndTraining);
  if (options.endTraining?.aborted) endTraining();
  options.endTraining?.addEventListener("abort", endTraining, { once: true });
  try {
    return await outcomeOf(child, options.onEvent);
  } catch (error) {
    if (signal.aborted) {
      throw new AgentError(
        "RUN_ABORTED",
        `run stopped; it goes on from its last stage when resumed`,
        {
          cause: error,
        },
      );
    }
    log.error({ runDir, reason: messageOf(error) }, "specialize run failed");
    throw error;
  } finally {
    signal.removeEventListener("abort", abort);
    options.endTraining?.removeEventListener("abort", endTraining);
    child.kill("SIGKILL");
  }
}

/** What the listener throws ends the run, not the process that the run is watched by. */
function tell(
  onEvent: (event: RunEvent) => void,
  event: RunEvent,
  reject: (reason: unknown) => void,
): void {
  try {
    onEvent(event);
  } catch (error) {
    reject(error);
  }
}

function outcomeOf(
  child: ChildProcess,
  onEvent: (event: RunEvent) => void,
): Promise<{ peakMemoryBytes: number }> {
  return new Promise((resolve, reject) => {
    child.on("message", (message: ChildMessage) => {
      if (message.type === "finished") resolve({ peakMemoryBytes: message.peakMemoryBytes });
      else if (message.type === "failed") {
        const code = message.code in ERROR_CODES ? message.code : "RUN_FAILED";
        reject(new AgentError(code, message.message));
      } else tell(onEvent, message, reject);
    });
    child.on("error", reject);
    child.on("exit", (code, killedBy) => {
      const how = killedBy === null ? `exit code ${code}` : `signal ${killedBy}`;
      const hint = killedBy === "SIGKILL" ? " (out of memory? lower specialize.batchSize)" : "";
      reject(
        new AgentError(
          killedBy === null ? "RUN_FAILED" : "RUN_ABORTED",
          `the specialize child ended with ${how}${hint}; resume the run`,
        ),
      );
    });
  });
}
