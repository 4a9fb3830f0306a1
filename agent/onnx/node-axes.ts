import { intAttribute, intsAttribute, type Node } from "./graph.ts";
import type { Known } from "./shape-values.ts";

/** What is known of the inputs of one node, in order. */
export type Inputs = readonly (Known | undefined)[];

/** An axis counted from the front. */
export function axisFromFront(axis: number, rank: number): number {
  return axis < 0 ? axis + rank : axis;
}

/** The order in which a Transpose takes the axes of its input. */
export function permutation(node: Node, rank: number): readonly number[] {
  const backwards = Array.from({ length: rank }, (_, i) => rank - 1 - i);
  return intsAttribute(node, "perm", backwards);
}

/**
 * Axes that a Squeeze, Unsqueeze or reduction names, from the front: an attribute, or the second
 * input since opset 13 or 18.
 *
 * @param rank of the value that the axes count in; for Unsqueeze that of the result.
 * @returns empty where it names none; undefined where they are not known.
 */
export function namedAxes(node: Node, inputs: Inputs, rank: number): number[] | undefined {
  const axes = node.inputs[1] ? inputs[1]?.values : intsAttribute(node, "axes", []);
  return axes?.map((axis) => axisFromFront(axis, rank));
}

/** Axes over which a reduction goes; undefined where they are not known. */
export function reducedAxes(node: Node, inputs: Inputs, rank: number): number[] | undefined {
  const axes = namedAxes(node, inputs, rank);
  if (axes === undefined || axes.length > 0) return axes;
  if (intAttribute(node, "noop_with_empty_axes", 0) !== 0) return [];
  return Array.from({ length: rank }, (_, i) => i);
}

/** Padding in front of each axis, then behind each; undefined where not known. */
export function padding(node: Node, inputs: Inputs, rank: number): readonly number[] | undefined {
  const pads = node.inputs[1] ? inputs[1]?.values : intsAttribute(node, "pads", []);
  // Since opset 18 a Pad can name the axes that it is about.
  return !node.inputs[3] && pads?.length === 2 * rank ? pads : undefined;
}

/** What a Slice takes of one axis. */
export interface SlicedAxis {
  readonly axis: number;
  /** Place of this axis in the lists of starts, ends and steps. */
  readonly at: number;
  readonly start: number;
  readonly end: number;
  readonly step: number;
  /** Places of the input that are taken, in order. */
  readonly places: readonly number[];
}

/** What a Slice takes, axis by axis; undefined where its bounds are not known. */
export function slicedAxes(
  node: Node,
  inputs: Inputs,
  dims: readonly number[],
): SlicedAxis[] | undefined {
  const given = (at: number, name: string) =>
    node.inputs.length > 1 ? (node.inputs[at] ? inputs[at]?.values : null) : attribute(node, name);
  const starts = given(1, "starts");
  const ends = given(2, "ends");
  const axes = given(3, "axes");
  const steps = given(4, "steps");
  if (!starts || !ends || axes === undefined || steps === undefined) return undefined;
  return starts.map((start, at) => {
    const axis = axisFromFront(axes?.[at] ?? at, dims.length);
    const [end, step] = [ends[at]!, steps?.[at] ?? 1];
    return { axis, at, start, end, step, places: takenPlaces(start, end, step, dims[axis]!) };
  });
}

function attribute(node: Node, name: string): readonly number[] | null {
  const found = node.attributes.get(name);
  return found?.type === "ints" ? found.value : null;
}

function takenPlaces(start: number, end: number, step: number, size: number): number[] {
  const bound = (at: number, low: number, high: number) =>
    Math.min(Math.max(at < 0 ? at + size : at, low), high);
  const places: number[] = [];
  if (step > 0) {
    const last = bound(end, 0, size);
    for (let i = bound(start, 0, size); i < last; i += step) places.push(i);
  } else {
    const last = bound(end, -1, size - 1);
    for (let i = bound(start, 0, size - 1); i > last; i += step) places.push(i);
  }
  return places;
}
