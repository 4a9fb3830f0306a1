import { readFile } from "node:fs/promises";
import { AgentError, messageOf, systemCode } from "../errors.ts";
import { sha256 } from "../files.ts";
import type { Preprocessing } from "../model.ts";
import { inspectClassifier } from "./inspect.ts";
import { readSidecar, type Sidecar, sidecarPathOf } from "./sidecar.ts";

/** A generalist that can be used: all that must be known about it. */
export interface GeneralistDescription {
  readonly name: string;
  /** SHA-256 of the ONNX file. */
  readonly sha256: string;
  readonly modelPath: string;
  /** Graph input, float32 `[N, 3, height, width]`. */
  readonly inputName: string;
  readonly outputName: string;
  /** Class names in the order of the output, each different. */
  readonly classes: string[];
  /** Other names of each class, in the same order. */
  readonly classAliases: string[][];
  readonly preprocessing: Preprocessing;
  /** Tensor that feeds the classifier, as the sidecar states it; null where it does not. */
  readonly classifierInput: string | null;
  readonly licence: string | null;
}

/**
 * Reads a generalist: an ONNX file with the JSON of the same name beside it.
 *
 * @throws {AgentError} GENERALIST_UNAVAILABLE where a file is missing or the two do not belong
 *   together; MODEL_INVALID where the model is no usable classifier.
 */
export async function readGeneralist(modelPath: string): Promise<GeneralistDescription> {
  const sidecarPath = sidecarPathOf(modelPath);
  const sidecar = await readSidecar(sidecarPath);
  const bytes = await readModel(modelPath);
  if (sidecar === undefined) {
    throw new AgentError(
      "GENERALIST_UNAVAILABLE",
      `${modelPath} has no ${sidecarPath} beside it that names its classes and preprocessing: import it with 'taco generalist add ${modelPath}'`,
    );
  }
  return describeGeneralist(modelPath, bytes, sidecar);
}

async function readModel(path: string): Promise<Buffer> {
  try {
    return await readFile(path);
  } catch (error) {
    const why = systemCode(error) === "ENOENT" ? "the file does not exist" : messageOf(error);
    throw new AgentError("GENERALIST_UNAVAILABLE", `${path}: ${why}`, { cause: error });
  }
}

/**
 * Checks that a model and its sidecar belong together.
 *
 * @throws {AgentError} as {@link readGeneralist}.
 */
function describeGeneralist(
  modelPath: string,
  bytes: Uint8Array,
  sidecar: Sidecar,
): GeneralistDescription {
  const digest = sha256(bytes);
  if (sidecar.sha256 !== null && sidecar.sha256 !== digest) {
    throw new AgentError(
      "GENERALIST_UNAVAILABLE",
      `${modelPath}: expected sha256 ${sidecar.sha256} by its JSON, got ${digest}: the model was changed or damaged; fetch it again`,
    );
  }
  const facts = inspectClassifier(bytes);
  const { classes, preprocessing } = sidecar;
  const complain = (what: string): AgentError =>
    new AgentError("GENERALIST_UNAVAILABLE", `${modelPath} and its JSON do not fit: ${what}`);
  if (facts.inputName !== sidecar.inputName) {
    throw complain(`input "${facts.inputName}" in the model, "${sidecar.inputName}" in the JSON`);
  }
  if (facts.outputName !== sidecar.outputName) {
    throw complain(
      `output "${facts.outputName}" in the model, "${sidecar.outputName}" in the JSON`,
    );
  }
  if (facts.head.classes !== classes.length) {
    throw complain(`${facts.head.classes} classes in the model, ${classes.length} in the JSON`);
  }
  const sizes = [facts.height ?? preprocessing.height, facts.width ?? preprocessing.width];
  if (
    facts.layout !== "NCHW" ||
    sizes[0] !== preprocessing.height ||
    sizes[1] !== preprocessing.width
  ) {
    const got = `${facts.layout} ${sizes[1]}x${sizes[0]}`;
    throw complain(
      `input ${got} in the model, NCHW ${preprocessing.width}x${preprocessing.height} in the JSON`,
    );
  }
  return {
    name: sidecar.name,
    sha256: digest,
    modelPath,
    inputName: sidecar.inputName,
    outputName: sidecar.outputName,
    classes,
    classAliases: sidecar.classAliases,
    preprocessing,
    classifierInput: sidecar.classifierInput,
    licence: sidecar.licence,
  };
}
