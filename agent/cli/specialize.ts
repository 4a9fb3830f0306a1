import { mkdir } from "node:fs/promises";
import { join, resolve } from "node:path";
import { Command, Option } from "commander";
import * as v from "valibot";
import { type Aim, type AimParts, parseAim } from "../aim.ts";
import { isoTime, systemClock } from "../clock.ts";
import { aimOf, fineTuneOf, stationConfigSchema } from "../config/schema.ts";
import { openDataset } from "../data/dataset.ts";
import { lowerPriority } from "../device/priority.ts";
import { AgentError, messageOf } from "../errors.ts";
import { readJsonIfExists } from "../files.ts";
import { resolveGeneralist } from "../generalist/add.ts";
import { createLogger, type Logger } from "../log.ts";
import type { ModelMetrics } from "../model.ts";
import { Inference } from "../serve/inference.ts";
import { describePlan } from "../specialize/compression-plan.ts";
import { chooseClasses, makeSpec } from "../specialize/plan.ts";
import { RunProgress } from "../specialize/progress.ts";
import { reopenRun, runPaths, specialize } from "../specialize/run.ts";
import { type RunResult, type RunSpec, runSpecSchema } from "../specialize/spec.ts";
import { splitByShots } from "../specialize/split.ts";
import { LATENCY_ROUNDS } from "../station/latency.ts";
import { runId } from "../station/runs.ts";
import { addMethodFlags, integer, real } from "./arguments.ts";
import { cacheDir } from "./cache.ts";
import { askStation } from "./control.ts";
import { count, duration, megabytes, percent, progressView, table } from "./terminal.ts";
import { softwareVersion } from "./version.ts";

/** Defaults of a one-off run are those of a station's configuration. */
const DEFAULTS = v.parse(stationConfigSchema, { station: { id: "one-off", dir: "." } });

interface Flags extends AimParts {
  config?: string;
  generalist: string;
  labels?: string;
  labelMap?: string;
  shots: number;
  heldOut: number;
  seed: number;
  method?: string;
  sparsity?: number;
  searchMinutes: number;
  fineTune: boolean;
  minutes: number;
  trainMemory: number;
  lessonDisk: number;
  schedule: typeof DEFAULTS.fineTune.schedule;
  cropTop: number;
  cropBottom: number;
  minLabels: number;
  blockSize: number;
  damping: number;
  calibrationPictures: number;
  batchSize: number;
  incumbent?: string;
  threads: number;
  provider: string[];
  out?: string;
  resume?: string;
  force: boolean;
  json: boolean;
}

/** `taco specialize`: one run, on a folder of labeled pictures or on a station. */
export function specializeCommand(): Command {
  const { specialize: run, fineTune, intake, inference } = DEFAULTS;
  const command = new Command("specialize")
    .description("make a specialized, compressed model from labeled pictures and judge it")
    .option("--config <file>", "run on this station's own labels, and serve what is accepted")
    .option("--generalist <name|file|URL>", "model to start from", DEFAULTS.generalist)
    .option("--labels <folder>", "folder of class folders, or with COCO Camera Traps annotations")
    .option("--label-map <file>", "JSON object: label → class of the generalist")
    .option("--shots <n>", "training pictures a class, at most", integer(1), run.shots)
    .option("--held-out <n>", "held-out pictures a class, at most", integer(1), 1000)
    .option("--min-labels <n>", "training pictures that make a class", integer(2), 2)
    .option(
      "--seed <n>",
      "fixes the split and all else that is left to chance",
      integer(0),
      run.seed,
    )
    .option("--sparsity <share>", "short for --method unstructured:<share>", real(0, 0.99))
    .option("--block-size <n>", "columns pruned at a time", integer(1), run.blockSize)
    .option("--damping <share>", "of the Hessian's mean diagonal", real(1e-8, 1), run.damping)
    .option(
      "--calibration-pictures <n>",
      "pictures that pruning is fitted to, mirrored copies included",
      integer(1),
      run.calibrationPictures,
    )
    .option("--no-fine-tune", "leave the compressed network as the solvers made it")
    .option("--minutes <n>", "minutes of training, at most", real(0.1, 1440), fineTune.maxMinutes)
    .option(
      "--train-memory <MB>",
      "for activations and gradients of training",
      integer(64),
      fineTune.trainMemoryMb,
    )
    .option(
      "--lesson-disk <MB>",
      "for training views that come again; 0: every view is new",
      integer(0),
      fineTune.lessonDiskMb,
    )
    .addOption(
      new Option("--schedule <how>", "train once behind all pruning, or after each halving of it")
        .choices(["one-shot", "gradual"])
        .default(fineTune.schedule),
    )
    .option("--incumbent <folder>", "model folder to compare with: what serves now")
    .option("--crop-top <pixels>", "cut off every picture's top", integer(0), intake.cropTop)
    .option("--crop-bottom <pixels>", "cut off the bottom", integer(0), intake.cropBottom)
    .option("--batch-size <n>", "pictures in one pass", integer(1), run.batchSize)
    .option("--threads <n>", "threads of one operator; 0: one a processor", integer(0), 0)
    .option("--provider <name...>", "execution providers, in order", inference.executionProviders)
    .option("--out <folder>", "folder of the run; default runs/<time> in this one")
    .option(
      "--resume <folder>",
      "take up the run in this folder; with an aim, choose anew from what it built",
    )
    .option("--force", "with --config: run although the schedule would wait", false)
    .option("--json", "print one JSON object and nothing else on standard output", false)
    .action(async (flags: Flags) => {
      const log = createLogger("warn");
      if (flags.config !== undefined) {
        await askStation(flags.config, "specialize", { force: flags.force });
        return;
      }
      const result = await runOnce(flags, log);
      process.stdout.write(flags.json ? `${JSON.stringify(result, null, 2)}\n` : summary(result));
    });
  return addMethodFlags(command, run.searchMinutes);
}

async function runOnce(flags: Flags, log: Logger): Promise<RunResult> {
  const resumed = flags.resume === undefined ? undefined : resolve(flags.resume);
  const id = runId(systemClock.nowMs());
  const runDir = resumed ?? resolve(flags.out ?? join("runs", id));
  const spec = resumed ? await resumedSpec(resumed, flags) : await plan(flags, id, log);
  await mkdir(runDir, { recursive: true });
  const abort = new AbortController();
  const stop = () => abort.abort();
  process.once("SIGINT", stop).once("SIGTERM", stop);
  const view = progressView(process.stderr);
  const progress = new RunProgress(systemClock.monotonicMs(), spec.options);
  const inference = probeInference(spec, runPaths(runDir).dense, log);
  try {
    return await specialize({
      spec,
      runDir,
      measureLatency: async (dirs) =>
        (await inference.measure(dirs, LATENCY_ROUNDS)).map(({ medianMs }) => medianMs),
      onEvent: (event) => view.update(progress.update(event, systemClock.monotonicMs())),
      onChild: (pid) => void lowerPriority(pid),
      clock: systemClock,
      log,
      signal: abort.signal,
    });
  } finally {
    view.stop();
    await inference.stop();
    process.off("SIGINT", stop).off("SIGTERM", stop);
  }
}

/** An inference process like a station's, used for nothing but measuring. */
function probeInference(spec: RunSpec, modelDir: string, log: Logger): Inference {
  const { inference } = DEFAULTS;
  return new Inference({
    currentModelDir: () => Promise.resolve(modelDir),
    executionProviders: spec.options.executionProviders,
    intraOpThreads: inference.intraOpThreads,
    queueLength: inference.queueLength,
    memoryLimitMb: inference.memoryLimitMb,
    heartbeatMs: inference.heartbeatSeconds * 1000,
    hangMs: inference.hangSeconds * 1000,
    maxMegapixels: spec.options.maxMegapixels,
    clock: systemClock,
    log,
  });
}

/** The spec of an earlier run, with another aim where one is given. */
async function resumedSpec(runDir: string, flags: Flags): Promise<RunSpec> {
  const spec = await readSpec(runDir);
  const aim = aimFlags(flags);
  return aim === undefined ? spec : reopenRun(runDir, spec, aim);
}

async function readSpec(runDir: string): Promise<RunSpec> {
  const value = await readJsonIfExists(runPaths(runDir).spec);
  if (value === undefined) {
    throw new AgentError("RUN_FAILED", `expected a run in ${runDir}, found no spec.json in it`);
  }
  return v.parse(runSpecSchema, value);
}

async function plan(flags: Flags, id: string, log: Logger): Promise<RunSpec> {
  if (flags.labels === undefined) {
    throw new AgentError(
      "TOO_FEW_LABELS",
      "expected --labels <folder> (or --config <file>, or --resume <folder>), got none of them",
    );
  }
  const options = specializeOptions(flags);
  const generalist = await resolveGeneralist({
    source: flags.generalist,
    dir: generalistCache(),
    log,
  });
  const dataset = await openDataset(resolve(flags.labels), {
    burstGapSeconds: DEFAULTS.intake.burstGapSeconds,
  });
  const split = splitByShots(dataset.pictures, {
    shots: flags.shots,
    heldOutPerClass: flags.heldOut,
    seed: flags.seed,
  });
  const chosen = chooseClasses(split, flags.minLabels);
  const { gate, intake } = DEFAULTS;
  return makeSpec({
    id,
    createdAt: isoTime(systemClock.nowMs()),
    softwareVersion: softwareVersion(),
    generalist: { ...generalist, modelPath: resolve(generalist.modelPath) },
    crop: flags,
    incumbentDir: flags.incumbent === undefined ? null : resolve(flags.incumbent),
    pictures: chosen.pictures,
    problems: [
      ...dataset.problems.map(({ path, reason }) => ({ subject: path, reason })),
      ...chosen.problems,
    ],
    labelMap: await readLabelMap(flags.labelMap),
    options: {
      ...options,
      aim: aimFlags(flags) ?? aimOf(DEFAULTS),
      searchSeconds: 60 * options.searchMinutes,
      latencyTablePath: join(cacheDir(), "latency.json"),
      executionProviders: flags.provider,
      maxMegapixels: intake.maxMegapixels,
      fineTune: fineTuneOf({ fineTune: fineTuneFlags(flags) }),
    },
    gate,
  });
}

function methodOf(flags: Flags): string {
  if (flags.method !== undefined && flags.sparsity !== undefined) {
    throw new AgentError("CONFIG_INVALID", "expected --method or --sparsity, got both");
  }
  if (flags.method !== undefined) return flags.method;
  if (flags.sparsity !== undefined) return `unstructured:${flags.sparsity}`;
  return DEFAULTS.specialize.method;
}

function aimFlags(flags: Flags): Aim | undefined {
  try {
    return parseAim(flags);
  } catch (error) {
    throw new AgentError("CONFIG_INVALID", messageOf(error), { cause: error });
  }
}

/** The flags that are keys of `specialize` too, held to the same rules as in a configuration. */
function specializeOptions(flags: Flags): typeof DEFAULTS.specialize {
  const { blockSize, damping, calibrationPictures, batchSize, seed, searchMinutes } = flags;
  const method = methodOf(flags);
  const result = v.safeParse(stationConfigSchema.entries.specialize, {
    ...{ method, blockSize, damping, calibrationPictures, batchSize, seed, searchMinutes },
    intraOpThreads: flags.threads,
  });
  if (result.success) return result.output;
  const [issue] = result.issues;
  const key = v.getDotPath(issue) ?? "flags";
  throw new AgentError("CONFIG_INVALID", `--${key}: ${issue.message}`);
}

function fineTuneFlags(flags: Flags): typeof DEFAULTS.fineTune {
  const { fineTune: enabled, minutes, trainMemory, lessonDisk, schedule } = flags;
  return {
    ...DEFAULTS.fineTune,
    enabled,
    maxMinutes: minutes,
    trainMemoryMb: trainMemory,
    lessonDiskMb: lessonDisk,
    schedule,
  };
}

async function readLabelMap(path: string | undefined): Promise<Record<string, string>> {
  if (path === undefined) return {};
  const value = await readJsonIfExists(path);
  const result = v.safeParse(v.record(v.string(), v.string()), value);
  if (result.success) return result.output;
  throw new AgentError(
    "LABELS_INVALID",
    `${path}: expected a JSON object of label → class of the generalist, as {"fox": "red fox"}`,
  );
}

/** Generalists of one-off commands; a station keeps its own in `station.dir`. */
export function generalistCache(environment?: NodeJS.ProcessEnv): string {
  return join(cacheDir(environment), "generalists");
}

/** What a search expected of its choice; nothing where the method was stated. */
function outlook({ chosen, dense, candidate }: RunResult): string[] {
  const { latencyRatio, predictedLatencyRatio, expectedDropPoints } = chosen;
  if (latencyRatio === null || predictedLatencyRatio === null) return [];
  const measured = (candidate.latencyMsP50 ?? 0) / (dense.latencyMsP50 ?? 1);
  const drop = expectedDropPoints === null ? "unknown" : `${expectedDropPoints.toFixed(1)} points`;
  return [
    `latency over dense: predicted ${predictedLatencyRatio.toFixed(2)}, built ${latencyRatio.toFixed(2)}, ` +
      `served ${measured.toFixed(2)}; expected drop ${drop}`,
  ];
}

/** The result of a run as tables and sentences. */
function summary(result: RunResult): string {
  const { dense, incumbent, candidate, verdict, heldOut, stages } = result;
  const columns = incumbent ? [dense, incumbent, candidate] : [dense, candidate];
  const names = incumbent ? ["dense", "incumbent", "candidate"] : ["dense", "candidate"];
  const row = (name: string, show: (m: ModelMetrics) => string) => [name, ...columns.map(show)];
  const scores = table(
    ["", ...names],
    [
      row("accuracy", (m) => percent(m.accuracy)),
      row("accuracy by burst", (m) => percent(m.burstAccuracy)),
      row("macro F1", (m) => m.macroF1.toFixed(3)),
      row("calibration error", (m) => m.calibrationError.toFixed(3)),
      row("parameters", (m) => count(m.parameters)),
      row(
        "non-zero (generalist ÷)",
        (m) => `${count(m.nonzero)} (÷${(result.generalistParameters / m.nonzero).toFixed(2)})`,
      ),
      row("bytes", (m) => megabytes(m.bytes)),
      row("latency p50", (m) =>
        m.latencyMsP50 === null ? "—" : `${m.latencyMsP50.toFixed(1)} ms`,
      ),
    ],
  );
  const times = stages.map(({ name, seconds }) => `${name} ${duration(seconds)}`).join(", ");
  return [
    scores,
    `network: ${describePlan(result.chosen.plan)}`,
    ...outlook(result),
    `held out: ${heldOut.frames} frames of ${heldOut.bursts} bursts`,
    `verdict: ${verdict.accepted ? "accepted" : "refused"}`,
    ...verdict.reasons.map((reason) => `  · ${reason}`),
    ...result.problems.slice(0, 20).map(({ subject, reason }) => `left out: ${subject}: ${reason}`),
    `stages: ${times}; peak memory ${megabytes(result.peakMemoryBytes)}`,
    `model: ${result.modelPath}`,
    "",
  ].join("\n");
}
