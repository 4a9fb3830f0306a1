import { intAttribute, intsAttribute } from "../graph.ts";
import { DataType, elementCount } from "../tensor.ts";
import { type BackwardContext, type BackwardRule, outputGradient } from "./backward-rule.ts";

/** What a reduction goes over, and its shapes. */
interface Reduction {
  /** Axes counted from the front. */
  readonly axes: readonly number[];
  /** Shape of the input. */
  readonly dims: readonly number[];
  /** Shape of the output with every reduced axis kept at size 1. */
  readonly kept: readonly number[];
  /** Number of elements that make one. */
  readonly count: number;
}

/**
 * Axes are an attribute or, by operator set, the second input; none are all, unless
 * `noop_with_empty_axes`, which reduces nothing.
 */
function reductionOf(context: BackwardContext): Reduction {
  const { node } = context;
  const dims = context.dims(node.inputs[0]!);
  const stated = node.inputs[1] ? context.values(node.inputs[1]) : intsAttribute(node, "axes", []);
  if (stated === undefined) throw new RangeError("its axes are not constant");
  const nothing = stated.length === 0 && intAttribute(node, "noop_with_empty_axes", 0) !== 0;
  const all = stated.length === 0 && !nothing;
  const axes = all
    ? dims.map((_, axis) => axis)
    : stated.map((axis) => (axis < 0 ? axis + dims.length : axis));
  return {
    axes,
    dims,
    kept: dims.map((size, axis) => (axes.includes(axis) ? 1 : size)),
    count: elementCount(axes.map((axis) => dims[axis]!)),
  };
}

/** A value in the shape of the output, with the reduced axes at size 1, so that it broadcasts. */
function withAxes(context: BackwardContext, value: string, kept: readonly number[]): string {
  if (context.dims(value).join() === kept.join()) return value;
  return context.make("Reshape", [value, context.integers(kept)]);
}

/** The gradient of all elements that a sum was made of: the sum's own. */
function spread(context: BackwardContext, gradient: string, { kept, dims }: Reduction): string {
  const column = withAxes(context, gradient, kept);
  if (kept.join() === dims.join()) return column;
  return context.make("Expand", [column, context.integers(dims)]);
}

/** y = Σ x over axes: dx = dy. */
const reduceSum: BackwardRule = (context) => [
  spread(context, outputGradient(context), reductionOf(context)),
];

/** y = 1/n Σ x over axes: dx = dy / n, divided before it is spread. */
const reduceMean: BackwardRule = (context) => {
  const reduction = reductionOf(context);
  const count = context.floats([], [reduction.count]);
  return [spread(context, context.make("Div", [outputGradient(context), count]), reduction)];
};

/**
 * y = max x or min x over axes: dx = dy · 1[x = y] / k, where k elements reach y: a subgradient,
 * shared evenly, as PyTorch's `amax` has it.
 */
const reduceExtreme: BackwardRule = (context) => {
  const { node } = context;
  const { kept, axes } = reductionOf(context);
  const y = withAxes(context, node.outputs[0]!, kept);
  const reaches = context.make("Cast", [context.make("Equal", [node.inputs[0]!, y])], {
    to: DataType.FLOAT,
  });
  const dy = withAxes(context, outputGradient(context), kept);
  // A list without axes would be all of them.
  if (axes.length === 0) return [dy];
  const ties = context.make("ReduceSum", [reaches, context.integers(axes)], { keepdims: 1 });
  return [context.make("Mul", [reaches, context.make("Div", [dy, ties])])];
};

/** Below it a length is no divisor: near the smallest normal float32. */
const LEAST_LENGTH = 2 ** -120;

/** y = √(Σ x²) over axes: dx = x · dy / y; 0 where y is 0, which is a subgradient. */
const reduceL2: BackwardRule = (context) => {
  const { node } = context;
  const { kept } = reductionOf(context);
  const length = context.make("Max", [node.outputs[0]!, context.floats([], [LEAST_LENGTH])]);
  const share = context.make("Div", [outputGradient(context), length]);
  return [context.make("Mul", [node.inputs[0]!, withAxes(context, share, kept)])];
};

/** Sums, means and extremes over axes. */
export const REDUCTION_RULES: Readonly<Record<string, BackwardRule>> = {
  ReduceSum: reduceSum,
  ReduceMean: reduceMean,
  ReduceMax: reduceExtreme,
  ReduceMin: reduceExtreme,
  ReduceL2: reduceL2,
};
