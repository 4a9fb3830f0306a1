import type { BackwardRule } from "./backward-rule.ts";

/** Pooling. */
export const POOLING_RULES: Readonly<Record<string, BackwardRule>> = {};
