import { fromBinary, toBinary } from "@bufbuild/protobuf";
import {
  TensorProto_DataLocation as DataLocation,
  type GraphProto,
  type ModelProto,
  ModelProtoSchema,
  type TensorProto,
} from "onnx-buf";
import { byteLengthOf, type DataType } from "./tensor.ts";

/** A decoded ONNX file: the ModelProto message with everything in it, known or not. */
export type Model = ModelProto;

/**
 * Decodes an ONNX file. Tensors are views on `bytes`; unknown fields are kept.
 *
 * @throws {RangeError} if the bytes are no ONNX ModelProto, or end too early.
 */
export function decodeModel(bytes: Uint8Array): Model {
  // A Node Buffer would hand its own kind of views on; plain arrays behave the same everywhere.
  const plain = new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let model: Model;
  try {
    model = fromBinary(ModelProtoSchema, plain);
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new RangeError(
      `expected an ONNX ModelProto, got ${bytes.length} bytes that do not decode (${why})`,
      { cause },
    );
  }
  if (model.graph === undefined || model.graph.output.length === 0) {
    const what = model.graph === undefined ? "no graph" : "a graph without outputs";
    throw new RangeError(
      `expected an ONNX ModelProto with a graph, got ${bytes.length} bytes with ${what}`,
    );
  }
  if (model.opsetImport.length === 0) {
    throw new RangeError("expected an ONNX ModelProto with an opset import, got none");
  }
  return model;
}

/** Encodes a model as the bytes of an ONNX file. */
export function encodeModel(model: Model): Uint8Array<ArrayBuffer> {
  return toBinary(ModelProtoSchema, model);
}

/**
 * Reads bytes of a file that lies beside the model.
 *
 * @param location path relative to the model, checked to stay below its folder.
 * @param length bytes to read; null: to the end of the file.
 */
export type ReadExternal = (location: string, offset: number, length: number | null) => Uint8Array;

/** True if some tensor of the model keeps its values in another file. */
export function hasExternalData(model: Model): boolean {
  return [...tensorsOf(model.graph)].some((t) => t.dataLocation === DataLocation.EXTERNAL);
}

/**
 * Takes the values that lie in other files into the model, in place.
 *
 * @throws {RangeError} if a location leaves the model's folder, or the length does not fit.
 */
export function resolveExternalData(model: Model, read: ReadExternal): void {
  for (const tensor of tensorsOf(model.graph)) {
    if (tensor.dataLocation !== DataLocation.EXTERNAL) continue;
    const entries = new Map(tensor.externalData.map(({ key, value }) => [key, value]));
    const where = `tensor "${tensor.name}"`;
    const location = safeLocation(entries.get("location"), where);
    const needed = byteLengthOf(tensor.dataType as DataType, tensor.dims.map(Number));
    const offset = natural(entries.get("offset") ?? "0", `${where}: external offset`);
    const stated = entries.get("length");
    const length = stated === undefined ? needed : natural(stated, `${where}: external length`);
    if (needed !== null && length !== needed) {
      throw new RangeError(`${where}: expected ${needed} external bytes, got length ${length}`);
    }
    const bytes = read(location, offset, length);
    if (length !== null && bytes.length !== length) {
      throw new RangeError(
        `${where}: expected ${length} bytes at ${offset} of ${location}, got ${bytes.length}`,
      );
    }
    tensor.rawData = new Uint8Array(
      bytes.buffer as ArrayBuffer,
      bytes.byteOffset,
      bytes.byteLength,
    );
    tensor.externalData = [];
    tensor.dataLocation = DataLocation.DEFAULT;
  }
}

/** A model file may come from anywhere: its tensors must not name files outside its folder. */
function safeLocation(location: string | undefined, where: string): string {
  const parts = (location ?? "").split(/[\\/]/);
  if (!location || /^([\\/]|[A-Za-z]:)/.test(location) || parts.includes("..")) {
    throw new RangeError(
      `${where}: expected an external location below the model's folder, got "${location ?? ""}"`,
    );
  }
  return location;
}

function natural(text: string, what: string): number {
  const value = Number(text);
  if (!Number.isSafeInteger(value) || value < 0) {
    throw new RangeError(`${what}: expected a whole number of 0 or more, got "${text}"`);
  }
  return value;
}

function* tensorsOf(graph: GraphProto | undefined): Generator<TensorProto> {
  if (graph === undefined) return;
  yield* graph.initializer;
  for (const sparse of graph.sparseInitializer) {
    if (sparse.values) yield sparse.values;
    if (sparse.indices) yield sparse.indices;
  }
  for (const node of graph.node) {
    for (const attribute of node.attribute) {
      if (attribute.t) yield attribute.t;
      yield* attribute.tensors;
      yield* tensorsOf(attribute.g);
      for (const inner of attribute.graphs) yield* tensorsOf(inner);
    }
  }
}
