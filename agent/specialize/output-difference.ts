import type { Graph } from "../onnx/graph.ts";
import type { Engine } from "./engine.ts";
import type { Calibration } from "./environment.ts";

/** How far a changed network's outputs are from those of the dense one. */
export interface OutputDifference {
  /** ‖ŷ − y‖² / ‖y‖² over all pictures. */
  readonly relativeError: number;
  /** Mean over pictures of KL(softmax y ‖ softmax ŷ), in nats. */
  readonly divergence: number;
  /** Share of pictures with the same largest output, in [0, 1]. */
  readonly agreement: number;
}

/** One output of a network for each picture. */
export interface NetworkOutputs {
  /** `rows × width`, row-major. */
  readonly data: Float32Array;
  readonly rows: number;
  readonly width: number;
}

/**
 * Runs a network over pictures.
 *
 * @throws {TypeError} where its first output is no float32 matrix of one row a picture.
 */
export async function outputsOf(
  graph: Graph,
  pictures: Calibration,
  engine: Engine,
  signal: AbortSignal,
): Promise<NetworkOutputs> {
  const input = graph.inputs[0]!.name;
  const output = graph.outputs[0]!.name;
  const parts: Float32Array[] = [];
  let rows = 0;
  const session = await engine.open(graph);
  try {
    for (let batch = 0; batch < pictures.batches; batch++) {
      signal.throwIfAborted();
      const value = await pictures.read(batch);
      const data = (await session.run({ [input]: value }))[output]?.data;
      if (!(data instanceof Float32Array)) throw new TypeError(`"${output}" is no float32 value`);
      parts.push(data);
      rows += value.dims[0]!;
    }
  } finally {
    await session.release();
  }
  const length = parts.reduce((sum, part) => sum + part.length, 0);
  const data = new Float32Array(length);
  let at = 0;
  for (const part of parts) {
    data.set(part, at);
    at += part.length;
  }
  const width = length / rows;
  if (!Number.isInteger(width)) throw new TypeError(`"${output}" has no row for each picture`);
  return { data, rows, width };
}

/**
 * Compares two networks' outputs for the same pictures.
 *
 * @throws {RangeError} if the sizes differ.
 */
export function compareOutputs(dense: NetworkOutputs, other: NetworkOutputs): OutputDifference {
  const { rows, width } = dense;
  if (other.rows !== rows || other.width !== width) {
    throw new RangeError(
      `expected outputs of the same size, got ${rows}×${width} and ${other.rows}×${other.width}`,
    );
  }
  let error = 0;
  let energy = 0;
  let divergence = 0;
  let same = 0;
  for (let row = 0; row < rows; row++) {
    const y = dense.data.subarray(row * width, (row + 1) * width);
    const z = other.data.subarray(row * width, (row + 1) * width);
    const [p, q] = [logSoftmax(y), logSoftmax(z)];
    for (let i = 0; i < width; i++) {
      error += (z[i]! - y[i]!) ** 2;
      energy += y[i]! ** 2;
      divergence += Math.exp(p[i]!) * (p[i]! - q[i]!);
    }
    if (largest(y) === largest(z)) same++;
  }
  return {
    relativeError: energy > 0 ? error / energy : error > 0 ? Number.POSITIVE_INFINITY : 0,
    divergence: divergence / rows,
    agreement: same / rows,
  };
}

function logSoftmax(logits: Float32Array): Float64Array {
  let top = Number.NEGATIVE_INFINITY;
  for (const value of logits) top = Math.max(top, value);
  let sum = 0;
  for (const value of logits) sum += Math.exp(value - top);
  const shift = top + Math.log(sum);
  return Float64Array.from(logits, (value) => value - shift);
}

function largest(row: Float32Array): number {
  let best = 0;
  for (let i = 1; i < row.length; i++) if (row[i]! > row[best]!) best = i;
  return best;
}
