import { create } from "@bufbuild/protobuf";
import { type SparseTensorProto, SparseTensorProtoSchema } from "onnx-buf";
import {
  DataType,
  elementCount,
  floatTensor,
  int64Tensor,
  type Tensor,
  tensorFromProto,
  tensorToProto,
} from "./tensor.ts";

/** A float32 tensor as values and their places, row-major, ascending. */
export function sparseToProto(name: string, tensor: Tensor): SparseTensorProto {
  const data = tensor.data as Float32Array;
  const places: number[] = [];
  data.forEach((value, place) => {
    if (value !== 0) places.push(place);
  });
  const values = Float32Array.from(places, (place) => data[place]!);
  return create(SparseTensorProtoSchema, {
    dims: tensor.dims.map(BigInt),
    values: tensorToProto(name, floatTensor([values.length], values)),
    indices: tensorToProto("", int64Tensor([places.length], places)),
  });
}

/**
 * The dense tensor of a sparse one, and its name.
 *
 * @throws {RangeError} if it is no float32, or its places do not fit its dimensions.
 */
export function sparseFromProto(proto: SparseTensorProto): readonly [string, Tensor] {
  const name = proto.values?.name ?? "";
  const where = `sparse initializer "${name}"`;
  const values = proto.values && tensorFromProto(proto.values);
  const indices = proto.indices && tensorFromProto(proto.indices);
  if (!(values?.data instanceof Float32Array) || !(indices?.data instanceof BigInt64Array)) {
    throw new RangeError(`${where}: expected float32 values at int64 places`);
  }
  const dims = proto.dims.map(Number);
  const count = values.data.length;
  const coordinates = indices.dims.length === 2 ? dims.length : 1;
  const data = new Float32Array(elementCount(dims));
  if (indices.data.length !== count * coordinates) {
    throw new RangeError(`${where}: ${count} values at [${indices.dims}] places`);
  }
  for (let i = 0; i < count; i++) {
    const place = placeOf(indices.data.subarray(i * coordinates, (i + 1) * coordinates), dims);
    if (place < 0 || place >= data.length) {
      throw new RangeError(`${where}: place ${place} lies outside of [${dims}]`);
    }
    data[place] = values.data[i]!;
  }
  return [name, { dims, dataType: DataType.FLOAT, data, sparse: true }];
}

/** A place counted through, or by its coordinates. */
function placeOf(index: BigInt64Array, dims: readonly number[]): number {
  if (index.length === 1) return Number(index[0]);
  return index.reduce((place, at, axis) => place * dims[axis]! + Number(at), 0);
}
