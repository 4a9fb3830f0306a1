import { intAttribute } from "../graph.ts";
import {
  DataType,
  dataTypeName,
  integersOf,
  isFloatType,
  type Tensor,
  toFloat32,
} from "../tensor.ts";
import { swishGradient } from "./activation.ts";
import {
  type BackwardContext,
  type BackwardRule,
  outputGradient,
  unbroadcast,
} from "./backward-rule.ts";

/** Gradient of an input from one in the shape of the output: summed where it was broadcast. */
function forInput(context: BackwardContext, input: number, gradient: string): string {
  return unbroadcast(context, gradient, context.dims(context.node.inputs[input]!));
}

/** y = a + b + …: every gradient is dy. */
const add: BackwardRule = (context) => {
  const dy = outputGradient(context);
  return context.node.inputs.map((_, i) =>
    context.wants(i) ? forInput(context, i, dy) : undefined,
  );
};

/** y = a − b: da = dy, db = −dy. */
const sub: BackwardRule = (context) => {
  const dy = outputGradient(context);
  return [
    context.wants(0) ? forInput(context, 0, dy) : undefined,
    // Summed before it is negated: that is the smaller one to go through.
    context.wants(1) ? context.make("Neg", [forInput(context, 1, dy)]) : undefined,
  ];
};

/** y = a · b: da = dy · b, db = dy · a; for a square dx = dy · 2x at once. */
const mul: BackwardRule = (context) => {
  const [a = "", b = ""] = context.node.inputs;
  const dy = outputGradient(context);
  if (a === b) return [context.make("Mul", [dy, context.make("Add", [a, a])])];
  const swish = swishGradient(context);
  if (swish) return swish;
  const product = (input: number, other: string) =>
    context.wants(input) ? forInput(context, input, context.make("Mul", [dy, other])) : undefined;
  return [product(0, b), product(1, a)];
};

/** y = a / b: da = dy / b, db = −dy · a / b² = −da · y, from the output. */
const div: BackwardRule = (context) => {
  const [y = ""] = context.node.outputs;
  const share = context.make("Div", [outputGradient(context), context.node.inputs[1]!]);
  return [
    context.wants(0) ? forInput(context, 0, share) : undefined,
    context.wants(1)
      ? context.make("Neg", [forInput(context, 1, context.make("Mul", [share, y]))])
      : undefined,
  ];
};

/** y = (a + b + …) / n: every gradient is dy / n. */
const mean: BackwardRule = (context) => {
  const { inputs } = context.node;
  const dy = outputGradient(context);
  if (inputs.length === 1) return [dy];
  const share = context.make("Mul", [dy, context.floats([], [1 / inputs.length])]);
  return inputs.map((_, i) => (context.wants(i) ? forInput(context, i, share) : undefined));
};

/**
 * y = a ^ p: da = dy · p · a^(p − 1), dp = dy · y · ln a. The latter is for a ≥ 0 alone, and 0 at 0;
 * squares and cubes are the only powers that ONNX Runtime takes fast.
 */
const pow: BackwardRule = (context) => {
  const [a = "", p = ""] = context.node.inputs;
  const dy = outputGradient(context);
  const da = () => {
    const [exponent, less] = exponents(context, p);
    // a ^ (2 − 1) would be far slower than a.
    const power = isTwo(context.constant(p)) ? a : context.make("Pow", [a, less]);
    return context.make("Mul", [dy, context.make("Mul", [power, exponent])]);
  };
  const dp = () => {
    const log = context.make("Log", [context.make("Max", [a, context.floats([], [1e-38])])]);
    return context.make("Mul", [dy, context.make("Mul", [context.node.outputs[0]!, log])]);
  };
  return [
    context.wants(0) ? forInput(context, 0, da()) : undefined,
    context.wants(1) ? forInput(context, 1, dp()) : undefined,
  ];
};

function isTwo(exponent: Tensor | undefined): boolean {
  return exponent?.data.length === 1 && Number(exponent.data[0]) === 2;
}

/** p and p − 1 as float32: p itself may be of another type. */
function exponents(context: BackwardContext, p: string): [string, string] {
  const constant = context.constant(p);
  if (constant === undefined) return [p, context.make("Sub", [p, context.floats([], [1])])];
  const values = isFloatType(constant.dataType) ? toFloat32(constant) : integersOf(constant);
  if (values === null) throw new RangeError(`expected an exponent of numbers in "${p}"`);
  const less = Float32Array.from(values, (value) => value - 1);
  return [
    context.floats(constant.dims, Float32Array.from(values)),
    context.floats(constant.dims, less),
  ];
}

/** y = √x: dx = dy / 2y. */
const sqrt: BackwardRule = (context) => {
  const [y = ""] = context.node.outputs;
  return [context.make("Div", [outputGradient(context), context.make("Add", [y, y])])];
};

/** y = eˣ: dx = dy · y. */
const exp: BackwardRule = (context) => [
  context.make("Mul", [outputGradient(context), context.node.outputs[0]!]),
];

/** y = ln x: dx = dy / x. */
const log: BackwardRule = (context) => [
  context.make("Div", [outputGradient(context), context.node.inputs[0]!]),
];

/** y = −x: dx = −dy. */
const neg: BackwardRule = (context) => [context.make("Neg", [outputGradient(context)])];

/** y = 1 / x: dx = −dy · y². */
const reciprocal: BackwardRule = (context) => {
  const [y = ""] = context.node.outputs;
  const product = context.make("Mul", [outputGradient(context), context.make("Mul", [y, y])]);
  return [context.make("Neg", [product])];
};

/** y = |x|: dx = dy · sign x, 0 at 0. */
const abs: BackwardRule = (context) => {
  const sign = context.make("Sign", [context.node.inputs[0]!]);
  return [context.make("Mul", [outputGradient(context), sign])];
};

/**
 * Each element of y is that of one of two inputs: da = dy · m, db = dy − da, with m = 1 where it is
 * that of the first.
 */
function chosen(context: BackwardContext, isFirst: string): (string | undefined)[] {
  const mask = context.make("Cast", [isFirst], { to: DataType.FLOAT });
  const dy = outputGradient(context);
  const first = context.make("Mul", [dy, mask]);
  return [first, context.make("Sub", [dy, first])];
}

/** y = min(a, b) or max(a, b): dy goes to the one taken; to the second where they are equal. */
function extreme(comparison: "Less" | "Greater"): BackwardRule {
  return (context) => {
    const { inputs } = context.node;
    if (inputs.length === 1) return [outputGradient(context)];
    if (inputs.length > 2) throw new RangeError(`expected two inputs, got ${inputs.length}`);
    return chosen(context, context.make(comparison, inputs)).map((gradient, i) =>
      gradient && context.wants(i) ? forInput(context, i, gradient) : undefined,
    );
  };
}

/** y = a where the condition holds, else b: da and db are dy there, else 0. */
const where: BackwardRule = (context) => {
  const [first, second] = chosen(context, context.node.inputs[0]!);
  return [undefined, first, second].map((gradient, i) =>
    gradient && context.wants(i) ? forInput(context, i, gradient) : undefined,
  );
};

/** To float32: dx = dy. To whole numbers it is a step, whose gradient is 0. */
const cast: BackwardRule = (context) => {
  const to = intAttribute(context.node, "to", DataType.FLOAT) as DataType;
  if (to === DataType.FLOAT) return [outputGradient(context)];
  if (!isFloatType(to)) return [];
  throw new RangeError(`expected float32, got ${dataTypeName(to)}; gradients are float32`);
};

/** Constant but for steps: no gradient. */
const step: BackwardRule = () => [];
const STEPS =
  "Floor Ceil Round Sign Equal Less LessOrEqual Greater GreaterOrEqual And Or Xor Not IsNaN IsInf";

/** Arithmetic, element by element, with broadcasting of several directions. */
export const ELEMENTWISE_RULES: Readonly<Record<string, BackwardRule>> = {
  Add: add,
  Sum: add,
  Sub: sub,
  Mul: mul,
  Div: div,
  Mean: mean,
  Pow: pow,
  Sqrt: sqrt,
  Exp: exp,
  Log: log,
  Neg: neg,
  Reciprocal: reciprocal,
  Abs: abs,
  Min: extreme("Less"),
  Max: extreme("Greater"),
  Where: where,
  Cast: cast,
  ...Object.fromEntries(STEPS.split(" ").map((name) => [name, step])),
};
