import { findBorders } from "../onnx/borders.ts";
import { node } from "../onnx/builder.ts";
import type { Graph } from "../onnx/graph.ts";
import { freeName } from "../onnx/query.ts";
import { withOnlyOutputs } from "../onnx/subgraph.ts";
import type { TensorValue } from "../runtime/session.ts";
import { ActivationStore } from "./activation-store.ts";
import type { Engine } from "./engine.ts";
import type { Calibration, CompressEnvironment } from "./environment.ts";

/** Values of the calibration set at one border; the picture itself where there is no store. */
export interface Border {
  readonly name: string;
  readonly store: ActivationStore | null;
  /** Shape of each batch. */
  readonly dims: readonly (readonly number[])[];
}

/** Where a network begins. */
export function pictureBorder(graph: Graph): Border {
  return { name: graph.inputs[0]!.name, store: null, dims: [] };
}

type Feeds = Readonly<Record<string, TensorValue>>;

/** What to do along a border, besides going through it. */
export interface Sweep {
  /** Batches to run, ascending; all by default. */
  readonly batches?: readonly number[];
  /** More values to feed with a batch. */
  readonly feeds?: (batch: number) => Feeds | Promise<Feeds>;
}

/** Runs part of a network over a border; calls `each` with all outputs of every batch. */
export async function sweep(
  part: Graph,
  border: Border,
  options: CompressEnvironment,
  each: (batch: number, outputs: Record<string, TensorValue>) => Promise<void> | void,
  { batches = allBatches(options.calibration), feeds = () => ({}) }: Sweep = {},
): Promise<void> {
  const session = await options.engine.open(part);
  // Disks and decoders work while ONNX Runtime holds this thread.
  const read = (batch: number): Promise<TensorValue> => {
    const value = readBorder(border, batch, options);
    // Failing meanwhile it would end the process; it is thrown where it is waited for.
    value.catch(() => undefined);
    return value;
  };
  let next = batches.length > 0 ? read(batches[0]!) : undefined;
  try {
    for (const [i, batch] of batches.entries()) {
      options.signal.throwIfAborted();
      const value = await next!;
      next = i + 1 < batches.length ? read(batches[i + 1]!) : undefined;
      await each(batch, await session.run({ [border.name]: value, ...(await feeds(batch)) }));
    }
  } finally {
    await next?.catch(() => undefined);
    await session.release();
  }
}

/** 0, 1, … of a calibration set. */
export function allBatches(calibration: Calibration): number[] {
  return Array.from({ length: calibration.batches }, (_, batch) => batch);
}

/** One batch of a border. */
export function readBorder(
  border: Border,
  batch: number,
  options: CompressEnvironment,
): Promise<TensorValue> {
  if (border.store === null) return options.calibration.read(batch);
  const dims = border.dims[batch]!;
  return border.store.read(batch).then((data) => ({ data, dims }));
}

/**
 * The next border: the first output of `part`, kept.
 *
 * @param name of the file for what does not fit in memory, without extension.
 * @param each called with all outputs of every batch.
 */
export async function advance(
  part: Graph,
  border: Border,
  options: CompressEnvironment,
  name: string,
  each: (outputs: Record<string, TensorValue>, batch: number) => Promise<void> | void = () =>
    undefined,
  how: Sweep = {},
): Promise<Border> {
  const output = part.outputs[0]!.name;
  const store = new ActivationStore(`${options.workDir}/${name}.f32`, options.memoryBytes);
  const dims: (readonly number[])[] = [];
  const keep = async (batch: number, outputs: Record<string, TensorValue>): Promise<void> => {
    const { data, dims: shape } = floats(outputs, output);
    dims[batch] = shape;
    await store.write(batch, data);
    await each(outputs, batch);
  };
  try {
    await sweep(part, border, options, keep, how);
  } catch (error) {
    await store.dispose();
    throw error;
  }
  return { name: output, store, dims };
}

/** @throws {TypeError} where a value of the network is no float32. */
export function floats(outputs: Readonly<Record<string, TensorValue>>, name: string) {
  const value = outputs[name];
  if (!(value?.data instanceof Float32Array)) {
    throw new TypeError(`"${name}" is no float32 value of the network`);
  }
  return { data: value.data, dims: value.dims };
}

/** Shapes that values of a network have for one picture, by one run of the first. */
export async function measureShapes(
  graph: Graph,
  names: readonly string[],
  engine: Engine,
  calibration: Calibration,
): Promise<Map<string, readonly number[]>> {
  const value = await calibration.read(0);
  const one = value.data.length / value.dims[0]!;
  const first = { data: value.data.subarray(0, one), dims: [1, ...value.dims.slice(1)] };
  const base = freeName(graph, "taco_shape_of");
  const unique = [...new Set(names)];
  const nodes = unique.map((name, i) => node("Shape", [name], [`${base}_${i}`]));
  const outputs = unique.map((_, i) => `${base}_${i}`);
  const measured = withOnlyOutputs({ ...graph, nodes: [...graph.nodes, ...nodes] }, outputs);
  const session = await engine.open(measured);
  try {
    const results = await session.run({ [graph.inputs[0]!.name]: first as TensorValue });
    return new Map(
      unique.map((name, i) => [name, Array.from(results[outputs[i]!]!.data, Number)] as const),
    );
  } finally {
    await session.release();
  }
}

/** Values of one picture at every border of a network, input and output included. */
export async function borderSizes(
  graph: Graph,
  engine: Engine,
  calibration: Calibration,
): Promise<Map<string, number>> {
  const names = [graph.inputs[0]!.name, ...findBorders(graph), graph.outputs[0]!.name];
  return sizesOf(await measureShapes(graph, names, engine, calibration));
}

/** How many values each shape holds. */
export function sizesOf(shapes: ReadonlyMap<string, readonly number[]>): Map<string, number> {
  return new Map([...shapes].map(([name, dims]) => [name, dims.reduce((a, b) => a * b, 1)]));
}
