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

/** Arithmetic, element by element, with broadcasting of several directions. */
export const ELEMENTWISE_RULES: Readonly<Record<string, BackwardRule>> = {
  Add: add,
  Sum: add,
  Sub: sub,
  Mul: mul,
  Div: div,
};
