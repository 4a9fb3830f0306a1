import type { BackwardRule } from "./backward-rule.ts";

/** Sums and means over axes. */
export const REDUCTION_RULES: Readonly<Record<string, BackwardRule>> = {};
