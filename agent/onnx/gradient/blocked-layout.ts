import { BLOCKED_CONV, BLOCKED_MEAN, REORDER_INPUT, REORDER_OUTPUT } from "../blocked-layout.ts";
import type { Node } from "../graph.ts";
import { type BackwardContext, type BackwardRule, outputGradient } from "./backward-rule.ts";
import { type Convolution, convolutionOf, productOverPositions } from "./convolution.ts";

/**
 * Conv in the blocked layout, depthwise or pointwise, with dX and dW in the layouts of X and of the
 * weights (`toBlockedLayout`). The formulas are those of Conv.
 */
const conv: BackwardRule = (context) => {
  const { wants } = context;
  const of = convolutionOf(context);
  if (of.groups === 1) return pointwise(context, of);
  return [
    wants(0) ? depthwiseInputs(context, of) : undefined,
    wants(1) ? depthwiseWeights(context, of) : undefined,
    wants(2) ? sumOfMaps(context, of) : undefined,
  ];
};

/** The node that turned weights into blocks, behind which a Reshape gave them their shape. */
function layoutOf({ producer }: BackwardContext, w: string): Node {
  const turned = producer(producer(w)?.inputs[0] ?? "");
  if (turned?.opType === "Transpose") return turned;
  throw new RangeError(`"${w}" were not laid out in blocks`);
}

/**
 * A depthwise convolution of dY with flipped kernels, the gaps between its elements filled with
 * zeros where strides left some.
 */
function depthwiseInputs(context: BackwardContext, of: Convolution): string {
  const { make, integers } = context;
  const { dY, w, kernel, strides, before, pictures, channels, sizes, outSizes } = of;
  const plain = { kernel_shape: kernel, group: channels };
  if ([...kernel, ...strides].every((size) => size === 1))
    return make(BLOCKED_CONV, [dY, w], plain);
  const block = context.dims(layoutOf(context, w).outputs[0]!).at(-1)!;
  const blocks = channels / block;
  const taps = make("Reshape", [w, integers([blocks, ...kernel, block])]);
  const [last, first] = [integers([-1, -1]), integers([-(2 ** 31), -(2 ** 31)])];
  const flipped = make("Slice", [taps, last, first, integers([1, 2]), last]);
  const weights = make("Reshape", [flipped, integers([channels, 1, ...kernel])]);
  let spread = dY;
  if (strides.some((stride) => stride > 1)) {
    const [height, width] = outSizes as [number, number];
    const [down, across] = strides as [number, number];
    const lines = make("Reshape", [dY, integers([pictures * blocks * height, 1, width, block])]);
    const zeros = integers([0, 0, 0, 0, 0, down - 1, 0, (across - 1) * block]);
    const among = make("Pad", [lines, zeros]);
    const whole = [pictures, channels, height * down, width * across];
    spread = make("Reshape", [among, integers(whole)]);
  }
  const lead = kernel.map((size, i) => size - 1 - before[i]!);
  const trail = kernel.map((_, i) => sizes[i]! - outSizes[i]! * strides[i]! + before[i]!);
  return make(BLOCKED_CONV, [spread, weights], { ...plain, pads: [...lead, ...trail] });
}

/**
 * A depthwise convolution of X with dY as its kernels, each picture's channels being channels of
 * one picture: a blocked value and depthwise weights are laid out alike, [C/B, H, W, B]. Strides and
 * dilations change places.
 */
function depthwiseWeights(context: BackwardContext, of: Convolution): string {
  const { make, integers } = context;
  const { x, w, dY, kernel, strides, before, pictures, channels, sizes, outSizes } = of;
  const all = pictures * channels;
  const long = make("Reshape", [x, integers([1, all, ...sizes])]);
  const kernels = make("Reshape", [dY, integers([all, 1, ...outSizes])]);
  const trail = kernel.map((size, i) => {
    const reach = size + strides[i]! * (outSizes[i]! - 1);
    return Math.max(reach - sizes[i]! - before[i]!, 0);
  });
  const how = { kernel_shape: outSizes, dilations: strides, group: all };
  const slid = make(BLOCKED_CONV, [long, kernels], { ...how, pads: [...before, ...trail] });
  const made = context.dims(slid).slice(2);
  let taps = slid;
  if (made.some((size, i) => size !== kernel[i])) {
    const block = context.dims(layoutOf(context, w).outputs[0]!).at(-1)!;
    const maps = make("Reshape", [slid, integers([pictures, channels / block, ...made, block])]);
    taps = make("Slice", [maps, ...[[0, 0], kernel, [2, 3]].map(integers)]);
  }
  const flat = make("Reshape", [taps, integers([pictures, channels * kernel[0]! * kernel[1]!])]);
  const sum = make("ReduceSum", [flat, integers([0])], { keepdims: 0 });
  return make("Reshape", [sum, integers([channels, 1, ...kernel])]);
}

/** db, by way of the mean over each map: the fastest pass over a blocked value. */
function sumOfMaps(context: BackwardContext, of: Convolution): string {
  const { make, integers } = context;
  const { dY, pictures, outputs, outSizes } = of;
  const means = make("Reshape", [make(BLOCKED_MEAN, [dY]), integers([pictures, outputs])]);
  const mean = make("ReduceSum", [means, integers([0])], { keepdims: 0 });
  return make("Mul", [mean, context.floats([], [outSizes[0]! * outSizes[1]!])]);
}

/**
 * dX is a pointwise convolution of dY, inputs and outputs exchanged. dW and db are sums over all
 * positions: of X and dY in the plain layout, or where maps are small, with positions before channels,
 * which is a single matrix product and takes whole blocks to their places.
 */
function pointwise(context: BackwardContext, of: Convolution): (string | undefined)[] {
  const { make, integers, wants } = context;
  const { x, w, dY, pictures, channels, outputs, outSizes } = of;
  // [O/B, B, C/B, B], before it was turned.
  const apart = layoutOf(context, w).inputs[0]!;
  const positions = outSizes[0]! * outSizes[1]!;
  const dX = () => {
    const turned = make("Transpose", [apart], { perm: [2, 0, 1, 3] });
    const weights = make("Reshape", [turned, integers([channels, outputs, 1, 1])]);
    return make(BLOCKED_CONV, [dY, weights], { kernel_shape: [1, 1] });
  };
  const small = channels * outputs > positions * (channels + outputs);
  let [weights, bias]: (string | undefined)[] = [];
  if (small) {
    const block = context.dims(apart)[1]!;
    const left = rowsOfPositions(context, dY, block);
    const right = () => rowsOfPositions(context, x, block);
    if (wants(1)) weights = make("Gemm", [left, right()], { transA: 1 });
    const ones = new Float32Array(pictures * positions).fill(1);
    const row = context.floats([1, ones.length], ones);
    if (wants(2)) bias = make("Reshape", [make("MatMul", [row, left]), integers([outputs])]);
  } else {
    const left = make(REORDER_OUTPUT, [dY], { channels: outputs });
    if (wants(1)) {
      const right = make(REORDER_OUTPUT, [x], { channels });
      weights = productOverPositions(context, right, left);
    }
    if (wants(2)) bias = make("ReduceSum", [left, integers([0, 2, 3])], { keepdims: 0 });
  }
  return [wants(0) ? dX() : undefined, weights && inBlocks(context, weights, apart), bias];
}

/** A blocked value as `[N·H·W, C]`. */
function rowsOfPositions(
  { make, dims, integers }: BackwardContext,
  value: string,
  block: number,
): string {
  const [pictures, channels, height, width] = dims(value) as [number, number, number, number];
  const positions = height * width;
  const apart = [pictures, channels / block, positions, block];
  const maps = make("Reshape", [value, integers(apart)]);
  const turned = make("Transpose", [maps], { perm: [0, 2, 1, 3] });
  return make("Reshape", [turned, integers([pictures * positions, channels])]);
}

/** `O × C` elements as the weights of a pointwise convolution are laid out. */
function inBlocks(context: BackwardContext, product: string, apart: string): string {
  const { make, integers } = context;
  const [outer, block, inner] = context.dims(apart) as [number, number, number, number];
  const own = make("Reshape", [product, integers([outer, block, inner, block])]);
  const turned = make("Transpose", [own], { perm: [0, 2, 3, 1] });
  return make("Reshape", [turned, integers([outer * block, inner * block, 1, 1])]);
}

/** To the blocked layout: dX comes back to the plain one. */
const reorderInput: BackwardRule = (context) => {
  const [, channels] = context.dims(context.node.inputs[0]!);
  return [context.make(REORDER_OUTPUT, [outputGradient(context)], { channels: channels! })];
};

/** To the plain layout: dX goes to the blocked one, zero in the channels that were left out. */
const reorderOutput: BackwardRule = (context) => {
  const dY = outputGradient(context);
  const [whole, channels] = [context.dims(context.node.inputs[0]!)[1]!, context.dims(dY)[1]!];
  const pads = context.integers([0, 0, 0, 0, 0, whole - channels, 0, 0]);
  const filled = whole === channels ? dY : context.make("Pad", [dY, pads]);
  return [context.make(REORDER_INPUT, [filled])];
};

/** Operators of ONNX Runtime's blocked layout, in networks of fixed shapes. */
export const BLOCKED_RULES: Readonly<Record<string, BackwardRule>> = {
  [BLOCKED_CONV]: conv,
  [REORDER_INPUT]: reorderInput,
  [REORDER_OUTPUT]: reorderOutput,
};
