import * as v from "valibot";

const pixels = v.pipe(v.number(), v.integer(), v.minValue(1));

/**
 * What is to be done to one network, layer by layer: the outcome of a search, small enough to be
 * kept. Names are those of the normalized generalist.
 */
export const compressionPlanSchema = v.strictObject({
  /** Size of the network's input in pixels; null: the generalist's own. */
  inputSize: v.nullable(v.strictObject({ height: pixels, width: pixels })),
  /** What swish becomes. */
  activations: v.picklist(["keep", "hard-swish", "relu"]),
  /** Residual blocks left out, by id. */
  droppedBlocks: v.array(v.string()),
  /** Channels or heads kept, by id of the channel group; groups not named stay whole. */
  widths: v.record(v.string(), v.pipe(v.number(), v.integer(), v.minValue(0))),
  /** Pattern of zeros (`unstructured:0.5`), by name of the layer; layers not named stay dense. */
  sparsity: v.record(v.string(), v.string()),
  /** Whether weights and activations become 8-bit integers at the end. */
  int8: v.boolean(),
});

/** See {@link compressionPlanSchema}. */
export type CompressionPlan = v.InferOutput<typeof compressionPlanSchema>;

/** The plan that leaves a network as it is. */
export const NO_CHANGE: CompressionPlan = {
  inputSize: null,
  activations: "keep",
  droppedBlocks: [],
  widths: {},
  sparsity: {},
  int8: false,
};

/** A plan in a few words, for people: `160×160 pixels, 12 groups narrowed, int8`; `dense` for none. */
export function describePlan(plan: CompressionPlan): string {
  const { inputSize, activations, widths, sparsity, int8, droppedBlocks } = plan;
  const narrowed = Object.keys(widths).length;
  const sparse = Object.keys(sparsity).length;
  const parts = [
    inputSize === null ? "" : `${inputSize.width}×${inputSize.height} pixels`,
    droppedBlocks.length > 0 ? `${droppedBlocks.length} blocks left out` : "",
    narrowed > 0 ? `${narrowed} groups narrowed` : "",
    activations === "keep" ? "" : `swish → ${activations}`,
    sparse > 0 ? `zeros in ${sparse} layers` : "",
    int8 ? "int8" : "",
  ].filter((part) => part !== "");
  return parts.length > 0 ? parts.join(", ") : "dense";
}
