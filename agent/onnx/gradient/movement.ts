import { intAttribute, intsAttribute, stringAttribute } from "../graph.ts";
import { DataType, elementCount } from "../tensor.ts";
import {
  type BackwardContext,
  type BackwardRule,
  outputGradient,
  unbroadcast,
} from "./backward-rule.ts";

/** An axis counted from the front. */
function fromFront(axis: number, rank: number): number {
  return axis < 0 ? axis + rank : axis;
}

/** Elements of an input that says what moves where; undefined where it is left out. */
function steering(context: BackwardContext, input: number): readonly number[] | undefined {
  const name = context.node.inputs[input];
  if (!name) return undefined;
  const values = context.values(name);
  if (values === undefined) throw new RangeError(`its input "${name}" is not constant`);
  return values;
}

/** The rule of an operator whose second and further inputs are no numbers to differentiate. */
function ofData(rule: (context: BackwardContext, x: string, dy: string) => string): BackwardRule {
  return (context) => [
    context.wants(0) ? rule(context, context.node.inputs[0]!, outputGradient(context)) : undefined,
  ];
}

/** y = x: dx = dy. */
const identity = ofData((_, __, dy) => dy);

/** As it runs in a network that is used, y = x. */
const dropout: BackwardRule = (context) => {
  const [training = 0] = steering(context, 2) ?? [];
  if (training !== 0) throw new RangeError("it drops values at random (training_mode)");
  return identity(context);
};

/** The same elements in another shape: dx is dy in the shape of x. */
const reshape = ofData((context, x, dy) =>
  context.make("Reshape", [dy, context.integers(context.dims(x))]),
);

/** y[i_p(0), i_p(1), …] = x[i_0, i_1, …]: dx = dy by the inverse permutation. */
const transpose = ofData((context, x, dy) => {
  const rank = context.dims(x).length;
  const backwards = Array.from({ length: rank }, (_, i) => rank - 1 - i);
  const perm = intsAttribute(context.node, "perm", backwards);
  return context.make("Transpose", [dy], { perm: backwards.map((_, i) => perm.indexOf(i)) });
});

/** A part of a value along one axis: elements `start`, `start + step`, … before `end`. */
function part(
  context: BackwardContext,
  value: string,
  axis: number,
  [start, end, step = 1]: readonly [number, number, number?],
): string {
  const list = (number: number) => context.integers([number]);
  return context.make("Slice", [value, list(start), list(end), list(axis), list(step)]);
}

/** Zeros before and behind a value along one axis; a negative number takes away. */
function padded(
  context: BackwardContext,
  value: string,
  axis: number,
  before: number,
  behind: number,
): string {
  if (before === 0 && behind === 0) return value;
  const rank = context.dims(value).length;
  const pads = new Array<number>(2 * rank).fill(0);
  pads[axis] = before;
  pads[axis + rank] = behind;
  return context.make("Pad", [value, context.integers(pads)]);
}

/** y = x₁ beside x₂ …: every gradient is its part of dy. */
const concat: BackwardRule = (context) => {
  const { node } = context;
  const dy = outputGradient(context);
  const axis = fromFront(intAttribute(node, "axis", 0), context.dims(dy).length);
  const sizes = node.inputs.map((name) => context.dims(name)[axis]!);
  if (sizes.length === 1) return [dy];
  if (sizes.every((_, i) => context.wants(i))) {
    return context.makeSeveral("Split", [dy, context.integers(sizes)], sizes.length, { axis });
  }
  let end = 0;
  return sizes.map((size, i) => {
    end += size;
    return context.wants(i) ? part(context, dy, axis, [end - size, end]) : undefined;
  });
};

/** x = y₁ beside y₂ …: dx = dy₁ beside dy₂ …, with zeros for parts that the loss never reads. */
const split: BackwardRule = (context) => {
  const { node } = context;
  if (!context.wants(0)) return [];
  const axis = fromFront(intAttribute(node, "axis", 0), context.dims(node.inputs[0]!).length);
  const parts = node.outputs.map((name, i) => {
    const gradient = context.gradientOf(i);
    if (gradient !== undefined) return gradient;
    return context.make("ConstantOfShape", [context.integers(context.dims(name))]);
  });
  return [parts.length === 1 ? parts[0] : context.make("Concat", parts, { axis })];
};

/** Elements that a Slice takes along one axis: `count` of them, from `first` on, `step` apart. */
interface Cut {
  readonly axis: number;
  readonly first: number;
  readonly step: number;
  readonly count: number;
}

function cutsOf(context: BackwardContext, x: string): Cut[] {
  const dims = context.dims(x);
  const starts = steering(context, 1) ?? [];
  const axes = steering(context, 3) ?? starts.map((_, i) => i);
  const steps = steering(context, 4);
  return starts.map((start, i) => {
    const axis = fromFront(axes[i]!, dims.length);
    const size = dims[axis]!;
    const step = steps?.[i] ?? 1;
    const highest = step > 0 ? size : size - 1;
    const first = Math.min(Math.max(start < 0 ? start + size : start, 0), highest);
    return { axis, first, step, count: context.dims(context.node.outputs[0]!)[axis]! };
  });
}

/**
 * Puts a gradient back to where a cut took it, among zeros. A cut in steps: every element gets an
 * axis of its own, which is filled up to the step with zeros. A cut backwards is turned round first.
 */
function uncut(context: BackwardContext, gradient: string, cut: Cut, size: number): string {
  const { axis, step, count } = cut;
  if (step === 1) return padded(context, gradient, axis, cut.first, size - cut.first - count);
  const forwards =
    step > 0 ? gradient : part(context, gradient, axis, [-1, Number.MIN_SAFE_INTEGER, -1]);
  const stride = Math.abs(step);
  const first = step > 0 ? cut.first : cut.first + (count - 1) * step;
  const dims = [...context.dims(gradient)];
  const apart = [...dims.slice(0, axis + 1), 1, ...dims.slice(axis + 1)];
  const single = context.make("Reshape", [forwards, context.integers(apart)]);
  const wide = padded(context, single, axis + 1, 0, stride - 1);
  dims[axis] = count * stride;
  const spread = context.make("Reshape", [wide, context.integers(dims)]);
  return padded(context, spread, axis, first, size - first - count * stride);
}

/** y = x[first, first + step, …] along some axes: dx = dy there, 0 elsewhere. */
const slice = ofData((context, x, dy) =>
  cutsOf(context, x).reduce(
    (gradient, cut) => uncut(context, gradient, cut, context.dims(x)[cut.axis]!),
    dy,
  ),
);

/** Indices that are known when the graph is built, counted from the front; else undefined. */
function knownIndices(context: BackwardContext, size: number): readonly number[] | undefined {
  const values = context.values(context.node.inputs[1]!);
  return values?.map((index) => (index < 0 ? index + size : index));
}

/**
 * y = x[…, indices, …] along one axis: dx[…, s, …] = Σ of dy over all places that took s.
 *
 * Neighbors in their order, such as a class token or q, k and v of a stacked projection, go back
 * among zeros. All others are summed by a product with the matrix M[s, i] = 1[indices(i) = s].
 */
const gather = ofData((context, x, dy) => {
  const { node } = context;
  const dims = context.dims(x);
  const axis = fromFront(intAttribute(node, "axis", 0), dims.length);
  const [outer, inner] = [dims.slice(0, axis), dims.slice(axis + 1)];
  const [size, count] = [dims[axis]!, elementCount(context.dims(node.inputs[1]!))];
  const indices = knownIndices(context, size);
  if (count > 0 && indices?.every((index, i) => index === indices[0]! + i)) {
    const flat = context.make("Reshape", [dy, context.integers([...outer, count, ...inner])]);
    return padded(context, flat, axis, indices[0]!, size - indices[0]! - count);
  }
  const list = context.make("Reshape", [node.inputs[1]!, context.integers([count])]);
  const places = context.make("Cast", [list], { to: DataType.INT64 });
  const matrix = context.make(
    "OneHot",
    [places, context.integers([size]), context.floats([2], [0, 1])],
    { axis: 0 },
    [size, count],
  );
  const rows = [elementCount(outer), count, elementCount(inner)];
  const stacked = context.make("Reshape", [dy, context.integers(rows)]);
  const sum = context.make("MatMul", [matrix, stacked]);
  return context.make("Reshape", [sum, context.integers(dims)]);
});

/** y = x repeated to a larger shape: dx = dy summed over what was repeated. */
const expand = ofData((context, x, dy) => unbroadcast(context, dy, context.dims(x)));

/** y = x side by side with itself: dx = the sum of its copies' gradients. */
const tile = ofData((context, x, dy) => {
  const dims = context.dims(x);
  const repeats = context.dims(dy).map((size, axis) => size / dims[axis]!);
  const copies = dims.flatMap((size, axis) => [repeats[axis]!, size]);
  const stacked = context.make("Reshape", [dy, context.integers(copies)]);
  const axes = context.integers(dims.map((_, axis) => 2 * axis));
  return context.make("ReduceSum", [stacked, axes], { keepdims: 0 });
});

/** y = x within a border: dx = dy without it; what Pad took away comes back as zeros. */
const pad: BackwardRule = (context) => {
  const { node } = context;
  const mode = stringAttribute(node, "mode", "constant");
  if (mode !== "constant") throw new RangeError(`its border repeats values (mode ${mode})`);
  if (context.wants(2)) throw new RangeError("its border is computed");
  if (!context.wants(0)) return [];
  const rank = context.dims(node.inputs[0]!).length;
  const pads = steering(context, 1)!;
  const axes = steering(context, 3) ?? Array.from({ length: rank }, (_, axis) => axis);
  const back = new Array<number>(2 * rank).fill(0);
  axes.forEach((axis, i) => {
    back[fromFront(axis, rank)] = -pads[i]!;
    back[fromFront(axis, rank) + rank] = -pads[i + axes.length]!;
  });
  return [context.make("Pad", [outputGradient(context), context.integers(back)])];
};

/** Operators that move values and compute nothing. */
export const MOVEMENT_RULES: Readonly<Record<string, BackwardRule>> = {
  Identity: identity,
  Dropout: dropout,
  Reshape: reshape,
  Flatten: reshape,
  Squeeze: reshape,
  Unsqueeze: reshape,
  Transpose: transpose,
  Concat: concat,
  Split: split,
  Slice: slice,
  Gather: gather,
  Expand: expand,
  Tile: tile,
  Pad: pad,
};
