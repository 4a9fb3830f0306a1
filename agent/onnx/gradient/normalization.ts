import type { BackwardRule } from "./backward-rule.ts";

/** Normalization over features and channels. */
export const NORMALIZATION_RULES: Readonly<Record<string, BackwardRule>> = {};
