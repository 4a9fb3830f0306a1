import { type BackwardRule, outputGradient } from "./backward-rule.ts";

/** dx = dy · 1[y > 0]. */
const relu: BackwardRule = (context) => {
  const [y = ""] = context.node.outputs;
  // Sign is 0 or 1 behind a ReLU, and one pass over memory.
  const mask = context.make("Sign", [y]);
  return [context.make("Mul", [outputGradient(context), mask])];
};

/** Activation functions, element by element. */
export const ACTIVATION_RULES: Readonly<Record<string, BackwardRule>> = { Relu: relu };
