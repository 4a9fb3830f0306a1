import type { Measure } from "../aim.ts";
import { type FixedMethod, parseMethod } from "../method.ts";
import type { Graph } from "../onnx/graph.ts";
import { withInputSize } from "../onnx/input-size.ts";
import type { CompressionPlan } from "./compression-plan.ts";
import { planOf } from "./pipeline.ts";

/** Shares of the network's own picture size that are tried, the gentlest first. */
const SIZES = [6 / 7, 5 / 7, 4 / 7];
/** Pictures are kept to a multiple of this: networks halve them five times. */
const SIZE_MULTIPLE = 32;

/** Methods that are tried for each measure, in the order of building; `size:*` is each size. */
const METHODS: Readonly<Record<Measure, readonly string[]>> = {
  latency: ["int8", "size:*+int8", "size:*", "structured:0.25+int8"],
  nonzero: [0.3, 0.5, 0.6, 0.7, 0.8, 0.9].map((share) => `unstructured:${share}`),
  bytes: ["int8", "structured:0.25+int8", "structured:0.5+int8", "unstructured:0.9"],
};

/**
 * The plans that method `auto` builds and measures for an aim, the likeliest first: picture sizes,
 * 8-bit integers and widths for latency, shares of zeros for non-zero weights, both for bytes.
 * What the network cannot do is left out.
 *
 * @param own height and width of the network's own input in pixels.
 */
export function gridOfPlans(
  dense: Graph,
  measure: Measure,
  own: { readonly height: number; readonly width: number },
): CompressionPlan[] {
  const sizes = own.height === own.width ? SIZES.map((share) => sizeOf(share * own.height)) : [];
  const smaller = [...new Set(sizes)].filter(
    (size) => size < own.height && !("reason" in withInputSize(dense, size, size)),
  );
  const texts = METHODS[measure].flatMap((text) =>
    text.includes("size:*") ? smaller.map((size) => text.replace("*", `${size}`)) : [text],
  );
  const plans = texts.map((text) => planOf(parseMethod(text) as FixedMethod, dense).plan);
  return plans.filter(changesSomething);
}

function sizeOf(pixels: number): number {
  return Math.max(SIZE_MULTIPLE, SIZE_MULTIPLE * Math.round(pixels / SIZE_MULTIPLE));
}

/** A network without groups or layers to touch makes a method an empty plan. */
function changesSomething({ inputSize, int8, sparsity, widths }: CompressionPlan): boolean {
  const counts = Object.keys(sparsity).length + Object.keys(widths).length;
  return inputSize !== null || int8 || counts > 0;
}
