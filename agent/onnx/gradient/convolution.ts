import { intAttribute } from "../graph.ts";
import { type BackwardContext, type BackwardRule, outputGradient } from "./backward-rule.ts";
import { type Sliding, slidingOf, spreading } from "./sliding.ts";

/** A convolution's values and sizes. C and O are channels of all groups, P the product of sizes. */
export interface Convolution extends Sliding {
  readonly x: string;
  readonly w: string;
  readonly dY: string;
  readonly groups: number;
  readonly pictures: number;
  readonly channels: number;
  readonly outputs: number;
  /** Spatial sizes of X and of Y. */
  readonly sizes: readonly number[];
  readonly outSizes: readonly number[];
}

/**
 * Conv: Y[n,o,i] = b[o] + Σ_{c,r} W[o,c,r] · X[n,c,s·i + d·r − p], c over the channels of o's group.
 *
 *     dX[n,c,h] = Σ_{o,i,r: s·i + d·r − p = h} W[o,c,r] · dY[n,o,i]
 *     dW[o,c,r] = Σ_{n,i} dY[n,o,i] · X[n,c,s·i + d·r − p]
 *     db[o]     = Σ_{n,i} dY[n,o,i]
 *
 * (Dumoulin & Visin, arXiv:1603.07285, ch. 4.) Each of them has several forms as ONNX nodes, all
 * exact; which one is built is a matter of speed in ONNX Runtime on a CPU.
 */
const conv: BackwardRule = (context) => {
  const { wants } = context;
  const of = convolutionOf(context);
  const { dY } = of;
  const summed = [0, ...of.sizes.map((_, i) => i + 2)];
  return [
    wants(0) ? inputGradient(context, of) : undefined,
    wants(1) ? weightGradient(context, of) : undefined,
    wants(2)
      ? context.make("ReduceSum", [dY, context.integers(summed)], { keepdims: 0 })
      : undefined,
  ];
};

/** What a node that convolves works on. */
export function convolutionOf(context: BackwardContext): Convolution {
  const { node, dims } = context;
  const [x, w] = node.inputs as [string, string];
  const dY = outputGradient(context);
  const [pictures, channels, ...sizes] = dims(x) as [number, number, ...number[]];
  const [, outputs, ...outSizes] = dims(dY) as [number, number, ...number[]];
  return {
    ...slidingOf(node, sizes, dims(w).slice(2)),
    ...{ x, w, dY, pictures, channels, outputs, sizes, outSizes },
    groups: intAttribute(node, "group", 1),
  };
}

/**
 * At stride 1, dX is a convolution of dY with flipped kernels, inputs and outputs of each group
 * exchanged; padding grows to d·(k − 1) − p. Otherwise ConvTranspose, which is dX by definition:
 * where it was compared (240 channels of 28², 5×5, stride 2), filling the gaps of dY with zeros and
 * convolving took twice as long, one convolution for each phase as well.
 */
function inputGradient(context: BackwardContext, of: Convolution): string {
  const { dY, w, groups, channels, pictures, sizes, outSizes } = of;
  const { kernel, strides, dilations, before, after } = of;
  const dims = [pictures, channels, ...sizes];
  const reach = kernel.map((size, i) => dilations[i]! * (size - 1));
  const lead = reach.map((size, i) => size - before[i]!);
  const trail = reach.map((size, i) => size - after[i]!);
  const geometry = { kernel_shape: kernel, dilations, group: groups };
  if (strides.every((stride) => stride === 1) && [...lead, ...trail].every((pad) => pad >= 0)) {
    const flipped = exchangeChannels(context, flipKernel(context, w), of);
    return context.make("Conv", [dY, flipped], { ...geometry, pads: [...lead, ...trail] });
  }
  const how = { ...geometry, strides, ...spreading(of, sizes, outSizes) };
  return context.make("ConvTranspose", [dY, w], how, dims);
}

/** Turns the spatial axes of W around. */
function flipKernel(context: BackwardContext, w: string): string {
  const axes = context.dims(w).flatMap((size, axis) => (axis >= 2 && size > 1 ? [axis] : []));
  if (axes.length === 0) return w;
  const all = (value: number) => context.integers(axes.map(() => value));
  return context.make("Slice", [w, all(-1), all(-(2 ** 31)), context.integers(axes), all(-1)]);
}

/** W [O, C/g, …] → [C, O/g, …]. */
function exchangeChannels(context: BackwardContext, w: string, of: Convolution): string {
  const { groups, channels, outputs, kernel } = of;
  const [inner, outer] = [channels / groups, outputs / groups];
  const to = context.integers([channels, outer, ...kernel]);
  if (inner === 1 && outer === 1) return w;
  const spatial = kernel.map((_, i) => i + 2);
  if (groups === 1) return context.make("Transpose", [w], { perm: [1, 0, ...spatial] });
  const apart = context.make("Reshape", [w, context.integers([groups, outer, inner, ...kernel])]);
  const perm = [0, 2, 1, ...spatial.map((axis) => axis + 1)];
  return context.make("Reshape", [context.make("Transpose", [apart], { perm }), to]);
}

function weightGradient(context: BackwardContext, of: Convolution): string {
  const { kernel, before, after, strides, groups, channels, outputs } = of;
  const unpadded = [...before, ...after].every((pad) => pad === 0);
  if (unpadded && kernel.every((size) => size === 1)) return pointwiseWeights(context, of);
  if (channels !== groups) return denseWeights(context, of);
  const rows = kernel.length === 2 && outputs === channels;
  return rows && strides.every((stride) => stride === 1)
    ? depthwiseRows(context, of)
    : depthwiseWeights(context, of);
}

/** Kernels of one element: strides pick positions beforehand. */
function pointwiseWeights(context: BackwardContext, of: Convolution): string {
  const product = productOverPositions(context, pick(context, of), of.dY, of.groups);
  const shape = [of.outputs, of.channels / of.groups, ...of.kernel];
  return context.make("Reshape", [product, context.integers(shape)]);
}

/**
 * dW = Σ_n dY[n] · X[n]ᵀ, a matrix product for each picture and group over the positions. Where the
 * products would be larger than what goes into them, pictures and positions are put on one axis first.
 *
 * @param x `[N, C, …]`. @param dY `[N, O, …]`, of the same positions.
 * @returns `[g, O/g, C/g]`.
 */
export function productOverPositions(
  context: BackwardContext,
  x: string,
  dY: string,
  groups = 1,
): string {
  const { make, integers } = context;
  const [pictures, channels, ...sizes] = context.dims(x) as [number, number, ...number[]];
  const positions = sizes.reduce((product, size) => product * size, 1);
  const [inner, outer] = [channels / groups, context.dims(dY)[1]! / groups];
  const left = make("Reshape", [dY, integers([pictures, groups, outer, positions])]);
  const right = make("Reshape", [x, integers([pictures, groups, inner, positions])]);
  if (inner * outer > positions * (inner + outer)) {
    const long = pictures * positions;
    const rows = make("Transpose", [left], { perm: [1, 2, 0, 3] });
    const columns = make("Transpose", [right], { perm: [1, 0, 3, 2] });
    return make("MatMul", [
      make("Reshape", [rows, integers([groups, outer, long])]),
      make("Reshape", [columns, integers([groups, long, inner])]),
    ]);
  }
  const product = make("MatMul", [left, make("Transpose", [right], { perm: [0, 1, 3, 2] })]);
  return make("ReduceSum", [product, integers([0])], { keepdims: 0 });
}

/** Every stride-th element of X on each spatial axis. */
function pick(context: BackwardContext, of: Convolution): string {
  const { x, sizes, strides } = of;
  if (strides.every((stride) => stride === 1)) return x;
  const axes = sizes.map((_, i) => i + 2);
  const from = sizes.map(() => 0);
  return context.make("Slice", [x, ...[from, sizes, axes, strides].map(context.integers)]);
}

/**
 * dW as a convolution of X with dY as its kernel, pictures being what is summed over: stride and
 * dilation change places.
 *
 *     X  [N, C, …] → [C/g, g·N, …]    dY [N, O, …] → [O, N, …]    → [C/g, O, k] → [O, C/g, k]
 */
function denseWeights(context: BackwardContext, of: Convolution): string {
  const { x, dY, groups, pictures, channels, sizes, kernel } = of;
  const { make, integers } = context;
  const spatial = sizes.map((_, i) => i + 2);
  const swap = [1, 0, ...spatial];
  let turned: string;
  if (groups === 1) {
    turned = make("Transpose", [x], { perm: swap });
  } else {
    const inner = channels / groups;
    const apart = make("Reshape", [x, integers([pictures, groups, inner, ...sizes])]);
    const perm = [2, 1, 0, ...spatial.map((axis) => axis + 1)];
    const exchanged = make("Transpose", [apart], { perm });
    turned = make("Reshape", [exchanged, integers([inner, groups * pictures, ...sizes])]);
  }
  const kernels = make("Transpose", [dY], { perm: swap });
  const product = convolveWith(context, of, turned, kernels, groups);
  const dW = make("Transpose", [product], { perm: swap });
  return make("Reshape", [dW, integers([of.outputs, channels / groups, ...kernel])]);
}

/** {@link denseWeights} where a group has one channel: each picture's channels are groups. */
function depthwiseWeights(context: BackwardContext, of: Convolution): string {
  const { x, dY, pictures, channels, outputs, sizes, outSizes, kernel } = of;
  const { make, integers } = context;
  const groups = pictures * channels;
  const long = make("Reshape", [x, integers([1, groups, ...sizes])]);
  const kernels = make("Reshape", [dY, integers([pictures * outputs, 1, ...outSizes])]);
  const product = convolveWith(context, of, long, kernels, groups);
  const apart = make("Reshape", [product, integers([pictures, outputs, 1, ...kernel])]);
  return make("ReduceSum", [apart, integers([0])], { keepdims: 0 });
}

/** Slides dY over X and keeps the positions that are elements of W. */
function convolveWith(
  context: BackwardContext,
  of: Convolution,
  x: string,
  dY: string,
  group: number,
): string {
  const { kernel, strides, dilations, before, sizes, outSizes } = of;
  const trail = kernel.map((size, i) => {
    const reach = dilations[i]! * (size - 1) + strides[i]! * (outSizes[i]! - 1) + 1;
    return Math.max(reach - sizes[i]! - before[i]!, 0);
  });
  const how = { strides: dilations, dilations: strides, kernel_shape: outSizes, group };
  const all = context.make("Conv", [x, dY], { ...how, pads: [...before, ...trail] });
  const made = context.dims(all).slice(2);
  // What lies behind the last window gives positions that no weight has.
  if (made.every((size, i) => size === kernel[i])) return all;
  const axes = kernel.map((_, i) => i + 2);
  const from = kernel.map(() => 0);
  return context.make("Slice", [all, ...[from, kernel, axes].map(context.integers)]);
}

/**
 * dW of a depthwise convolution by matrix products over the rows of a picture. Row r of the kernel
 * sees rows i + d·r of the padded X: their products with the rows of dY, summed over i, hold every
 * pair of columns, of which the diagonals belong to the columns of the kernel.
 *
 *     G[n,c,r,v,j] = Σ_i X[n,c,i + d·r − p,v] · dY[n,c,i,j]
 *     dW[c,r,t]    = Σ_n Σ_j G[n,c,r,j + d·t − p,j]
 *
 * It computes W/k times more than it must, and takes half the time of a grouped convolution, which
 * runs at a tenth of the speed of a matrix product.
 */
function depthwiseRows(context: BackwardContext, of: Convolution): string {
  const { x, dY, pictures, channels } = of;
  const { make, integers } = context;
  const [height, width] = of.sizes as [number, number];
  const [outHeight, outWidth] = of.outSizes as [number, number];
  const [rows, columns] = of.kernel as [number, number];
  const [step, across] = of.dilations as [number, number];
  const [top, left] = of.before as [number, number];
  const bottom = Math.max(outHeight + step * (rows - 1) - height - top, 0);
  const padded =
    top + bottom === 0 ? x : make("Pad", [x, integers([0, 0, top, 0, 0, 0, bottom, 0])]);
  const seen = Array.from({ length: rows }, (_, r) => {
    const span = [[r * step], [r * step + outHeight], [2]].map(integers);
    return make("Slice", [padded, ...span]);
  });
  const unfolded = rows === 1 ? seen[0]! : make("Concat", seen, { axis: 3 });
  const turned = make("Transpose", [unfolded], { perm: [0, 1, 3, 2] });
  const pairs = make("MatMul", [turned, dY]);
  const diagonals = new Float32Array(width * outWidth * columns);
  for (let j = 0; j < outWidth; j++) {
    for (let t = 0; t < columns; t++) {
      const v = j + across * t - left;
      if (v >= 0 && v < width) diagonals[(v * outWidth + j) * columns + t] = 1;
    }
  }
  const flat = make("Reshape", [pairs, integers([pictures * channels * rows, width * outWidth])]);
  const picked = context.floats([width * outWidth, columns], diagonals);
  const each = make("MatMul", [flat, picked]);
  const apart = make("Reshape", [each, integers([pictures, channels, 1, rows, columns])]);
  return make("ReduceSum", [apart, integers([0])], { keepdims: 0 });
}

/** Convolutions. */
export const CONVOLUTION_RULES: Readonly<Record<string, BackwardRule>> = { Conv: conv };
