import { AgentError } from "../errors.ts";
import type { ModelSession, TensorInfo } from "./session.ts";

/** What of a model's manifest decides how its session is called. */
export interface ClassifierShape {
  inputName: string;
  outputName: string;
  classes: readonly string[];
  preprocessing: { readonly height: number; readonly width: number };
}

/**
 * Holds a session against its manifest: float32 input `[N, 3, height, width]` that takes one
 * picture, float32 output `[N, classes]`, and no further input.
 *
 * @throws {AgentError} MODEL_INVALID naming what was expected and what the graph has.
 */
export function checkClassifier(session: ModelSession, shape: ClassifierShape): void {
  const { height, width } = shape.preprocessing;
  if (session.inputs.length !== 1) {
    const names = session.inputs.map((input) => input.name).join(", ");
    throw new AgentError("MODEL_INVALID", `expected one graph input, got: ${names || "none"}`);
  }
  expectShape("input", session.inputs, shape.inputName, [1, 3, height, width]);
  expectShape("output", session.outputs, shape.outputName, [1, shape.classes.length]);
}

function expectShape(
  side: "input" | "output",
  infos: readonly TensorInfo[],
  name: string,
  dims: readonly number[],
): void {
  const info = infos.find((candidate) => candidate.name === name);
  if (info === undefined) {
    const names = infos.map((candidate) => candidate.name).join(", ");
    throw new AgentError("MODEL_INVALID", `${side} "${name}" is missing; the graph has ${names}`);
  }
  // An exporter that could not infer an output's shape leaves it out: the first run decides then.
  const unknown = side === "output" && info.dims.length === 0;
  const fits =
    unknown ||
    (info.dims.length === dims.length &&
      info.dims.every((dim, i) => typeof dim === "string" || dim === dims[i]));
  if (info.type !== "float32" || !fits) {
    throw new AgentError(
      "MODEL_INVALID",
      `${side} "${name}": expected float32 [${dims.join(", ")}], ` +
        `got ${info.type} [${info.dims.join(", ")}]`,
    );
  }
}

/**
 * Classifies one picture.
 *
 * @param tensor `3 × height × width`, channels first, normalized.
 * @returns one logit a class.
 * @throws {AgentError} MODEL_INVALID if the output has another size; INFERENCE_FAILED if a logit
 *   is not finite or ONNX Runtime fails.
 */
export async function runClassifier(
  session: ModelSession,
  shape: ClassifierShape,
  tensor: Float32Array,
): Promise<Float32Array> {
  const { height, width } = shape.preprocessing;
  const feeds = { [shape.inputName]: { data: tensor, dims: [1, 3, height, width] } };
  const outputs = await session.run(feeds, [shape.outputName]);
  const logits = outputs[shape.outputName]?.data;
  if (!(logits instanceof Float32Array) || logits.length !== shape.classes.length) {
    throw new AgentError(
      "MODEL_INVALID",
      `output "${shape.outputName}": expected ${shape.classes.length} logits, ` +
        `got ${logits?.length ?? "none"}`,
    );
  }
  const bad = logits.findIndex((logit) => !Number.isFinite(logit));
  if (bad !== -1) {
    throw new AgentError(
      "INFERENCE_FAILED",
      `the logit of class "${shape.classes[bad]}" is ${logits[bad]}, no finite number`,
    );
  }
  return logits;
}
