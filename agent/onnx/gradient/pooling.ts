import { intAttribute, intsAttribute, stringAttribute } from "../graph.ts";
import { type BackwardContext, type BackwardRule, outputGradient } from "./backward-rule.ts";
import { type Sliding, slidingOf, spreading } from "./sliding.ts";

/** A pool's sizes. */
interface Pool extends Sliding {
  readonly x: string;
  /** Pictures times channels. */
  readonly planes: number;
  readonly dims: readonly number[];
  /** Spatial sizes of X and of Y. */
  readonly sizes: readonly number[];
  readonly outSizes: readonly number[];
}

function poolOf({ node, dims }: BackwardContext): Pool {
  const [x, y] = [node.inputs[0]!, node.outputs[0]!];
  const sizes = dims(x).slice(2);
  return {
    ...slidingOf(node, sizes, intsAttribute(node, "kernel_shape", [])),
    x,
    planes: dims(x)[0]! * dims(x)[1]!,
    dims: dims(x),
    sizes,
    outSizes: dims(y).slice(2),
  };
}

/**
 * MaxPool: y[i] = x[m(i)], m(i) the first largest element under window i. dx[h] is the sum of
 * dy[i] over all i with m(i) = h; as PyTorch does, the first of several equal ones gets it all.
 *
 * MaxPool's second output says where m(i) lies. Where that is the place of a tap r of the window,
 * the tap's own copy of dy stays, else it becomes zero; ConvTranspose with kernels that hold one
 * tap each adds them up at their places. (ScatterElements adds only from operator set 16 on.)
 */
const maxPool: BackwardRule = (context) => {
  const { node, make, makeSeveral, integers, floats } = context;
  const pool = poolOf(context);
  const { x, planes, dims, sizes, outSizes, kernel, strides, dilations } = pool;
  const pads = { ...paddingOf(context, pool), kernel_shape: kernel, strides, dilations };
  const ceil_mode = intAttribute(node, "ceil_mode", 0);
  const [, found] = makeSeveral("MaxPool", [x], 2, { ...pads, ceil_mode }) as [string, string];
  const area = sizes.reduce((product, size) => product * size, 1);
  const taps = kernel.reduce((product, size) => product * size, 1);
  const ones = sizes.map(() => 1);
  const starts = integers(Array.from({ length: planes }, (_, plane) => plane * area));
  const inPlane = make("Sub", [
    make("Reshape", [found, integers([planes, 1, ...outSizes])]),
    make("Reshape", [starts, integers([planes, 1, ...ones])]),
  ]);
  const places = make("Reshape", [integers(tapPlaces(pool)), integers([1, taps, ...outSizes])]);
  const dY = make("Reshape", [outputGradient(context), integers([planes, 1, ...outSizes])]);
  const kept = make("Where", [make("Equal", [inPlane, places]), dY, floats([], [0])]);
  const oneHot = Float32Array.from({ length: taps * taps }, (_, i) =>
    Math.floor(i / taps) === i % taps ? 1 : 0,
  );
  const kernels = floats([taps, 1, ...kernel], oneHot);
  return [make("Reshape", [spread(context, pool, kept, kernels), integers(dims)])];
};

/** Attributes that pad as the pool does; those of a name have `auto_pad`. */
function paddingOf({ node }: BackwardContext, { before, after }: Sliding) {
  const auto_pad = stringAttribute(node, "auto_pad", "NOTSET");
  return auto_pad === "NOTSET" ? { pads: [...before, ...after] } : { auto_pad };
}

/**
 * Where each tap of each window lies in a plane: `[taps, windows]`, row-major; −1 in the padding.
 */
function tapPlaces({ kernel, strides, dilations, before, sizes, outSizes }: Pool): number[] {
  return indicesOf(kernel).flatMap((tap) =>
    indicesOf(outSizes).map((window) =>
      sizes.reduce((place, size, i) => {
        const at = window[i]! * strides[i]! + tap[i]! * dilations[i]! - before[i]!;
        return place < 0 || at < 0 || at >= size ? -1 : place * size + at;
      }, 0),
    ),
  );
}

/** All indices of a shape, the last axis fastest. */
function indicesOf(dims: readonly number[]): number[][] {
  return dims.reduce<number[][]>(
    (before, size) =>
      before.flatMap((index) => Array.from({ length: size }, (_, i) => [...index, i])),
    [[]],
  );
}

/** Brings `[planes, kernels, windows]` back to the elements under the windows: `[planes, 1, …]`. */
function spread(context: BackwardContext, pool: Pool, value: string, kernels: string): string {
  const { planes, sizes, outSizes, kernel, strides, dilations } = pool;
  const how = { kernel_shape: kernel, strides, dilations, ...spreading(pool, sizes, outSizes) };
  return context.make("ConvTranspose", [value, kernels], how, [planes, 1, ...sizes]);
}

/**
 * AveragePool: y[i] = 1/n(i) Σ_r x[s·i + d·r − p]: dx[h] = Σ dy[i]/n(i) over the windows i that
 * see h. n(i) is the number of elements under window i, with `count_include_pad` those of the
 * padding too, but not what a last window has beyond it (`ceil_mode`).
 */
const averagePool: BackwardRule = (context) => {
  const { node, make, integers, floats } = context;
  const pool = poolOf(context);
  const { planes, dims, outSizes, kernel } = pool;
  const padding = intAttribute(node, "count_include_pad", 0) !== 0;
  const shares = floats(
    [1, ...outSizes],
    countCells(pool, padding).map((count) => 1 / count),
  );
  const dY = make("Reshape", [outputGradient(context), integers([planes, ...outSizes])]);
  const share = make("Reshape", [make("Mul", [dY, shares]), integers([planes, 1, ...outSizes])]);
  const taps = kernel.reduce((product, size) => product * size, 1);
  const ones = floats([1, 1, ...kernel], new Float32Array(taps).fill(1));
  return [make("Reshape", [spread(context, pool, share, ones), integers(dims)])];
};

/** Number of elements under each window, row-major. */
function countCells(pool: Pool, padding: boolean): number[] {
  const { kernel, strides, dilations, before, after, sizes, outSizes } = pool;
  const along = sizes.map((size, i) => {
    const [from, to] = padding ? [-before[i]!, size + after[i]!] : [0, size];
    return Array.from({ length: outSizes[i]! }, (_, window) => {
      const start = window * strides[i]! - before[i]!;
      const taps = Array.from({ length: kernel[i]! }, (_, tap) => start + tap * dilations[i]!);
      return taps.filter((place) => place >= from && place < to).length;
    });
  });
  return indicesOf(outSizes).map((window) =>
    window.reduce((product, at, i) => product * along[i]![at]!, 1),
  );
}

/** GlobalAveragePool: y = mean of x over its positions: dx = dy / positions, everywhere. */
const globalAveragePool: BackwardRule = (context) => {
  const dims = context.dims(context.node.inputs[0]!);
  const positions = dims.slice(2).reduce((product, size) => product * size, 1);
  const share = context.make("Mul", [outputGradient(context), context.floats([], [1 / positions])]);
  return [context.make("Expand", [share, context.integers(dims)])];
};

/** GlobalMaxPool: y = x at its first largest position, where dx = dy; elsewhere dx = 0. */
const globalMaxPool: BackwardRule = (context) => {
  const { make, integers, floats } = context;
  const x = context.node.inputs[0]!;
  const dims = context.dims(x);
  const [pictures, channels, ...sizes] = dims as [number, number, ...number[]];
  const positions = sizes.reduce((product, size) => product * size, 1);
  const one = [pictures, channels, 1];
  const flat = make("Reshape", [x, integers([pictures, channels, positions])]);
  const first = make("ArgMax", [flat], { axis: 2, keepdims: 1 }, one);
  const places = integers(Array.from({ length: positions }, (_, place) => place));
  const dY = make("Reshape", [outputGradient(context), integers(one)]);
  const kept = make("Where", [make("Equal", [first, places]), dY, floats([], [0])]);
  return [make("Reshape", [kept, integers(dims)])];
};

/** Pooling. */
export const POOLING_RULES: Readonly<Record<string, BackwardRule>> = {
  MaxPool: maxPool,
  AveragePool: averagePool,
  GlobalAveragePool: globalAveragePool,
  GlobalMaxPool: globalMaxPool,
};
