import type { AttributeValue } from "../builder.ts";
import type { Node } from "../graph.ts";
import type { Tensor } from "../tensor.ts";

/**
 * What the backward rule of an operator sees of the graph, and what it builds with. All shapes are
 * fixed: a rule reads them when it builds, not when the graph runs.
 */
export interface BackwardContext {
  /** The node of the forward graph. */
  readonly node: Node;
  /** Shape of any value of the forward graph, or of one that a rule has made. */
  dims(value: string): readonly number[];
  /** Elements of a small constant or of shape arithmetic, row-major; undefined for all others. */
  values(value: string): readonly number[] | undefined;
  /** A constant of the forward graph; undefined for what is computed, fed or trained. */
  constant(value: string): Tensor | undefined;
  /** The forward node that makes a value; undefined for constants and graph inputs. */
  producer(value: string): Node | undefined;
  /** Whether the gradient of an input is asked for; others need not be built. */
  wants(input: number): boolean;
  /** Gradient of an output, in the shape of the output; undefined where the loss never reads it. */
  gradientOf(output: number): string | undefined;
  /**
   * Adds a node with one output and returns its name.
   *
   * @param dims shape of the output, for the operators that `inferShapes` does not know.
   */
  make(
    opType: string,
    inputs: readonly string[],
    attributes?: Readonly<Record<string, AttributeValue>>,
    dims?: readonly number[],
  ): string;
  /** Adds a node with several outputs, whose shapes `inferShapes` must know. */
  makeSeveral(
    opType: string,
    inputs: readonly string[],
    outputs: number,
    attributes?: Readonly<Record<string, AttributeValue>>,
  ): string[];
  /** A float32 constant; equal ones share an initializer. */
  floats(dims: readonly number[], values: readonly number[] | Float32Array): string;
  /** A constant list of int64, such as shapes, axes and starts are. */
  integers(values: readonly number[]): string;
}

/**
 * Builds the gradients of a node's inputs from those of its outputs.
 *
 * @returns one name an input, in the input's shape; undefined for those that were not asked for.
 * @throws {RangeError} where this use of the operator has no gradient, with the reason.
 */
export type BackwardRule = (context: BackwardContext) => readonly (string | undefined)[];

/** The gradient of a node's first output, which the loss is known to read. */
export function outputGradient(context: BackwardContext): string {
  const gradient = context.gradientOf(0);
  if (gradient === undefined) throw new RangeError("the loss does not read its first output");
  return gradient;
}

/**
 * Sums a gradient over the axes along which a value of shape `dims` was broadcast.
 *
 * @returns the name of the sum, of shape `dims`.
 */
export function unbroadcast(
  context: BackwardContext,
  gradient: string,
  dims: readonly number[],
): string {
  const from = context.dims(gradient);
  const extra = from.length - dims.length;
  const axes = from.flatMap((size, axis) =>
    axis < extra || (dims[axis - extra] === 1 && size !== 1) ? [axis] : [],
  );
  if (axes.length === 0) return gradient;
  const sum = context.make("ReduceSum", [gradient, context.integers(axes)], { keepdims: 1 });
  if (extra === 0) return sum;
  return context.make("Reshape", [sum, context.integers(dims)]);
}
