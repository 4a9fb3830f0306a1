import { elementCount } from "../../agent/onnx/tensor.ts";

/** Values in double precision, row-major, whatever the type of the ONNX value. */
export interface DoubleTensor {
  readonly dims: readonly number[];
  readonly data: Float64Array;
  /** Whole numbers, whose quotients are rounded towards zero; else real ones. */
  readonly integer?: boolean;
}

/** A tensor of real numbers. */
export function real(dims: readonly number[], data: ArrayLike<number>): DoubleTensor {
  return { dims, data: new Float64Array(data) };
}

/** A tensor of integers or of truth values, 0 or 1. */
export function whole(dims: readonly number[], data: ArrayLike<number>): DoubleTensor {
  return { dims, data: new Float64Array(data), integer: true };
}

/** Elements between neighbors along each axis, row-major. */
export function stridesOf(dims: readonly number[]): number[] {
  const strides = dims.map(() => 1);
  for (let axis = dims.length - 2; axis >= 0; axis--) {
    strides[axis] = strides[axis + 1]! * dims[axis + 1]!;
  }
  return strides;
}

/** Copies the elements at `start + Σ index(axis) · stride(axis)` into a tensor of shape `dims`. */
export function viewed(
  x: DoubleTensor,
  dims: readonly number[],
  strides: readonly number[],
  start = 0,
): DoubleTensor {
  const data = new Float64Array(elementCount(dims));
  const last = dims.length - 1;
  const index = dims.map(() => 0);
  const [length, step] = last < 0 ? [1, 0] : [dims[last]!, strides[last]!];
  let from = start;
  for (let to = 0; to < data.length; to += length) {
    for (let i = 0; i < length; i++) data[to + i] = x.data[from + i * step]!;
    for (let axis = last - 1; axis >= 0; axis--) {
      index[axis]!++;
      from += strides[axis]!;
      if (index[axis]! < dims[axis]!) break;
      from -= dims[axis]! * strides[axis]!;
      index[axis] = 0;
    }
  }
  return { ...x, dims, data };
}

/** The shape that several broadcast to. */
export function broadcastDims(shapes: readonly (readonly number[])[]): number[] {
  const rank = Math.max(...shapes.map((dims) => dims.length));
  return Array.from({ length: rank }, (_, axis) => {
    const sizes = shapes.map((dims) => dims[axis - rank + dims.length] ?? 1);
    return sizes.find((size) => size !== 1) ?? 1;
  });
}

/** A tensor repeated along axes of size 1 and new ones in front. */
export function broadcastTo(x: DoubleTensor, dims: readonly number[]): DoubleTensor {
  if (x.dims.join() === dims.join()) return x;
  const own = stridesOf(x.dims);
  const extra = dims.length - x.dims.length;
  const strides = dims.map((_, axis) => {
    return axis < extra || x.dims[axis - extra] === 1 ? 0 : own[axis - extra]!;
  });
  return viewed(x, dims, strides);
}

/** Axes in another order: axis i of the result is axis `perm[i]`. */
export function permuted(x: DoubleTensor, perm: readonly number[]): DoubleTensor {
  const strides = stridesOf(x.dims);
  return viewed(
    x,
    perm.map((axis) => x.dims[axis]!),
    perm.map((axis) => strides[axis]!),
  );
}

/** `count` elements along an axis, from `first` on, `step` apart. */
export function cut(
  x: DoubleTensor,
  axis: number,
  first: number,
  step: number,
  count: number,
): DoubleTensor {
  const strides = stridesOf(x.dims);
  const start = first * strides[axis]!;
  strides[axis] = strides[axis]! * step;
  const dims = x.dims.map((size, i) => (i === axis ? count : size));
  return viewed(x, dims, strides, start);
}

/** Tensors one behind the other along an axis. */
export function joined(parts: readonly DoubleTensor[], axis: number): DoubleTensor {
  const [first] = parts as readonly [DoubleTensor];
  const sizes = parts.map(({ dims }) => dims[axis]!);
  const dims = first.dims.map((size, i) => (i === axis ? sizes.reduce((a, b) => a + b, 0) : size));
  const data = new Float64Array(elementCount(dims));
  const outer = elementCount(dims.slice(0, axis));
  const row = data.length / outer;
  let at = 0;
  for (const part of parts) {
    const length = part.data.length / outer;
    for (let i = 0; i < outer; i++) {
      data.set(part.data.subarray(i * length, (i + 1) * length), i * row + at);
    }
    at += length;
  }
  return { ...first, dims, data };
}

/**
 * A tensor as rows of what some axes span: the other axes, in their order, times those.
 *
 * @returns the rows and their length.
 */
export function rowsAlong(
  x: DoubleTensor,
  axes: readonly number[],
): { rows: DoubleTensor; length: number; perm: number[] } {
  const rest = x.dims.flatMap((_, axis) => (axes.includes(axis) ? [] : [axis]));
  const perm = [...rest, ...axes];
  return {
    rows: permuted(x, perm),
    length: elementCount(axes.map((axis) => x.dims[axis]!)),
    perm,
  };
}

/** Undoes {@link permuted}. */
export function unpermuted(x: DoubleTensor, perm: readonly number[]): DoubleTensor {
  return permuted(
    x,
    perm.map((_, axis) => perm.indexOf(axis)),
  );
}
