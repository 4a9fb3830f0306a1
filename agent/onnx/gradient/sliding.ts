import { intsAttribute, type Node, stringAttribute } from "../graph.ts";

/** How a window slides over the spatial axes of a value; one number an axis. */
export interface Sliding {
  readonly kernel: readonly number[];
  readonly strides: readonly number[];
  readonly dilations: readonly number[];
  /** Elements of padding before the first element of each axis, and after its last. */
  readonly before: readonly number[];
  readonly after: readonly number[];
}

/**
 * How the window of a Conv or of a pool slides, `auto_pad` worked out: SAME pads so that there are
 * ⌈size / stride⌉ windows.
 *
 * @param sizes spatial sizes of the input.
 */
export function slidingOf(
  node: Node,
  sizes: readonly number[],
  kernel: readonly number[],
): Sliding {
  const ones = sizes.map(() => 1);
  const strides = intsAttribute(node, "strides", ones);
  const dilations = intsAttribute(node, "dilations", ones);
  const auto = stringAttribute(node, "auto_pad", "NOTSET");
  if (auto === "SAME_UPPER" || auto === "SAME_LOWER") {
    const totals = sizes.map((size, i) => {
      const windows = Math.ceil(size / strides[i]!);
      const reach = (windows - 1) * strides[i]! + dilations[i]! * (kernel[i]! - 1) + 1;
      return Math.max(reach - size, 0);
    });
    const less = totals.map((total) => Math.floor(total / 2));
    const more = totals.map((total) => Math.ceil(total / 2));
    const [before, after] = auto === "SAME_UPPER" ? [less, more] : [more, less];
    return { kernel, strides, dilations, before, after };
  }
  const none = [...sizes, ...sizes].map(() => 0);
  const pads = auto === "VALID" ? none : intsAttribute(node, "pads", none);
  const before = pads.slice(0, sizes.length);
  return { kernel, strides, dilations, before, after: pads.slice(sizes.length) };
}

/**
 * `pads` and `output_padding` of the ConvTranspose that brings what belongs to windows back to the
 * elements under them. What no window reaches is padded, what a last window has beyond the padding
 * (`ceil_mode`) is cut.
 *
 * @param sizes spatial sizes of the value that was slid over.
 * @param windows number of windows on each axis.
 */
export function spreading(
  { kernel, strides, dilations, before }: Sliding,
  sizes: readonly number[],
  windows: readonly number[],
): { readonly pads: number[]; readonly output_padding: number[] } {
  const beyond = sizes.map((size, i) => {
    const reach = dilations[i]! * (kernel[i]! - 1) + strides[i]! * (windows[i]! - 1) + 1;
    return reach - before[i]! - size;
  });
  return {
    pads: [...before, ...beyond.map((size) => Math.max(size, 0))],
    output_padding: beyond.map((size) => Math.max(-size, 0)),
  };
}
