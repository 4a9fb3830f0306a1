import { floatAttribute, intAttribute } from "../graph.ts";
import { elementCount } from "../tensor.ts";
import {
  type BackwardContext,
  type BackwardRule,
  outputGradient,
  unbroadcast,
} from "./backward-rule.ts";

/**
 * Gradient of x behind x̂ = (x − mean) · r with r = 1 / √(var + ε), means along some axes:
 * dx = r · (w − mean(w)) with w = g − x̂ · mean(g · x̂), as x̂ itself has no mean.
 *
 * @param g gradient of x̂.
 * @param r of size 1 along the axes.
 */
function behindStandardization(
  context: BackwardContext,
  g: string,
  normal: string,
  r: string,
  axes: readonly number[],
): string {
  const along = meanAlong(context, context.make("Mul", [g, normal]), axes);
  const rest = context.make("Sub", [g, context.make("Mul", [normal, along])]);
  return context.make("Mul", [context.make("Sub", [rest, meanAlong(context, rest, axes)]), r]);
}

/** Means along some axes, which stay with size 1. */
function meanAlong(context: BackwardContext, value: string, axes: readonly number[]): string {
  const dims = context.dims(value);
  const sum = context.make("ReduceSum", [value, context.integers(axes)], { keepdims: 1 });
  const share = 1 / elementCount(axes.map((axis) => dims[axis]!));
  return context.make("Mul", [sum, context.floats([], [share])]);
}

/**
 * y = γ · x̂ + β with x̂ = (x − mean) / √(var + ε) over the axes from `axis` on:
 * dβ = Σ dy, dγ = Σ dy · x̂, and dx as {@link behindStandardization} has it, of g = γ · dy.
 *
 * x̂ and 1 / √(var + ε) are had again by one more LayerNormalization, which is a single pass, so
 * that of the forward graph only x is kept.
 */
const layerNormalization: BackwardRule = (context) => {
  const { node } = context;
  if (context.gradientOf(1) !== undefined || context.gradientOf(2) !== undefined) {
    throw new RangeError("the loss reads its mean or deviation");
  }
  const [x = "", scale = "", bias = ""] = node.inputs;
  const dims = context.dims(x);
  const axis = intAttribute(node, "axis", -1);
  const first = axis < 0 ? axis + dims.length : axis;
  const dy = outputGradient(context);
  const dBias = context.wants(2) ? unbroadcast(context, dy, context.dims(bias)) : undefined;
  if (!context.wants(0) && !context.wants(1)) return [undefined, undefined, dBias];
  const ones = context.floats([], [1]);
  const [normal = "", , r = ""] = context.makeSeveral(
    "LayerNormalization",
    [x, context.make("Expand", [ones, context.integers(dims.slice(first))])],
    3,
    { axis, epsilon: { type: "float", value: floatAttribute(node, "epsilon", 1e-5) } },
  );
  const axes = dims.flatMap((_, i) => (i < first ? [] : [i]));
  return [
    context.wants(0)
      ? behindStandardization(context, context.make("Mul", [dy, scale]), normal, r, axes)
      : undefined,
    context.wants(1)
      ? unbroadcast(context, context.make("Mul", [dy, normal]), context.dims(scale))
      : undefined,
    dBias,
  ];
};

/**
 * y = γ · x̂ + β with x̂ = (x − mean) · r, r = 1 / √(var + ε) and constant statistics (inference), a
 * channel each: dx = dy · γr, dβ = Σ dy, dγ = Σ dy · x̂, and of the statistics, for whoever trains
 * them, dmean = −γr · dβ, dvar = −½ γr² · dγ.
 */
const batchNormalization: BackwardRule = (context) => {
  const { node } = context;
  if (intAttribute(node, "training_mode", 0) !== 0) {
    throw new RangeError("it is in training mode; expected the form for inference");
  }
  const [x = "", scale = "", , mean = "", variance = ""] = node.inputs;
  const dims = context.dims(x);
  const dy = outputGradient(context);
  const epsilon = context.floats([], [floatAttribute(node, "epsilon", 1e-5)]);
  const root = context.make("Sqrt", [context.make("Add", [variance, epsilon])]);
  const gain = context.make("Div", [scale, root]);
  const ofChannels = (value: string) =>
    context.make("Reshape", [value, context.integers([-1, ...dims.slice(2).map(() => 1)])]);
  const overChannels = (value: string) => sumOverChannels(context, value);
  const [, ofScale, ofBias, ofMean, ofVariance] = node.inputs.map((_, i) => context.wants(i));
  const dBias = ofBias || ofMean ? overChannels(dy) : undefined;
  let dScale: string | undefined;
  if (ofScale || ofVariance) {
    // Centered first: the sum of dy · x would lose the digits that a far mean has.
    const centered = context.make("Sub", [x, ofChannels(mean)]);
    dScale = context.make("Div", [overChannels(context.make("Mul", [dy, centered])), root]);
  }
  return [
    context.wants(0) ? context.make("Mul", [dy, ofChannels(gain)]) : undefined,
    ofScale ? dScale : undefined,
    ofBias ? dBias : undefined,
    ofMean ? context.make("Neg", [context.make("Mul", [dBias!, gain])]) : undefined,
    ofVariance ? varianceGradient(context, dScale!, gain, root) : undefined,
  ];
};

/** Sum over all axes but the second, which remains alone. */
function sumOverChannels(context: BackwardContext, value: string): string {
  const axes = context.dims(value).flatMap((_, axis) => (axis === 1 ? [] : [axis]));
  return context.make("ReduceSum", [value, context.integers(axes)], { keepdims: 0 });
}

/** −½ γr² · dγ, from dγ, γr and 1 / r. */
function varianceGradient(
  context: BackwardContext,
  dScale: string,
  gain: string,
  root: string,
): string {
  const share = context.make("Div", [context.make("Mul", [dScale, gain]), root]);
  return context.make("Mul", [share, context.floats([], [-0.5])]);
}

/**
 * y = γ · x̂ + β with x̂ = (x − mean) / √(var + ε) over all positions of a channel of a picture:
 * like {@link layerNormalization}, with γ and β a channel.
 */
const instanceNormalization: BackwardRule = (context) => {
  const { node } = context;
  const [x = "", scale = ""] = node.inputs;
  const dims = context.dims(x);
  const dy = outputGradient(context);
  const axes = dims.flatMap((_, axis) => (axis < 2 ? [] : [axis]));
  const epsilon = context.floats([], [floatAttribute(node, "epsilon", 1e-5)]);
  const centered = context.make("Sub", [x, meanAlong(context, x, axes)]);
  const variance = meanAlong(context, context.make("Mul", [centered, centered]), axes);
  const root = context.make("Sqrt", [context.make("Add", [variance, epsilon])]);
  const r = context.make("Reciprocal", [root]);
  const normal = context.make("Mul", [centered, r]);
  const ofChannels = context.integers([-1, ...axes.map(() => 1)]);
  const g = () => context.make("Mul", [dy, context.make("Reshape", [scale, ofChannels])]);
  return [
    context.wants(0) ? behindStandardization(context, g(), normal, r, axes) : undefined,
    context.wants(1) ? sumOverChannels(context, context.make("Mul", [dy, normal])) : undefined,
    context.wants(2) ? sumOverChannels(context, dy) : undefined,
  ];
};

/** Normalization layers. */
export const NORMALIZATION_RULES: Readonly<Record<string, BackwardRule>> = {
  LayerNormalization: layerNormalization,
  BatchNormalization: batchNormalization,
  InstanceNormalization: instanceNormalization,
};
