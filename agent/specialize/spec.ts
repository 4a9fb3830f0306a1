import * as v from "valibot";
import { type Aim, MEASURES } from "../aim.ts";
import { modelMetricsSchema, preprocessingSchema } from "../model.ts";
import { frontPointSchema } from "./front.ts";

const whole = v.pipe(v.number(), v.integer());

const factor = v.pipe(v.number(), v.minValue(1));

/** See {@link Aim}. */
const aimSchema: v.GenericSchema<Aim> = v.union([
  v.strictObject({ aim: v.picklist(MEASURES), maxDropPoints: v.number() }),
  v.strictObject({ speedup: factor }),
  v.strictObject({ nonzeroReduction: factor }),
  v.strictObject({ maxBytes: factor }),
]);

/**
 * `runs/<id>/spec.json`: everything that a run depends on, fixed before it starts, so that a run
 * that was killed goes on to the same result but for the last bits of floating-point sums.
 */
export const runSpecSchema = v.strictObject({
  formatVersion: v.literal(1),
  id: v.string(),
  createdAt: v.string(),
  softwareVersion: v.string(),
  generalist: v.strictObject({
    name: v.string(),
    sha256: v.string(),
    modelPath: v.string(),
    /** Class names of the generalist, in the order of its output. */
    classes: v.array(v.string()),
    /** Other names of each class (a WordNet id, synonyms), in the same order. */
    classAliases: v.array(v.array(v.string())),
    preprocessing: preprocessingSchema,
  }),
  /** Folder of the model that serves now; null where none does. */
  incumbentDir: v.nullable(v.string()),
  pictures: v.array(
    v.strictObject({
      path: v.string(),
      label: v.string(),
      burst: v.string(),
      role: v.picklist(["train", "heldOut"]),
    }),
  ),
  /** Pictures and classes left out before the run began, each with its reason. */
  problems: v.array(v.strictObject({ subject: v.string(), reason: v.string() })),
  /** Label → class of the generalist, where the names differ. */
  labelMap: v.record(v.string(), v.string()),
  options: v.strictObject({
    /** What is done to the network, as `parseMethod` reads it. */
    method: v.string(),
    /** What an `auto` method is to reach. */
    aim: aimSchema,
    /** Seconds that an `auto` method may search. */
    searchSeconds: v.number(),
    /** File that keeps latencies measured on this machine for the next search. */
    latencyTablePath: v.string(),
    /** Columns per block of SparseGPT. */
    blockSize: whole,
    /** Damping of the Hessian relative to its mean diagonal. */
    damping: v.number(),
    /** Pictures in the calibration set, copies by flipping included. */
    calibrationPictures: whole,
    /** Pictures per call of the network while calibrating. */
    batchSize: whole,
    seed: whole,
    executionProviders: v.array(v.string()),
    /** Threads of one operator; 0 is one a processor. */
    intraOpThreads: whole,
    maxMegapixels: v.number(),
    /** How the compressed network is trained; null: not at all. Runs of older software have none. */
    fineTune: v.optional(
      v.nullable(
        v.strictObject({
          maxSeconds: v.number(),
          /** Of activations and gradients. */
          memoryBytes: v.number(),
          /** Of lessons on disk. Runs of older software keep none. */
          lessonBytes: v.optional(v.number(), 0),
          schedule: v.picklist(["one-shot", "gradual"]),
        }),
      ),
      null,
    ),
  }),
  gate: v.strictObject({
    maxDropPoints: v.number(),
    minMacroF1: v.number(),
    maxLatencyRatio: v.number(),
    confidence: v.number(),
    onThinEvidence: v.picklist(["probation", "refuse"]),
  }),
});

/** See {@link runSpecSchema}. */
export type RunSpec = v.InferOutput<typeof runSpecSchema>;

/** Stages of a run, in order. */
export const STAGES = [
  "pictures",
  "features",
  "head",
  "search",
  "compress",
  "head-refit",
  "fine-tune",
  "evaluate",
  "latency",
  "verdict",
] as const;

/** See {@link STAGES}. */
export type StageName = (typeof STAGES)[number];

/** How long a stage took. */
export const stageReportSchema = v.strictObject({
  name: v.picklist(STAGES),
  /** Seconds of wall time, in the life of the run in which the stage was finished. */
  seconds: v.number(),
  /** Seconds of those spent inside ONNX Runtime. */
  runtimeSeconds: v.number(),
});

/** See {@link stageReportSchema}. */
export type StageReport = v.InferOutput<typeof stageReportSchema>;

const differenceSchema = v.strictObject({
  points: v.number(),
  lowPoints: v.number(),
  highPoints: v.number(),
  bursts: v.number(),
});

/** `runs/<id>/metrics.json`: the result of a run, as `taco specialize --json` prints it. */
export const runResultSchema = v.strictObject({
  run: v.string(),
  dense: modelMetricsSchema,
  incumbent: v.nullable(modelMetricsSchema),
  candidate: modelMetricsSchema,
  heldOut: v.strictObject({ frames: whole, bursts: whole }),
  training: v.strictObject({ pictures: whole, classes: v.array(v.string()) }),
  verdict: v.strictObject({
    accepted: v.boolean(),
    onThinEvidence: v.boolean(),
    reasons: v.array(v.string()),
    againstDense: differenceSchema,
    againstIncumbent: v.nullable(differenceSchema),
  }),
  /** All parameters of the generalist, which reductions are counted from. */
  generalistParameters: whole,
  /** The point of the front that became the candidate, with what was predicted of it. */
  chosen: frontPointSchema,
  /** What could not be done to the candidate's network, and why. */
  refused: v.array(v.strictObject({ name: v.string(), reason: v.string() })),
  stages: v.array(stageReportSchema),
  peakMemoryBytes: v.number(),
  /** SHA-256 of the candidate: its name in the registry once it is published. */
  candidateSha256: v.string(),
  /** Absolute path of the candidate's ONNX file in the run's folder. */
  modelPath: v.string(),
  seed: whole,
  /** Pictures that could not be used, and classes left out, each with its reason. */
  problems: v.array(v.strictObject({ subject: v.string(), reason: v.string() })),
});

/** See {@link runResultSchema}. */
export type RunResult = v.InferOutput<typeof runResultSchema>;
