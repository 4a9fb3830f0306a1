import { readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import * as v from "valibot";
import { AgentError, messageOf, systemCode } from "../errors.ts";
import { readJsonIfExists } from "../files.ts";
import type { Preprocessing } from "../model.ts";

const triple = v.tuple([v.number(), v.number(), v.number()]);
const size = v.pipe(v.number(), v.integer(), v.minValue(1));

/**
 * The JSON that lies beside an ONNX classifier under the same name and says what the graph does
 * not: what the classes are called and how a picture becomes its input. Other fields are allowed
 * and left alone.
 */
const sidecarSchema = v.looseObject({
  name: v.pipe(v.string(), v.minLength(1)),
  input: v.looseObject({
    name: v.string(),
    /** `[batch, 3, height, width]`; the batch may be a name or a number. */
    shape: v.tuple([v.union([v.string(), v.number()]), v.literal(3), size, size]),
    layout: v.optional(v.literal("NCHW"), "NCHW"),
    dtype: v.optional(v.literal("float32"), "float32"),
  }),
  output: v.looseObject({ name: v.string() }),
  /** Tensor that feeds the classifier; null where the head has none of its own. */
  classifier_input: v.optional(v.nullable(v.string()), null),
  classes: size,
  /** A text file, one class a line, relative to this JSON; or the names themselves. */
  labels: v.union([v.string(), v.array(v.string())]),
  preprocessing: v.looseObject({
    color: v.optional(v.literal("RGB"), "RGB"),
    mean: triple,
    std: triple,
    resize: v.string(),
    crop: v.optional(v.string(), "none"),
  }),
  licence: v.optional(v.union([v.string(), v.looseObject({ stated: v.string() })])),
  sha256: v.optional(v.pipe(v.string(), v.regex(/^[0-9a-f]{64}$/))),
  source: v.optional(v.unknown()),
});

/** A parsed sidecar, with its class names read. */
export interface Sidecar {
  readonly name: string;
  readonly inputName: string;
  readonly outputName: string;
  /** Class names in the order of the output, each different. */
  readonly classes: string[];
  /** Other names of each class, such as its WordNet id. */
  readonly classAliases: string[][];
  readonly preprocessing: Preprocessing;
  readonly classifierInput: string | null;
  readonly licence: string | null;
  /** SHA-256 of the model as the sidecar states it; null where it does not. */
  readonly sha256: string | null;
  /** Where the model came from, as it was written. */
  readonly source: unknown;
}

/** Path of the JSON that belongs to a model: `model.onnx` → `model.json`. */
export function sidecarPathOf(modelPath: string): string {
  return `${modelPath.replace(/\.onnx$/i, "")}.json`;
}

/**
 * Reads a sidecar and its labels.
 *
 * @returns undefined where the file does not exist.
 * @throws {AgentError} GENERALIST_UNAVAILABLE naming the field that does not fit.
 */
export async function readSidecar(path: string): Promise<Sidecar | undefined> {
  let value: unknown;
  try {
    value = await readJsonIfExists(path);
  } catch (error) {
    throw invalid(path, `no JSON: ${messageOf(error)}`, error);
  }
  if (value === undefined) return undefined;
  const result = v.safeParse(sidecarSchema, value);
  if (!result.success) {
    const [issue] = result.issues;
    throw invalid(path, `${v.getDotPath(issue) ?? "the file"}: ${issue.message}`);
  }
  const json = result.output;
  const lines =
    typeof json.labels === "string"
      ? await readLabelLines(join(dirname(path), json.labels))
      : json.labels;
  if (lines.length !== json.classes) {
    throw invalid(path, `expected ${json.classes} labels, got ${lines.length}`);
  }
  const [, , height, width] = json.input.shape;
  const { mean, std, resize, crop } = json.preprocessing;
  return {
    name: json.name,
    inputName: json.input.name,
    outputName: json.output.name,
    ...parseLabels(lines),
    preprocessing: {
      height,
      width,
      mean,
      std,
      ...parseResize(path, resize, crop, { height, width }),
      cropTop: 0,
      cropBottom: 0,
    },
    classifierInput: json.classifier_input,
    licence: typeof json.licence === "object" ? json.licence.stated : (json.licence ?? null),
    sha256: json.sha256 ?? null,
    source: json.source,
  };
}

function invalid(path: string, what: string, cause?: unknown): AgentError {
  return new AgentError("GENERALIST_UNAVAILABLE", `${path}: ${what}`, { cause });
}

/**
 * The lines of a label file, one class a line, without an empty last one.
 *
 * @throws {AgentError} GENERALIST_UNAVAILABLE where it cannot be read or has an empty line.
 */
export async function readLabelLines(path: string): Promise<string[]> {
  let text: string;
  try {
    text = await readFile(path, "utf8");
  } catch (error) {
    const why = systemCode(error) === "ENOENT" ? "the file does not exist" : messageOf(error);
    throw invalid(path, `labels cannot be read: ${why}`, error);
  }
  const lines = text.split(/\r?\n/).map((line) => line.trim());
  while (lines.at(-1) === "") lines.pop();
  const empty = lines.indexOf("");
  if (empty >= 0) throw invalid(path, `line ${empty + 1} is empty, expected a class name`);
  return lines;
}

/**
 * Class names from label lines. Where every line starts with a WordNet id (`n01440764 tench, …`)
 * it is taken off and kept as an alias. A name that comes twice (ImageNet has two cranes) gets
 * its id, or its index, behind it.
 */
export function parseLabels(lines: readonly string[]): {
  classes: string[];
  classAliases: string[][];
} {
  const parts = lines.map((line) => /^(n\d{8})\s+(\S.*)$/.exec(line));
  const withIds = parts.every((part) => part !== null);
  const seen = new Set<string>();
  const classAliases: string[][] = [];
  const classes = lines.map((line, i) => {
    const id = withIds ? parts[i]![1]! : undefined;
    const name = withIds ? parts[i]![2]! : line;
    classAliases.push(id === undefined ? [] : [id]);
    const unique = seen.has(name) ? `${name} (${id ?? i})` : name;
    seen.add(unique);
    return unique;
  });
  return { classes, classAliases };
}

const KERNELS: Readonly<Record<string, Preprocessing["kernel"]>> = {
  bicubic: "cubic",
  cubic: "cubic",
  bilinear: "linear",
  linear: "linear",
  nearest: "nearest",
  lanczos: "lanczos3",
  lanczos3: "lanczos3",
};

/**
 * Reads the words of a sidecar, or of the `--resize` and `--crop` flags: `short side to 256,
 * aspect kept, bicubic` with `centre 224x224`; `straight to 224x224, aspect not kept, bicubic`;
 * `none (32x32 as it is)`. Sizes are width x height.
 *
 * @throws {AgentError} GENERALIST_UNAVAILABLE where they are not understood or do not fit the
 *   input.
 */
export function parseResize(
  where: string,
  resize: string,
  crop: string,
  input: { readonly height: number; readonly width: number },
): Pick<Preprocessing, "resize" | "kernel"> {
  const wanted = `${input.width}x${input.height}`;
  const short = /^short side to (\d+)(?:, aspect kept)?(?:, (\w+))?$/.exec(resize);
  const straight = /^straight to (\d+x\d+)(?:, aspect not kept)?(?:, (\w+))?$/.exec(resize);
  const kernel = KERNELS[short?.[2] ?? straight?.[2] ?? "bicubic"];
  const center = /^cent(?:re|er) (\d+x\d+)$/.exec(crop);
  if (kernel === undefined) {
    const known = Object.keys(KERNELS).join(", ");
    throw invalid(where, `resize "${resize}": expected one of ${known}`);
  }
  if (short) {
    if (center?.[1] !== wanted) {
      throw invalid(where, `crop: expected "centre ${wanted}", as the input is, got "${crop}"`);
    }
    const size = Number(short[1]);
    if (size < Math.max(input.height, input.width)) {
      throw invalid(where, `resize "${resize}" is smaller than the crop ${wanted}`);
    }
    return { resize: { mode: "shortSide", size }, kernel };
  }
  const untouched = /^none(?:\s*\(.*\))?$/.test(resize);
  if (!(untouched || straight?.[1] === wanted)) {
    throw invalid(
      where,
      `resize: expected "short side to N, aspect kept, bicubic", "straight to ${wanted}, aspect not kept, bicubic" or "none", got "${resize}"`,
    );
  }
  if (crop !== "none" && center?.[1] !== wanted) {
    throw invalid(where, `crop: expected "none" or "centre ${wanted}", got "${crop}"`);
  }
  return { resize: { mode: "stretch" }, kernel };
}

/** The words that {@link parseResize} reads, for writing a sidecar. */
export function resizeWords(preprocessing: Preprocessing): { resize: string; crop: string } {
  const { height, width, resize, kernel } = preprocessing;
  const how = { cubic: "bicubic", linear: "bilinear", nearest: "nearest", lanczos3: "lanczos3" }[
    kernel
  ];
  if (resize.mode === "stretch") {
    return { resize: `straight to ${width}x${height}, aspect not kept, ${how}`, crop: "none" };
  }
  const words = `short side to ${resize.size}, aspect kept, ${how}`;
  return { resize: words, crop: `centre ${width}x${height}` };
}
