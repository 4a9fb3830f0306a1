import { floatAttribute } from "../graph.ts";
import { type BackwardContext, type BackwardRule, outputGradient } from "./backward-rule.ts";

/**
 * 1 where a value is positive, else 0.
 *
 * A steep HardSigmoid, max(0, min(1, 2¹⁰⁰ · x)), is one fast pass of ONNX Runtime: three times as
 * fast as Sign, and faster than Greater with a Cast. Between 0 and 2⁻¹⁰⁰ it rises.
 */
function isPositive(context: BackwardContext, value: string): string {
  const steep = { type: "float", value: 2 ** 100 } as const;
  return context.make("HardSigmoid", [value], { alpha: steep, beta: { type: "float", value: 0 } });
}

/**
 * 1 where a value lies between two limits, else 0; on a limit `edge` decides.
 *
 * Comparisons write bytes, not floats: less memory traffic than products of two masks.
 *
 * @param low,high names of numbers or of what broadcasts to the value; undefined: no limit.
 * @returns undefined where there is no limit at all.
 */
export function isWithin(
  context: BackwardContext,
  value: string,
  low: string | undefined,
  high: string | undefined,
  edge: "inside" | "outside",
): string | undefined {
  const orEqual = edge === "inside" ? "OrEqual" : "";
  const above = low && context.make(`Greater${orEqual}`, [value, low]);
  const below = high && context.make(`Less${orEqual}`, [value, high]);
  const both = above && below ? context.make("And", [above, below]) : above || below;
  return both ? context.make("Cast", [both], { to: DataType.FLOAT }) : undefined;
}

/** The rule of y = f(x) from its derivative f′(x). */
function fromDerivative(
  derivative: (context: BackwardContext, x: string, y: string) => string,
): BackwardRule {
  return (context) => {
    const slope = derivative(context, context.node.inputs[0]!, context.node.outputs[0]!);
    return [context.make("Mul", [outputGradient(context), slope])];
  };
}

/** y = max(x, 0): dx = dy · 1[y > 0]. */
const relu = fromDerivative((context, _, y) => isPositive(context, y));

/** y = σ(x): dx = dy · y · (1 − y). */
const sigmoid = fromDerivative((context, _, y) =>
  context.make("Mul", [y, context.make("Sub", [context.floats([], [1]), y])]),
);

/**
 * y = x · σ(x), as exporters write swish: dx = dy · (y + s · (1 − y)) with s = σ(x).
 *
 * For the pair at once, from its two results: four passes over memory instead of six, and x, which
 * is large, is not kept.
 *
 * @returns the gradients of a Mul's inputs; undefined if it is no swish.
 */
export function swishGradient(
  context: BackwardContext,
): readonly (string | undefined)[] | undefined {
  const { inputs, outputs } = context.node;
  const gate = inputs.findIndex((name, i) => {
    const maker = context.producer(name);
    return maker?.opType === "Sigmoid" && maker.inputs[0] === inputs[1 - i];
  });
  if (gate < 0) return undefined;
  const [s, y] = [inputs[gate]!, outputs[0]!];
  const rest = context.make("Sub", [context.floats([], [1]), y]);
  const slope = context.make("Add", [context.make("Mul", [s, rest]), y]);
  const dx = context.make("Mul", [outputGradient(context), slope]);
  return gate === 0 ? [undefined, dx] : [dx, undefined];
}

/** y = min(max(x, low), high): dx = dy · 1[low < y < high]. */
const clip: BackwardRule = (context) => {
  const [, low, high] = context.node.inputs;
  const dy = outputGradient(context);
  const mask = isWithin(context, context.node.outputs[0]!, low, high, "outside");
  return [mask ? context.make("Mul", [dy, mask]) : dy];
};

/** y = erf(x): dx = dy · 2/√π · e^(−x²), with the factor as a summand of the exponent. */
const erf = fromDerivative((context, x) => {
  const factor = context.floats([], [Math.log(2 / Math.sqrt(Math.PI))]);
  return context.make("Exp", [context.make("Sub", [factor, context.make("Mul", [x, x])])]);
});

/** Activation functions, element by element. */
export const ACTIVATION_RULES: Readonly<Record<string, BackwardRule>> = {
  Relu: relu,
  Sigmoid: sigmoid,
  Clip: clip,
  Erf: erf,
};
