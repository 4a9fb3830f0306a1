import * as v from "valibot";
import { AgentError, messageOf } from "./errors.ts";
import { readJsonIfExists } from "./files.ts";

const triple = v.tuple([v.number(), v.number(), v.number()]);
const sha = v.pipe(v.string(), v.regex(/^[0-9a-f]{64}$/, "expected a SHA-256 in lower-case hex"));
const positive = v.pipe(v.number(), v.integer(), v.minValue(1));
const pixels = v.pipe(v.number(), v.integer(), v.minValue(0));

/**
 * How a picture becomes the network's input, in this order: turn upright by EXIF, cut
 * `cropTop`/`cropBottom` pixels (the camera's information banner), resize, cut the center,
 * scale: `(rgb / 255 − mean) / std`, channels first.
 */
export const preprocessingSchema = v.strictObject({
  /** Height of the network's input in pixels. */
  height: positive,
  /** Width of the network's input in pixels. */
  width: positive,
  mean: triple,
  std: triple,
  /** `shortSide`: scale until the short side has `size` pixels; `stretch`: straight to the input. */
  resize: v.variant("mode", [
    v.strictObject({ mode: v.literal("shortSide"), size: positive }),
    v.strictObject({ mode: v.literal("stretch") }),
  ]),
  /** Interpolation, by sharp's names; `cubic` is bicubic. */
  kernel: v.picklist(["nearest", "linear", "cubic", "lanczos3"]),
  /** Pixels of the upright picture cut at its top before anything else. */
  cropTop: pixels,
  /** Pixels of the upright picture cut at its bottom before anything else. */
  cropBottom: pixels,
});

/** See {@link preprocessingSchema}. */
export type Preprocessing = v.InferOutput<typeof preprocessingSchema>;

/** The same view of a picture for a network with another input size, in pixels. */
export function preprocessingAt(
  preprocessing: Preprocessing,
  { height, width }: { readonly height: number; readonly width: number },
): Preprocessing {
  const { resize } = preprocessing;
  if (resize.mode === "stretch") return { ...preprocessing, height, width };
  const scale = Math.min(height / preprocessing.height, width / preprocessing.width);
  const size = Math.max(height, width, Math.round(resize.size * scale));
  return { ...preprocessing, height, width, resize: { mode: "shortSide", size } };
}

/** What one model scored on held-out pictures, and what it weighs. */
export const modelMetricsSchema = v.strictObject({
  /** Share of held-out frames whose top class is right, in [0, 1]. */
  accuracy: v.number(),
  /** Unweighted mean of the classes' F1 scores, in [0, 1]. */
  macroF1: v.number(),
  /** Share of each class's held-out frames that were found. */
  recall: v.record(v.string(), v.number()),
  /** Expected calibration error over 15 equal bins of confidence, in [0, 1]. */
  calibrationError: v.number(),
  /** Share of held-out bursts right by the mean of their frames' probabilities. */
  burstAccuracy: v.number(),
  /** Floating-point values stored in initializers. */
  parameters: v.number(),
  /** Those of `parameters` that are not zero. */
  nonzero: v.number(),
  /** Size of the ONNX file in bytes. */
  bytes: v.number(),
  /** Median milliseconds of one picture in the serving process; null until measured there. */
  latencyMsP50: v.nullable(v.number()),
});

/** See {@link modelMetricsSchema}. */
export type ModelMetrics = v.InferOutput<typeof modelMetricsSchema>;

/** `model.json`: all that must be known to serve a model. Lies beside `model.onnx`. */
export const modelManifestSchema = v.strictObject({
  formatVersion: v.literal(1),
  /** SHA-256 of `model.onnx`; also the name of the folder in the registry. */
  sha256: sha,
  /** For people: `efficientnet_b0 · 12 classes · 50 % sparse`. */
  name: v.string(),
  createdAt: v.string(),
  softwareVersion: v.string(),
  origin: v.strictObject({
    /** Name of the generalist it was made from. */
    generalist: v.string(),
    generalistSha256: sha,
    /** Run that made it; null for an imported generalist. */
    run: v.nullable(v.string()),
    /** Model that served when it was made; null where there was none. */
    incumbentSha256: v.nullable(sha),
  }),
  /** Class names in the order of the output. */
  classes: v.pipe(v.array(v.string()), v.minLength(1)),
  /** Graph input, float32 `[N, 3, height, width]`. */
  inputName: v.string(),
  /** Graph output, float32 `[N, classes]`: logits, no softmax. */
  outputName: v.string(),
  preprocessing: preprocessingSchema,
  metrics: v.nullable(modelMetricsSchema),
  /** What was done to each layer, in the order of the network. */
  layers: v.array(
    v.strictObject({
      name: v.string(),
      method: v.string(),
      /** Share of zeros in the layer's weights, in [0, 1]. */
      sparsity: v.number(),
      /** ‖(Ŵ−W)X‖² / ‖WX‖² on the calibration pictures; null where nothing was changed. */
      relativeLoss: v.nullable(v.number()),
    }),
  ),
});

/** See {@link modelManifestSchema}. */
export type ModelManifest = v.InferOutput<typeof modelManifestSchema>;

/**
 * `check.json`: inputs that anyone can make again from a seed, and the logits that the model
 * gave for them where it was made. A model that answers otherwise is not served.
 */
export const knownAnswersSchema = v.strictObject({
  formatVersion: v.literal(1),
  /** Seeds of the inputs, one picture each (see `runtime/known-answers.ts`). */
  seeds: v.pipe(v.array(v.pipe(v.number(), v.integer())), v.minLength(1)),
  /** `seeds.length` rows of one logit a class. */
  logits: v.array(v.array(v.number())),
  /** Largest allowed |difference| relative to the largest |logit| of the row. */
  tolerance: v.number(),
});

/** See {@link knownAnswersSchema}. */
export type KnownAnswers = v.InferOutput<typeof knownAnswersSchema>;

/**
 * Reads and validates a JSON file of a model folder.
 *
 * @throws {AgentError} MODEL_INVALID naming the file and what does not fit.
 */
export async function readModelJson<S extends v.GenericSchema>(
  path: string,
  schema: S,
): Promise<v.InferOutput<S>> {
  let value: unknown;
  try {
    value = await readJsonIfExists(path);
  } catch (error) {
    throw new AgentError("MODEL_INVALID", `${path} is no JSON: ${messageOf(error)}`, {
      cause: error,
    });
  }
  if (value === undefined) {
    throw new AgentError("MODEL_INVALID", `${path} is missing: the model folder is not complete`);
  }
  const result = v.safeParse(schema, value);
  if (result.success) return result.output;
  const [issue] = result.issues;
  const at = issue ? v.getDotPath(issue) : null;
  throw new AgentError(
    "MODEL_INVALID",
    `${path}: ${at === null ? "" : `${at}: `}${issue?.message ?? "does not fit the schema"}`,
  );
}
