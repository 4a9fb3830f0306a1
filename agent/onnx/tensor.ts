import { create } from "@bufbuild/protobuf";
import {
  TensorProto_DataLocation as DataLocation,
  TensorProto_DataType as DataType,
  type TensorProto,
  TensorProtoSchema,
} from "onnx-buf";

export { DataType };

/** Element storage of a tensor: one array element a tensor element, except as {@link Tensor} says. */
type TensorData =
  | Float32Array
  | Float64Array
  | Int8Array
  | Uint8Array
  | Int16Array
  | Uint16Array
  | Int32Array
  | Uint32Array
  | BigInt64Array
  | BigUint64Array;

/**
 * A constant of the graph, row-major. `FLOAT16` and `BFLOAT16` hold bit patterns in a
 * `Uint16Array`, `BOOL` holds 0 or 1 in a `Uint8Array`; types without an array of their own (4-bit
 * and 8-bit floats, complex) hold their raw bytes in a `Uint8Array`, strings lie in `strings`.
 *
 * Decoded data may be a view on the bytes of the file: to change a weight, make a new tensor.
 */
export interface Tensor {
  readonly dims: readonly number[];
  readonly dataType: DataType;
  readonly data: TensorData;
  /** Only for `DataType.STRING`: UTF-8 bytes of each element. */
  readonly strings?: readonly Uint8Array<ArrayBuffer>[];
  /** True for a float32 initializer that is written as ONNX `sparse_initializer`. */
  readonly sparse?: true;
  /** The message it was read from, without its values: keeps what this view does not know. */
  readonly shell?: TensorProto;
}

type ArrayType = {
  new (length: number): TensorData;
  new (buffer: ArrayBufferLike, byteOffset: number, length: number): TensorData;
  readonly BYTES_PER_ELEMENT: number;
};

const ARRAY_TYPES: ReadonlyMap<DataType, ArrayType> = new Map<DataType, ArrayType>([
  [DataType.FLOAT, Float32Array],
  [DataType.DOUBLE, Float64Array],
  [DataType.INT8, Int8Array],
  [DataType.UINT8, Uint8Array],
  [DataType.BOOL, Uint8Array],
  [DataType.INT16, Int16Array],
  [DataType.UINT16, Uint16Array],
  [DataType.FLOAT16, Uint16Array],
  [DataType.BFLOAT16, Uint16Array],
  [DataType.INT32, Int32Array],
  [DataType.UINT32, Uint32Array],
  [DataType.INT64, BigInt64Array],
  [DataType.UINT64, BigUint64Array],
]);

/** True for the types whose values are real numbers that a network learns. */
export function isFloatType(dataType: DataType): boolean {
  return (
    dataType === DataType.FLOAT ||
    dataType === DataType.DOUBLE ||
    dataType === DataType.FLOAT16 ||
    dataType === DataType.BFLOAT16
  );
}

/** Name of a data type for messages: `FLOAT16`. */
export function dataTypeName(dataType: DataType): string {
  return DataType[dataType] ?? `type ${dataType}`;
}

/** Product of the dimensions; 1 for a scalar. */
export function elementCount(dims: readonly number[]): number {
  return dims.reduce((product, dim) => product * dim, 1);
}

/** Bytes that `dims` elements of a type take in `raw_data`; null where the type is not known. */
export function byteLengthOf(dataType: DataType, dims: readonly number[]): number | null {
  const type = ARRAY_TYPES.get(dataType);
  return type === undefined ? null : type.BYTES_PER_ELEMENT * elementCount(dims);
}

/**
 * Reads a tensor message. Raw data that lies aligned in its buffer is not copied.
 *
 * @throws {RangeError} if its values do not fit its dimensions, or lie in an external file
 * (call `resolveExternalData` first).
 */
export function tensorFromProto(proto: TensorProto): Tensor {
  const where = `tensor "${proto.name}"`;
  if (proto.dataLocation === DataLocation.EXTERNAL) {
    throw new RangeError(`${where}: values lie in an external file; resolve external data first`);
  }
  const dims = proto.dims.map(Number);
  if (dims.some((dim) => !Number.isSafeInteger(dim) || dim < 0)) {
    throw new RangeError(`${where}: expected dimensions of 0 or more, got [${dims}]`);
  }
  const dataType = proto.dataType as DataType;
  const shell = create(TensorProtoSchema, { docString: proto.docString });
  shell.metadataProps = proto.metadataProps;
  if (proto.$unknown) shell.$unknown = proto.$unknown;
  const keep = proto.docString !== "" || proto.metadataProps.length > 0 || proto.$unknown;
  const rest = keep ? { shell } : {};
  if (dataType === DataType.STRING) {
    return { dims, dataType, data: new Uint8Array(0), strings: proto.stringData, ...rest };
  }
  const type = ARRAY_TYPES.get(dataType);
  if (type === undefined) return { dims, dataType, data: proto.rawData, ...rest };
  const count = elementCount(dims);
  const data = proto.rawData.length > 0 ? fromRaw(proto, type) : fromFields(proto, dataType, type);
  if (data.length !== count) {
    throw new RangeError(`${where}: [${dims}] needs ${count} values, got ${data.length}`);
  }
  return { dims, dataType, data, ...rest };
}

function fromRaw(proto: TensorProto, type: ArrayType): TensorData {
  const raw = proto.rawData;
  const size = type.BYTES_PER_ELEMENT;
  if (raw.length % size !== 0) {
    throw new RangeError(
      `tensor "${proto.name}": ${raw.length} bytes are no whole number of ${size}-byte values`,
    );
  }
  if (raw.byteOffset % size === 0) return new type(raw.buffer, raw.byteOffset, raw.length / size);
  const copy = new Uint8Array(raw);
  return new type(copy.buffer, 0, raw.length / size);
}

function fromFields(proto: TensorProto, dataType: DataType, type: ArrayType): TensorData {
  switch (dataType) {
    case DataType.FLOAT:
      return Float32Array.from(proto.floatData);
    case DataType.DOUBLE:
      return Float64Array.from(proto.doubleData);
    case DataType.INT64:
      return BigInt64Array.from(proto.int64Data);
    case DataType.UINT64:
      return BigUint64Array.from(proto.uint64Data);
    case DataType.UINT32:
      return Uint32Array.from(proto.uint64Data, Number);
    default: {
      const data = new type(proto.int32Data.length);
      for (let i = 0; i < data.length; i++) data[i] = proto.int32Data[i]!;
      return data;
    }
  }
}

/** Writes a tensor message; its `raw_data` shares memory with the tensor. */
export function tensorToProto(name: string, tensor: Tensor): TensorProto {
  const proto = create(TensorProtoSchema, {
    name,
    dims: tensor.dims.map(BigInt),
    dataType: tensor.dataType,
  });
  if (tensor.shell) {
    proto.docString = tensor.shell.docString;
    proto.metadataProps = tensor.shell.metadataProps;
    if (tensor.shell.$unknown) proto.$unknown = tensor.shell.$unknown;
  }
  if (tensor.strings) {
    proto.stringData = [...tensor.strings];
    return proto;
  }
  const { buffer, byteOffset, byteLength } = tensor.data;
  proto.rawData = new Uint8Array(buffer as ArrayBuffer, byteOffset, byteLength);
  return proto;
}

/**
 * A float32 constant.
 *
 * @throws {RangeError} if the number of values does not fit the dimensions.
 */
export function floatTensor(dims: readonly number[], values: Iterable<number>): Tensor {
  const data = values instanceof Float32Array ? values : Float32Array.from(values);
  return checked({ dims: [...dims], dataType: DataType.FLOAT, data });
}

/**
 * An int64 constant, as shapes and axes are.
 *
 * @throws {RangeError} if the number of values does not fit the dimensions.
 */
export function int64Tensor(dims: readonly number[], values: Iterable<number | bigint>): Tensor {
  const data = BigInt64Array.from([...values].map(BigInt));
  return checked({ dims: [...dims], dataType: DataType.INT64, data });
}

function checked(tensor: Tensor): Tensor {
  const count = elementCount(tensor.dims);
  if (tensor.data.length !== count) {
    throw new RangeError(`[${tensor.dims}] needs ${count} values, got ${tensor.data.length}`);
  }
  return tensor;
}

/** Values of an integer tensor as numbers; null for other types. */
export function integersOf(tensor: Tensor): number[] | null {
  const { dataType, data } = tensor;
  if (isFloatType(dataType) || tensor.strings || !ARRAY_TYPES.has(dataType)) return null;
  return Array.from(data as ArrayLike<number | bigint>, Number);
}

/**
 * The values as float32: the tensor's own array for FLOAT, a converted copy for the others.
 *
 * @throws {TypeError} if the tensor holds no real numbers.
 */
export function toFloat32(tensor: Tensor): Float32Array {
  const { data, dataType } = tensor;
  if (data instanceof Float32Array) return data;
  if (data instanceof Float64Array) return Float32Array.from(data);
  if (data instanceof Uint16Array && dataType === DataType.FLOAT16) {
    return Float32Array.from(data, halfToFloat);
  }
  if (data instanceof Uint16Array && dataType === DataType.BFLOAT16) {
    const bits = Uint32Array.from(data, (half) => half << 16);
    return new Float32Array(bits.buffer);
  }
  throw new TypeError(`expected a floating-point tensor, got ${dataTypeName(dataType)}`);
}

/**
 * A tensor like `tensor` (same type and dimensions) with new values, rounded to its type.
 *
 * @throws {RangeError} if the number of values differs.
 * @throws {TypeError} for other types than FLOAT, DOUBLE and FLOAT16.
 */
export function withFloatValues(tensor: Tensor, values: Float32Array | Float64Array): Tensor {
  const { dims, dataType } = tensor;
  const shell = tensor.shell ? { shell: tensor.shell } : {};
  switch (dataType) {
    case DataType.FLOAT: {
      const data = values instanceof Float32Array ? values : Float32Array.from(values);
      return checked({ dims, dataType, data, ...shell });
    }
    case DataType.DOUBLE:
      return checked({ dims, dataType, data: Float64Array.from(values), ...shell });
    case DataType.FLOAT16:
      return checked({ dims, dataType, data: Uint16Array.from(values, floatToHalf), ...shell });
    default:
      throw new TypeError(`expected FLOAT, DOUBLE or FLOAT16, got ${dataTypeName(dataType)}`);
  }
}

/** IEEE 754 binary16 bits → number. */
export function halfToFloat(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 0x1f) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** Number → IEEE 754 binary16 bits, round to nearest even; beyond ±65504 (after rounding) → ±∞. */
export function floatToHalf(value: number): number {
  const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0;
  const size = Math.abs(value);
  if (Number.isNaN(value)) return 0x7e00;
  if (size >= 65520) return sign | 0x7c00;
  // Below 2⁻¹⁴ the numbers are 2⁻²⁴ apart; above, 2^(e−10).
  const exponent = size < 2 ** -14 ? -14 : Math.floor(Math.log2(size));
  const steps = roundHalfEven(size / 2 ** (exponent - 10));
  if (size < 2 ** -14) return sign | steps;
  return sign | (((exponent + 15) << 10) + (steps - 1024));
}

function roundHalfEven(value: number): number {
  const down = Math.floor(value);
  const rest = value - down;
  if (rest !== 0.5) return rest < 0.5 ? down : down + 1;
  return down % 2 === 0 ? down : down + 1;
}
