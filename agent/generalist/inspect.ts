import { AgentError, messageOf } from "../errors.ts";
import type { Preprocessing } from "../model.ts";
import { decodeModel, hasExternalData } from "../onnx/codec.ts";
import { type Graph, toGraph, type ValueInfo } from "../onnx/graph.ts";
import { findHead, type Head } from "../onnx/head.ts";
import { normalizeGraph } from "../onnx/normalize.ts";
import { describe, readsOf } from "../onnx/query.ts";
import { DataType, dataTypeName } from "../onnx/tensor.ts";

/** What the graph of a classifier says about itself. */
export interface ClassifierFacts {
  readonly inputName: string;
  readonly outputName: string;
  readonly layout: "NCHW" | "NHWC";
  /** Height of the input in pixels; null where the graph leaves it open. */
  readonly height: number | null;
  readonly width: number | null;
  readonly head: Head;
  /** First node that reads the input, for messages. */
  readonly firstNode: string;
}

/**
 * Looks at the graph of an ONNX file.
 *
 * @param layout said by the user, where the shape does not tell.
 * @throws {AgentError} MODEL_INVALID where it is no float32 classifier of pictures, with what to
 *   do about it.
 */
export function inspectClassifier(bytes: Uint8Array, layout?: "NCHW" | "NHWC"): ClassifierFacts {
  const graph = loadGraph(bytes);
  const [input, ...others] = graph.inputs;
  if (input === undefined || others.length > 0) {
    throw refuse(`expected one input, a batch of pictures, got ${graph.inputs.length}`);
  }
  refuseOtherTypes(graph, input);
  const head = findHead(graph);
  if ("reason" in head) throw refuse(`no classifier at its end: ${head.reason}`);
  const dims = input.dims ?? [];
  if (input.dims !== null && dims.length !== 4) {
    throw refuse(`expected an input [N, 3, height, width], got [${dims}]`);
  }
  const found = layout ?? (dims[3] === 3 && dims[1] !== 3 ? "NHWC" : "NCHW");
  const channels = dims[found === "NHWC" ? 3 : 1];
  if (typeof channels === "number" && channels !== 3) {
    throw refuse(`expected 3 channels (RGB) in the input, got [${dims}]`);
  }
  const at = found === "NHWC" ? 1 : 2;
  const first = graph.nodes.find((node) => readsOf(node).includes(input.name));
  return {
    inputName: input.name,
    outputName: graph.outputs[0]!.name,
    layout: found,
    height: sizeOf(dims[at]),
    width: sizeOf(dims[at + 1]),
    head,
    firstNode: first ? describe(first) : "nothing",
  };
}

function sizeOf(dim: string | number | null | undefined): number | null {
  return typeof dim === "number" && dim > 0 ? dim : null;
}

function loadGraph(bytes: Uint8Array): Graph {
  try {
    const model = decodeModel(bytes);
    if (hasExternalData(model)) {
      throw refuse("its weights lie in other files; 'taco generalist add FILE' takes them in");
    }
    return normalizeGraph(toGraph(model));
  } catch (error) {
    if (error instanceof AgentError) throw error;
    throw refuse(messageOf(error), error);
  }
}

function refuseOtherTypes(graph: Graph, input: ValueInfo): void {
  const half = [...graph.initializers.values()].find(
    ({ dataType }) => dataType === DataType.FLOAT16 || dataType === DataType.BFLOAT16,
  );
  const type = half?.dataType ?? input.dataType;
  if (type === DataType.FLOAT) return;
  const what = half ? "weights" : "pictures as input";
  throw refuse(
    `expected float32 ${what}, got ${dataTypeName(type)}: export the model again in float32`,
  );
}

function refuse(what: string, cause?: unknown): AgentError {
  return new AgentError("MODEL_INVALID", `not usable as a generalist: ${what}`, { cause });
}

/** Preprocessing that nothing states, guessed from the graph, each guess with its reason. */
export interface GeneralistGuess {
  readonly facts: ClassifierFacts;
  readonly classes: number;
  readonly preprocessing: Preprocessing;
  /** One sentence a guess, for people to confirm. */
  readonly reasons: readonly string[];
}

/** Flags of the user that stand above any guess. */
export interface PreprocessingFlags {
  readonly layout?: "NCHW" | "NHWC";
  /** Mean of each channel, of values in [0, 1]. */
  readonly mean?: [number, number, number];
  readonly std?: [number, number, number];
}

const IMAGENET_MEAN: [number, number, number] = [0.485, 0.456, 0.406];
const IMAGENET_STD: [number, number, number] = [0.229, 0.224, 0.225];
/** Inputs up to this size are trained on whole pictures (CIFAR and the like), not on crops. */
const THUMBNAIL_PX = 64;

/**
 * Guesses how pictures must be prepared for a model without a sidecar. A wrong guess gives
 * plausible nonsense, so a caller must have it confirmed.
 *
 * @throws {AgentError} MODEL_INVALID as {@link inspectClassifier}.
 */
export function guessGeneralist(
  bytes: Uint8Array,
  flags: PreprocessingFlags = {},
): GeneralistGuess {
  const facts = inspectClassifier(bytes, flags.layout);
  if (facts.layout === "NHWC" && flags.layout === undefined) {
    throw refuse(
      `its input "${facts.inputName}" looks like channels last (NHWC), expected channels first: pass --layout NHWC to have it turned around`,
    );
  }
  const height = facts.height ?? facts.width ?? 224;
  const width = facts.width ?? height;
  const reasons = [
    facts.height === null
      ? `size ${width}x${height}: the graph leaves it open, and most classifiers take 224x224`
      : `size ${width}x${height}: stated by the graph`,
    `${facts.head.classes} classes: rows of the last layer, ${facts.head.nodeName}`,
  ];
  const mean = flags.mean ?? IMAGENET_MEAN;
  const std = flags.std ?? IMAGENET_STD;
  if (flags.mean === undefined || flags.std === undefined) {
    reasons.push(
      `mean ${mean}, std ${std}: ImageNet's, which most published classifiers use; the graph does not say (it begins with ${facts.firstNode})`,
    );
  }
  if (facts.head.cut !== null) {
    reasons.push(`its last ${facts.head.cut} is left out: the agent works on logits`);
  }
  const small = Math.max(height, width) <= THUMBNAIL_PX;
  const size = Math.round((Math.max(height, width) * 256) / 224);
  reasons.push(
    small
      ? "resize straight to the input: usual for small pictures"
      : `resize the short side to ${size}, bicubic, cut the center: usual for ImageNet classifiers`,
  );
  return {
    facts,
    classes: facts.head.classes,
    preprocessing: {
      height,
      width,
      mean,
      std,
      resize: small ? { mode: "stretch" } : { mode: "shortSide", size },
      kernel: "cubic",
      cropTop: 0,
      cropBottom: 0,
    },
    reasons,
  };
}
