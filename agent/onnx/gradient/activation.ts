import { floatAttribute, stringAttribute } from "../graph.ts";
import { DataType } from "../tensor.ts";
import {
  type BackwardContext,
  type BackwardRule,
  outputGradient,
  unbroadcast,
} from "./backward-rule.ts";

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

/** 1 where a value lies between two numbers, not on them; else 0. */
function isBetween(context: BackwardContext, value: string, low: number, high: number): string {
  const limits = [context.floats([], [low]), context.floats([], [high])] as const;
  return isWithin(context, value, ...limits, "outside")!;
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

/** y = x where x > 0, else αx, α in [0, 1]: dx = dy · max(1[y > 0], α). */
const leakyRelu = fromDerivative((context, _, y) => {
  const alpha = floatAttribute(context.node, "alpha", 0.01);
  if (!(alpha >= 0 && alpha <= 1)) throw new RangeError(`expected alpha in [0, 1], got ${alpha}`);
  return context.make("Clip", [isPositive(context, y), context.floats([], [alpha])]);
});

/** y = x where x > 0, else s · x: dx = dy where x > 0, else s · dy; ds = dy · x where x < 0. */
const prelu: BackwardRule = (context) => {
  const [x = "", s = ""] = context.node.inputs;
  const dy = outputGradient(context);
  const above = context.make("Mul", [dy, isPositive(context, x)]);
  const below = context.make("Sub", [dy, above]);
  return [
    context.wants(0) ? context.make("Add", [above, context.make("Mul", [below, s])]) : undefined,
    context.wants(1)
      ? unbroadcast(context, context.make("Mul", [below, x]), context.dims(s))
      : undefined,
  ];
};

/** y = x where x > 0, else α · (eˣ − 1): dx = dy where y > 0, else dy · (y + α). */
const elu = fromDerivative((context, x, y) => {
  const alpha = floatAttribute(context.node, "alpha", 1);
  const number = (value: number) => context.floats([], [value]);
  // With α = 1 the slope min(y + 1, 1) has no step at 0.
  const slope = context.make("Add", [y, number(alpha)]);
  const capped = context.make("Clip", [slope, "", number(alpha)]);
  if (alpha === 1) return capped;
  const step = context.make("Mul", [isPositive(context, x), number(1 - alpha)]);
  return context.make("Add", [capped, step]);
});

/** y = ln(1 + eˣ): dx = dy · σ(x). */
const softplus = fromDerivative((context, x) => context.make("Sigmoid", [x]));

/** y = tanh x: dx = dy · (1 − y²). */
const tanh = fromDerivative((context, _, y) =>
  context.make("Sub", [context.floats([], [1]), context.make("Mul", [y, y])]),
);

/** y = max(0, min(1, αx + β)): dx = dy · α · 1[0 < y < 1]. */
const hardSigmoid = fromDerivative((context, _, y) => {
  const alpha = context.floats([], [floatAttribute(context.node, "alpha", 0.2)]);
  return context.make("Mul", [isBetween(context, y, 0, 1), alpha]);
});

/** y = x · h with h = max(0, min(1, x/6 + ½)): dx = dy · (h + (h − ½) · 1[0 < h < 1]). */
const hardSwish = fromDerivative((context, x) => {
  const half = { type: "float", value: 0.5 } as const;
  const h = context.make("HardSigmoid", [x], { alpha: 1 / 6, beta: half });
  const centered = context.make("Sub", [h, context.floats([], [0.5])]);
  const rest = context.make("Mul", [centered, isBetween(context, h, 0, 1)]);
  return context.make("Add", [h, rest]);
});

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

/**
 * y = x · Φ(x) with Φ(x) = ½ (1 + erf(x / √2)): dx = dy · (Φ(x) + x · φ(x)), φ the density of the
 * normal distribution. With approximate = "tanh", y = x · s with s = σ(x · r), r = 2a + 2ab · x²,
 * a = √(2/π), b = 0.044715 (½ (1 + tanh u) = σ(2u)): dx = dy · (s + y · (1 − s) · (r + 4ab · x²)).
 */
const gelu: BackwardRule = (context) => {
  const tanh = stringAttribute(context.node, "approximate", "none") === "tanh";
  return (tanh ? tanhGelu : erfGelu)(context);
};

const erfGelu = fromDerivative((context, x) => {
  const u = context.make("Mul", [x, context.floats([], [Math.SQRT1_2])]);
  const half = { type: "float", value: 0.5 } as const;
  // ½ · erf + ½ as a single pass: nothing is cut off.
  const share = context.make("HardSigmoid", [context.make("Erf", [u])], {
    alpha: half,
    beta: half,
  });
  const factor = context.floats([], [-Math.log(2 * Math.PI) / 2]);
  const exponent = context.make("Sub", [factor, context.make("Mul", [u, u])]);
  const rest = context.make("Mul", [x, context.make("Exp", [exponent])]);
  return context.make("Add", [share, rest]);
});

const tanhGelu = fromDerivative((context, x, y) => {
  const a = Math.sqrt(2 / Math.PI);
  const ab = a * 0.044715;
  const number = (value: number) => context.floats([], [value]);
  const square = context.make("Mul", [x, x]);
  const r = context.make("Add", [context.make("Mul", [square, number(2 * ab)]), number(2 * a)]);
  const s = context.make("Sigmoid", [context.make("Mul", [x, r])]);
  const slope = context.make("Add", [r, context.make("Mul", [square, number(4 * ab)])]);
  const rest = context.make("Mul", [y, context.make("Sub", [number(1), s])]);
  return context.make("Add", [s, context.make("Mul", [rest, slope])]);
});

/** Activation functions, element by element. */
export const ACTIVATION_RULES: Readonly<Record<string, BackwardRule>> = {
  Relu: relu,
  LeakyRelu: leakyRelu,
  PRelu: prelu,
  Elu: elu,
  Softplus: softplus,
  Tanh: tanh,
  HardSigmoid: hardSigmoid,
  HardSwish: hardSwish,
  Sigmoid: sigmoid,
  Clip: clip,
  Erf: erf,
  Gelu: gelu,
};
