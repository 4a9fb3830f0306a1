import { ACTIVATION_RULES } from "./activation.ts";
import type { BackwardRule } from "./backward-rule.ts";
import { BLOCKED_RULES } from "./blocked-layout.ts";
import { CONVOLUTION_RULES } from "./convolution.ts";
import { ELEMENTWISE_RULES } from "./elementwise.ts";
import { MATRIX_PRODUCT_RULES } from "./matrix-product.ts";
import { MOVEMENT_RULES } from "./movement.ts";
import { NORMALIZATION_RULES } from "./normalization.ts";
import { POOLING_RULES } from "./pooling.ts";
import { QUANTIZATION_RULES } from "./quantization.ts";
import { REDUCTION_RULES } from "./reduction.ts";
import { SOFTMAX_RULES } from "./softmax.ts";

/** The backward rule of every operator that has one, by its qualified name. */
export const BACKWARD_RULES: ReadonlyMap<string, BackwardRule> = new Map(
  Object.entries({
    ...ACTIVATION_RULES,
    ...BLOCKED_RULES,
    ...CONVOLUTION_RULES,
    ...ELEMENTWISE_RULES,
    ...MATRIX_PRODUCT_RULES,
    ...MOVEMENT_RULES,
    ...NORMALIZATION_RULES,
    ...POOLING_RULES,
    ...QUANTIZATION_RULES,
    ...REDUCTION_RULES,
    ...SOFTMAX_RULES,
  }),
);
