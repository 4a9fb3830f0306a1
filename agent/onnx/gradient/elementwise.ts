import { type BackwardRule, outputGradient, unbroadcast } from "./backward-rule.ts";

/** da = dy, db = dy, each summed over the axes along which it was broadcast. */
const add: BackwardRule = (context) => {
  const dy = outputGradient(context);
  return context.node.inputs.map((name, i) =>
    context.wants(i) ? unbroadcast(context, dy, context.dims(name)) : undefined,
  );
};

/** Arithmetic, element by element, with broadcasting of several directions. */
export const ELEMENTWISE_RULES: Readonly<Record<string, BackwardRule>> = { Add: add };
