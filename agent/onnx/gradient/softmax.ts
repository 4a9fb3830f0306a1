import type { BackwardRule } from "./backward-rule.ts";

/** Softmax and its logarithm. */
export const SOFTMAX_RULES: Readonly<Record<string, BackwardRule>> = {};
