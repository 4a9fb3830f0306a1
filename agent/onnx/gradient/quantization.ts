import type { BackwardRule } from "./backward-rule.ts";

/** Rounding to integers and back, by straight-through estimate. */
export const QUANTIZATION_RULES: Readonly<Record<string, BackwardRule>> = {};
