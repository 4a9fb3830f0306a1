import type { BackwardRule } from "./backward-rule.ts";

/** Convolutions. */
export const CONVOLUTION_RULES: Readonly<Record<string, BackwardRule>> = {};
