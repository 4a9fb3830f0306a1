import { intAttribute } from "../graph.ts";
import { type BackwardContext, type BackwardRule, outputGradient } from "./backward-rule.ts";

/** Sum along the axis of a Softmax or LogSoftmax (of operator set 13 and later), which stays. */
function sumAlongAxis(context: BackwardContext, value: string): string {
  const axis = context.integers([intAttribute(context.node, "axis", -1)]);
  return context.make("ReduceSum", [value, axis], { keepdims: 1 });
}

/** y = eˣ / Σ eˣ: dx = y · (dy − Σ dy · y). */
const softmax: BackwardRule = (context) => {
  const [y = ""] = context.node.outputs;
  const dy = outputGradient(context);
  const mean = sumAlongAxis(context, context.make("Mul", [dy, y]));
  return [context.make("Mul", [y, context.make("Sub", [dy, mean])])];
};

/** y = x − log Σ eˣ: dx = dy − e^y · Σ dy. */
const logSoftmax: BackwardRule = (context) => {
  const [y = ""] = context.node.outputs;
  const dy = outputGradient(context);
  const share = context.make("Mul", [context.make("Exp", [y]), sumAlongAxis(context, dy)]);
  return [context.make("Sub", [dy, share])];
};

/** Softmax and its logarithm. */
export const SOFTMAX_RULES: Readonly<Record<string, BackwardRule>> = {
  Softmax: softmax,
  LogSoftmax: logSoftmax,
};
