import * as v from "valibot";

const pixels = v.pipe(v.number(), v.integer(), v.minValue(1));

/**
 * What is to be done to one network, layer by layer: the outcome of a search, small enough to be
 * kept. Names are those of the normalized generalist.
 */
export const compressionPlanSchema = v.strictObject({
  /** Size of the network's input in pixels; null: the generalist's own. */
  inputSize: v.nullable(v.strictObject({ height: pixels, width: pixels })),
  /** What swish becomes; `for-integers`: hard-swish or ReLU, whatever integers gain by. */
  activations: v.picklist(["keep", "hard-swish", "relu", "for-integers"]),
  /** What becomes of squeeze-excite gates; plans of older runs keep them. */
  gates: v.optional(v.picklist(["keep", "fold"]), "keep"),
  /** Residual blocks left out, by id. */
  droppedBlocks: v.array(v.string()),
  /** Channels or heads kept, by id of the channel group; groups not named stay whole. */
  widths: v.record(v.string(), v.pipe(v.number(), v.integer(), v.minValue(0))),
  /** Pattern of zeros (`unstructured:0.5`), by name of the layer; layers not named stay dense. */
  sparsity: v.record(v.string(), v.string()),
  /** Whether weights and activations become 8-bit integers at the end. */
  int8: v.boolean(),
  /** Bits that weights are stored in, and computed with in float; plans of older runs have none. */
  weightBits: v.optional(v.nullable(v.picklist([3, 4])), null),
});

/** See {@link compressionPlanSchema}. */
export type CompressionPlan = v.InferOutput<typeof compressionPlanSchema>;

/** The plan that leaves a network as it is. */
export const NO_CHANGE: CompressionPlan = {
  inputSize: null,
  activations: "keep",
  gates: "keep",
  droppedBlocks: [],
  widths: {},
  sparsity: {},
  int8: false,
  weightBits: null,
};

/** A plan in a few words, for people: `160×160 pixels, 12 groups narrowed, int8`; `dense` for none. */
export function describePlan(plan: CompressionPlan): string {
  const { inputSize, activations, gates, widths, sparsity, int8, weightBits, droppedBlocks } = plan;
  const narrowed = Object.keys(widths).length;
  const sparse = Object.keys(sparsity).length;
  const parts = [
    inputSize === null ? "" : `${inputSize.width}×${inputSize.height} pixels`,
    droppedBlocks.length > 0 ? `${droppedBlocks.length} blocks left out` : "",
    narrowed > 0 ? `${narrowed} groups narrowed` : "",
    activations === "keep"
      ? ""
      : `swish → ${activations === "for-integers" ? "what integers compute fast" : activations}`,
    gates === "keep" ? "" : "gates → constants",
    sparse > 0 ? `zeros in ${sparse} layers` : "",
    int8 ? "int8" : "",
    weightBits === null ? "" : `weights of ${weightBits} bits`,
  ].filter((part) => part !== "");
  return parts.length > 0 ? parts.join(", ") : "dense";
}
