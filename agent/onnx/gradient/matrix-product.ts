import type { BackwardRule } from "./backward-rule.ts";

/** Products of matrices. */
export const MATRIX_PRODUCT_RULES: Readonly<Record<string, BackwardRule>> = {};
