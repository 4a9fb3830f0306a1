import { join, resolve } from "node:path";
import { Command } from "commander";
import * as v from "valibot";
import { type Aim, type AimParts, parseAim } from "../aim.ts";
import { stationConfigSchema } from "../config/schema.ts";
import { listPictures } from "../data/picture-folder.ts";
import { AgentError, messageOf } from "../errors.ts";
import { guessGeneralist } from "../generalist/inspect.ts";
import { readSidecar, sidecarPathOf } from "../generalist/sidecar.ts";
import { createLogger } from "../log.ts";
import { type Method, parseMethod } from "../method.ts";
import type { Preprocessing } from "../model.ts";
import {
  type CompressModelProgress,
  type CompressModelResult,
  compressModel,
} from "../specialize/compress-model.ts";
import { describePlan } from "../specialize/compression-plan.ts";
import { readModelFile } from "../specialize/network.ts";
import { addMethodFlags, integer, real } from "./arguments.ts";
import { cacheDir } from "./cache.ts";
import { count, duration, megabytes, percent, table } from "./terminal.ts";

/** Defaults are those of a station's configuration. */
const DEFAULTS = v.parse(stationConfigSchema, { station: { id: "one-off", dir: "." } });

interface Flags extends AimParts {
  method?: string;
  calibrate: string;
  out: string;
  inputSize?: number;
  searchMinutes: number;
  calibrationPictures: number;
  batchSize: number;
  damping: number;
  seed: number;
  threads: number;
  provider: string[];
  json: boolean;
}

/** `taco compress`: the compression engine alone, on any ONNX classifier, without labels. */
export function compressCommand(): Command {
  const { specialize: run, inference } = DEFAULTS;
  const command = new Command("compress")
    .description("make an ONNX classifier smaller or faster with nothing but pictures")
    .argument("<model>", "an ONNX file; the JSON of the same name says how pictures become input")
    .requiredOption("--calibrate <folder>", "pictures, of what the model will see; no labels")
    .requiredOption("--out <file>", "ONNX file to write")
    .option("--input-size <pixels>", "height and width of the input", integer(16))
    .option(
      "--calibration-pictures <n>",
      "pictures that it is fitted to, mirrored copies included",
      integer(1),
      run.calibrationPictures,
    )
    .option("--batch-size <n>", "pictures in one pass", integer(1), run.batchSize)
    .option("--damping <share>", "of the Hessian's mean diagonal", real(1e-8, 1), run.damping)
    .option("--seed <n>", "fixes all that is left to chance", integer(0), run.seed)
    .option("--threads <n>", "threads of one operator; 0: one a processor", integer(0), 0)
    .option("--provider <name...>", "execution providers, in order", inference.executionProviders)
    .option("--json", "print one JSON object and nothing else on standard output", false)
    .action(async (model: string, flags: Flags) => {
      const result = await compress(model, flags);
      process.stdout.write(flags.json ? `${JSON.stringify(result, null, 2)}\n` : summary(result));
    });
  return addMethodFlags(command, run.searchMinutes);
}

/** What `--json` prints. */
interface CompressReport extends CompressModelResult {
  /** What nothing stated and was taken for granted, one sentence each. */
  readonly assumed: readonly string[];
}

async function compress(model: string, flags: Flags): Promise<CompressReport> {
  const { method, aim } = whatToDo(flags);
  const modelPath = resolve(model);
  const { preprocessing, assumed } = await preprocessingOf(modelPath);
  const pictures = await listPictures(resolve(flags.calibrate));
  const abort = new AbortController();
  const stop = () => abort.abort(new AgentError("RUN_ABORTED", "stopped; nothing was written"));
  process.once("SIGINT", stop).once("SIGTERM", stop);
  const tell = progressLine(process.stderr);
  try {
    const result = await compressModel(
      {
        ...flags,
        modelPath,
        preprocessing,
        pictures,
        method,
        aim,
        outPath: resolve(flags.out),
        executionProviders: flags.provider,
        intraOpThreads: flags.threads,
        maxMegapixels: DEFAULTS.intake.maxMegapixels,
        latencyTablePath: join(cacheDir(), "latency.json"),
        maxSeconds: 60 * flags.searchMinutes,
      },
      { log: createLogger("error"), onProgress: tell, signal: abort.signal },
    );
    return { ...result, assumed };
  } finally {
    process.off("SIGINT", stop).off("SIGTERM", stop);
  }
}

/** @throws {AgentError} CONFIG_INVALID where the flags contradict each other. */
function whatToDo(flags: Flags): { method: Method; aim: Aim | null } {
  try {
    const aim = parseAim(flags) ?? null;
    const method = parseMethod(flags.method ?? (aim === null ? "" : "auto"));
    if (method.kind === "auto") {
      if (aim !== null) return { method, aim };
      throw new RangeError(
        "--method auto: expected what to reach, one of --aim, --speedup, --nonzero-reduction and --max-bytes",
      );
    }
    if (aim !== null) {
      throw new RangeError(`--method ${flags.method}: an aim goes with --method auto alone`);
    }
    const { inputSize } = flags;
    if (inputSize === undefined) return { method, aim };
    if (method.inputSize !== null) throw new RangeError("expected --input-size or size:, got both");
    return { method: { ...method, inputSize }, aim };
  } catch (error) {
    throw new AgentError("CONFIG_INVALID", messageOf(error), { cause: error });
  }
}

/** From the JSON beside the model, or as most classifiers of its input size want it. */
async function preprocessingOf(
  modelPath: string,
): Promise<{ preprocessing: Preprocessing; assumed: readonly string[] }> {
  const sidecar = await readSidecar(sidecarPathOf(modelPath));
  if (sidecar) return { preprocessing: sidecar.preprocessing, assumed: [] };
  const { preprocessing, reasons } = guessGeneralist(await readModelFile(modelPath));
  return { preprocessing, assumed: reasons };
}

/** One line a stage, or one that is written over on a terminal. */
function progressLine(stream: NodeJS.WriteStream): (progress: CompressModelProgress) => void {
  let last = "";
  return ({ stage, done, total }) => {
    if (stream.isTTY) {
      const part = Math.round((100 * done) / Math.max(1, total));
      stream.write(`\r${stage}: ${part} %   ${done >= total ? "\n" : ""}`);
      return;
    }
    if (stage !== last) stream.write(`${stage}\n`);
    last = stage;
  };
}

/** The result as tables and sentences. */
function summary(result: CompressReport): string {
  const { before, after, latencyMs, heldBack } = result;
  const factor = (a: number, b: number) => `÷${(a / b).toFixed(2)}`;
  const size = (name: string, show: (value: number) => string, key: keyof typeof before) => [
    name,
    show(before[key]),
    show(after[key]),
    factor(before[key], after[key]),
  ];
  const time = (name: string, pair: typeof latencyMs.batch8) =>
    pair === null
      ? []
      : [
          [
            name,
            `${pair.before.toFixed(1)} ms`,
            `${pair.after.toFixed(1)} ms`,
            factor(pair.before, pair.after),
          ],
        ];
  const sizes = table(
    ["", "before", "after", ""],
    [
      size("parameters", count, "parameters"),
      size("non-zero", count, "nonzero"),
      size("bytes", megabytes, "bytes"),
      ...time("latency, 1 picture", latencyMs.batch1),
      ...time("latency, 8 pictures", latencyMs.batch8),
    ],
  );
  const layers = table(
    ["layer", "what was done", "zeros", "relative loss"],
    result.layers.map(({ name, method, sparsity, relativeLoss }) => [
      name,
      method,
      percent(sparsity),
      relativeLoss === null ? "—" : relativeLoss.toPrecision(3),
    ]),
  );
  const { predictedSpeedup } = result;
  return [
    layers,
    sizes,
    `done: ${describePlan(result.plan)}` +
      (predictedSpeedup === null ? "" : `; expected ${predictedSpeedup.toFixed(2)}× the speed`),
    `held back: ${heldBack.pictures} pictures, relative output error ${heldBack.relativeError.toPrecision(3)}, ` +
      `same top answer ${percent(heldBack.agreement)}`,
    ...result.refused.map(({ name, reason }) => `not done: ${name}: ${reason}`),
    ...result.assumed.map((reason) => `assumed: ${reason}`),
    ...result.problems.slice(0, 20).map(({ subject, reason }) => `left out: ${subject}: ${reason}`),
    `${duration(result.seconds.total)}, peak memory ${megabytes(result.peakMemoryBytes)}`,
    `model: ${result.out}`,
    "",
  ].join("\n");
}
