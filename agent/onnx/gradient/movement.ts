import type { BackwardRule } from "./backward-rule.ts";

/** Operators that move values and compute nothing. */
export const MOVEMENT_RULES: Readonly<Record<string, BackwardRule>> = {};
