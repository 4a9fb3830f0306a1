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
  const dims = context.dims(normal);
  const count = context.floats([], [elementCount(axes.map((axis) => dims[axis]!))]);
  const mean = (value: string) =>
    context.make("Div", [
      context.make("ReduceSum", [value, context.integers(axes)], { keepdims: 1 }),
      count,
    ]);
  const along = mean(context.make("Mul", [g, normal]));
  const rest = context.make("Sub", [g, context.make("Mul", [normal, along])]);
  return context.make("Mul", [context.make("Sub", [rest, mean(rest)]), r]);
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

/** Normalization layers. */
export const NORMALIZATION_RULES: Readonly<Record<string, BackwardRule>> = {
  LayerNormalization: layerNormalization,
};
