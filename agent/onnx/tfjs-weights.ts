import { halfToFloat } from "./tensor.ts";

/** One entry of a TensorFlow.js weights manifest. */
export interface TfjsWeightSpec {
  readonly name: string;
  readonly shape: readonly number[];
  readonly dtype: string;
  readonly quantization?: {
    /** How the values are stored: `uint8`, `uint16` or `float16`. */
    readonly dtype: string;
    readonly scale?: number;
    readonly min?: number;
  };
}

/** A decoded weight; integers and booleans are numbers too. */
export interface TfjsWeight {
  readonly shape: readonly number[];
  readonly dtype: string;
  readonly values: Float32Array | Int32Array;
}

const BYTES: Readonly<Record<string, number>> = {
  float32: 4,
  int32: 4,
  bool: 1,
  uint8: 1,
  uint16: 2,
  float16: 2,
};

/**
 * Decodes the weights of a TensorFlow.js model: the bytes of all shards, in order, cut by the
 * manifest. Quantized values become `stored · scale + min`.
 *
 * @throws {RangeError} if the bytes do not end exactly where the manifest does.
 * @throws {TypeError} for a data type that is not known.
 */
export function decodeTfjsWeights(
  specs: readonly TfjsWeightSpec[],
  bytes: Uint8Array,
): Map<string, TfjsWeight> {
  const weights = new Map<string, TfjsWeight>();
  let offset = 0;
  for (const spec of specs) {
    const stored = spec.quantization?.dtype ?? spec.dtype;
    const size = BYTES[stored];
    if (
      size === undefined ||
      (spec.dtype !== "float32" && spec.dtype !== "int32" && spec.dtype !== "bool")
    ) {
      throw new TypeError(`weight "${spec.name}": data type ${spec.dtype}/${stored} is not known`);
    }
    const count = spec.shape.reduce((product, dim) => product * dim, 1);
    const end = offset + count * size;
    if (end > bytes.length) {
      throw new RangeError(
        `weight "${spec.name}": expected ${count * size} bytes at ${offset}, got ${bytes.length - offset}`,
      );
    }
    // A copy, since values may start anywhere; slice() of a Node Buffer would be none.
    const part = new Uint8Array(bytes.subarray(offset, end)).buffer;
    weights.set(spec.name, {
      shape: spec.shape,
      dtype: spec.dtype,
      values: dequantize(spec, stored, part),
    });
    offset = end;
  }
  if (offset !== bytes.length) {
    throw new RangeError(`expected ${offset} bytes of weights, got ${bytes.length}`);
  }
  return weights;
}

function dequantize(
  spec: TfjsWeightSpec,
  stored: string,
  part: ArrayBuffer,
): Float32Array | Int32Array {
  const raw = rawValues(stored, part);
  const { scale, min } = spec.quantization ?? {};
  if (scale === undefined || min === undefined) {
    if (stored === "float16") return Float32Array.from(raw, halfToFloat);
    if (raw instanceof Float32Array || raw instanceof Int32Array) return raw;
    return Int32Array.from(raw);
  }
  // As TensorFlow.js does it: whole numbers are rounded.
  if (spec.dtype === "int32") return Int32Array.from(raw, (v) => Math.round(v * scale + min));
  return Float32Array.from(raw, (v) => v * scale + min);
}

function rawValues(
  stored: string,
  part: ArrayBuffer,
): Float32Array | Int32Array | Uint8Array | Uint16Array {
  switch (stored) {
    case "float32":
      return new Float32Array(part);
    case "int32":
      return new Int32Array(part);
    case "uint16":
    case "float16":
      return new Uint16Array(part);
    default:
      return new Uint8Array(part);
  }
}
