import {
  type Graph,
  intAttribute,
  intsAttribute,
  type Node,
  qualifiedName,
  stringAttribute,
} from "./graph.ts";
import { describe } from "./query.ts";
import { inferValues, type Known } from "./shape-values.ts";
import { elementCount, isFloatType, type Tensor } from "./tensor.ts";

/** Tensors up to this many elements can steer a shape; larger ones are weights. */
const MAX_VALUES = 256;

/** What is known of a constant. */
export function knownTensor(tensor: Tensor): Known {
  const { dims, data, dataType } = tensor;
  if (tensor.strings || elementCount(dims) > MAX_VALUES || data.length > MAX_VALUES) {
    return { dims };
  }
  const values = Array.from(data as ArrayLike<number | bigint>, Number);
  return { dims, values, fractions: isFloatType(dataType) };
}

/**
 * Shapes of all values of a graph, as far as the operators are known; shape arithmetic is worked
 * out. Values behind an operator that is not known are missing.
 *
 * @param inputDims shape of each graph input.
 * @throws {RangeError} naming the node whose inputs do not fit one another.
 */
export function inferShapes(
  graph: Graph,
  inputDims: ReadonlyMap<string, readonly number[]>,
): Map<string, Known> {
  const known = new Map<string, Known>();
  for (const [name, tensor] of graph.initializers) known.set(name, knownTensor(tensor));
  for (const [name, dims] of inputDims) known.set(name, { dims });
  for (const node of graph.nodes) {
    const results = inferNode(
      node,
      node.inputs.map((name) => known.get(name)),
    );
    results.forEach((result, i) => {
      if (result) known.set(node.outputs[i]!, result);
    });
  }
  return known;
}

/**
 * What is known of a node's outputs, in their order; undefined where nothing is.
 *
 * @throws {RangeError} naming the node if its inputs do not fit one another.
 */
export function inferNode(
  node: Node,
  inputs: readonly (Known | undefined)[],
): (Known | undefined)[] {
  const rule = RULES[qualifiedName(node)];
  if (rule === undefined) return node.outputs.map(() => undefined);
  let shapes: readonly (readonly number[] | undefined)[];
  try {
    shapes = rule(node, inputs) ?? [];
  } catch (error) {
    if (error instanceof RangeError) {
      throw new RangeError(`${describe(node)}: ${error.message}`, { cause: error });
    }
    throw error;
  }
  return node.outputs.map((_, i) => {
    const dims = shapes[i];
    if (dims === undefined) return undefined;
    const values = elementCount(dims) <= MAX_VALUES ? inferValues(node, inputs, dims) : undefined;
    return values === undefined ? { dims } : { dims, ...values };
  });
}

type Shapes = readonly (readonly number[] | undefined)[];
type Rule = (node: Node, inputs: readonly (Known | undefined)[]) => Shapes | undefined;

/** The shape of the first input, for the first output (statistics behind it are not followed). */
const same: Rule = (_, [x]) => (x ? [x.dims] : undefined);

/** The normalized value, then mean and inverse deviation with size 1 along what they are taken of. */
const layerNorm: Rule = (node, [x]) => {
  if (!x) return undefined;
  const [first] = axesOf([intAttribute(node, "axis", -1)], x.dims.length);
  const statistics = x.dims.map((size, i) => (i < first! ? size : 1));
  return [x.dims, statistics, statistics];
};

const broadcast: Rule = (_, inputs) => {
  let dims: readonly number[] = [];
  for (const input of inputs) {
    if (input === undefined) return undefined;
    dims = broadcastDims(dims, input.dims);
  }
  return [dims];
};

/** @throws {RangeError} if two sizes differ and neither is 1. */
function broadcastDims(a: readonly number[], b: readonly number[]): number[] {
  const rank = Math.max(a.length, b.length);
  return Array.from({ length: rank }, (_, i) => {
    const x = a[i - rank + a.length] ?? 1;
    const y = b[i - rank + b.length] ?? 1;
    if (x !== y && x !== 1 && y !== 1) throw new RangeError(`[${a}] does not broadcast to [${b}]`);
    return x === 1 ? y : x;
  });
}

/** Axes counted from the front. */
function axesOf(axes: readonly number[], rank: number): number[] {
  return axes.map((axis) => (axis < 0 ? axis + rank : axis));
}

/** Axes that moved from an attribute to an input with some opset; undefined where unknown. */
function axesGiven(
  node: Node,
  input: Known | undefined,
  at: number,
): readonly number[] | undefined {
  if (node.inputs[at]) return input?.values;
  return intsAttribute(node, "axes", []);
}

const conv: Rule = (node, [x, w]) => {
  if (!x || !w) return undefined;
  const groups = intAttribute(node, "group", 1);
  if (x.dims[1] !== w.dims[1]! * groups) {
    throw new RangeError(`${x.dims[1]} channels for weights [${w.dims}] in ${groups} groups`);
  }
  return [[x.dims[0]!, w.dims[0]!, ...windowed(node, x.dims.slice(2), w.dims.slice(2))]];
};

/** MaxPool's second output, where each largest element lies, has the shape of the first. */
const pool: Rule = (node, [x]) => {
  if (!x) return undefined;
  const sizes = windowed(node, x.dims.slice(2), intsAttribute(node, "kernel_shape", []));
  const dims = [...x.dims.slice(0, 2), ...sizes];
  return [dims, dims];
};

/** Sizes after a window has slid over `sizes`. */
function windowed(node: Node, sizes: readonly number[], kernel: readonly number[]): number[] {
  const rank = sizes.length;
  const strides = intsAttribute(
    node,
    "strides",
    sizes.map(() => 1),
  );
  const dilations = intsAttribute(
    node,
    "dilations",
    sizes.map(() => 1),
  );
  const pads = intsAttribute(
    node,
    "pads",
    [...sizes, ...sizes].map(() => 0),
  );
  const auto = stringAttribute(node, "auto_pad", "NOTSET");
  const up = intAttribute(node, "ceil_mode", 0) !== 0;
  return sizes.map((size, i) => {
    const stride = strides[i]!;
    if (auto.startsWith("SAME")) return Math.ceil(size / stride);
    const padded = auto === "VALID" ? size : size + pads[i]! + pads[i + rank]!;
    const steps = (padded - dilations[i]! * (kernel[i]! - 1) - 1) / stride;
    if (steps < 0) throw new RangeError(`a window of [${kernel}] is larger than [${sizes}]`);
    const count = (up ? Math.ceil(steps) : Math.floor(steps)) + 1;
    // A last window that would start in the padding behind is left out.
    return up && (count - 1) * stride >= size + pads[i]! ? count - 1 : count;
  });
}

const globalPool: Rule = (_, [x]) =>
  x && [[...x.dims.slice(0, 2), ...x.dims.slice(2).map(() => 1)]];

const gemm: Rule = (node, [a, b]) => {
  if (!a || !b) return undefined;
  const flip = (dims: readonly number[], name: string) =>
    intAttribute(node, name, 0) === 0 ? dims : [dims[1]!, dims[0]!];
  const [rows, inner] = flip(a.dims, "transA");
  const [depth, cols] = flip(b.dims, "transB");
  if (inner !== depth) throw new RangeError(`${inner} features for weights of ${depth}`);
  return [[rows!, cols!]];
};

const matMul: Rule = (_, [a, b]) => {
  if (!a || !b || a.dims.length === 0 || b.dims.length === 0) return undefined;
  // A vector is one row on the left and one column on the right, which the product does not show.
  const left = a.dims.length === 1 ? [1, ...a.dims] : a.dims;
  const right = b.dims.length === 1 ? [...b.dims, 1] : b.dims;
  if (left.at(-1) !== right.at(-2)) throw new RangeError(`[${a.dims}] times [${b.dims}]`);
  const outer = broadcastDims(left.slice(0, -2), right.slice(0, -2));
  const rows = a.dims.length === 1 ? [] : [left.at(-2)!];
  const columns = b.dims.length === 1 ? [] : [right.at(-1)!];
  return [[...outer, ...rows, ...columns]];
};

const reshape: Rule = (node, [x, target]) => {
  if (!x || !target?.values) return undefined;
  const copies = intAttribute(node, "allowzero", 0) === 0;
  const dims = target.values.map((size, i) => (size === 0 && copies ? x.dims[i]! : size));
  const count = elementCount(x.dims);
  const free = dims.indexOf(-1);
  const rest = dims.reduce((product, size) => (size === -1 ? product : product * size), 1);
  if (free >= 0) dims[free] = count / rest;
  if (!dims.every(Number.isInteger) || elementCount(dims) !== count) {
    throw new RangeError(`[${x.dims}] does not fit the shape [${target.values}]`);
  }
  return [dims];
};

const flatten: Rule = (node, [x]) => {
  if (!x) return undefined;
  const [axis] = axesOf([intAttribute(node, "axis", 1)], x.dims.length);
  return [[elementCount(x.dims.slice(0, axis)), elementCount(x.dims.slice(axis))]];
};

const transpose: Rule = (node, [x]) => {
  if (!x) return undefined;
  const backwards = x.dims.map((_, i) => x.dims.length - 1 - i);
  return [intsAttribute(node, "perm", backwards).map((axis) => x.dims[axis]!)];
};

const squeeze: Rule = (node, [x, given]) => {
  const axes = axesGiven(node, given, 1);
  if (!x || !axes) return undefined;
  const gone = axesOf(axes, x.dims.length);
  return [x.dims.filter((size, i) => (gone.length === 0 ? size !== 1 : !gone.includes(i)))];
};

const unsqueeze: Rule = (node, [x, given]) => {
  const axes = axesGiven(node, given, 1);
  if (!x || !axes) return undefined;
  const dims = [...x.dims];
  for (const axis of axesOf(axes, dims.length + axes.length).sort((a, b) => a - b)) {
    dims.splice(axis, 0, 1);
  }
  return [dims];
};

const concat: Rule = (node, inputs) => {
  const [first] = inputs;
  if (!first || inputs.some((input) => !input)) return undefined;
  const [axis] = axesOf([intAttribute(node, "axis", 0)], first.dims.length);
  const dims = [...first.dims];
  dims[axis!] = 0;
  for (const input of inputs) {
    input!.dims.forEach((size, i) => {
      if (i === axis) dims[i] = dims[i]! + size;
      else if (size !== dims[i]) throw new RangeError(`[${first.dims}] beside [${input!.dims}]`);
    });
  }
  return [dims];
};

const split: Rule = (node, [x, given]) => {
  if (!x) return undefined;
  const [axis] = axesOf([intAttribute(node, "axis", 0)], x.dims.length);
  const total = x.dims[axis!]!;
  const each = Math.ceil(total / node.outputs.length);
  const equal = node.outputs.map((_, i) => Math.min(each, total - i * each));
  const stated = node.inputs[1] ? given?.values : intsAttribute(node, "split", equal);
  if (!stated) return undefined;
  if (stated.reduce((a, b) => a + b, 0) !== total) {
    throw new RangeError(`${total} split into [${stated}]`);
  }
  return stated.map((size) => x.dims.map((dim, i) => (i === axis ? size : dim)));
};

const slice: Rule = (node, [x, starts, ends, axesIn, stepsIn]) => {
  const from = starts ? starts.values : intsAttribute(node, "starts", []);
  const to = ends ? ends.values : intsAttribute(node, "ends", []);
  if (!x || !from || !to) return undefined;
  const counted = axesIn
    ? axesIn.values
    : intsAttribute(
        node,
        "axes",
        from.map((_, i) => i),
      );
  const steps = stepsIn ? stepsIn.values : from.map(() => 1);
  if (!counted || !steps) return undefined;
  const dims = [...x.dims];
  axesOf(counted, dims.length).forEach((axis, i) => {
    const size = dims[axis]!;
    const step = steps[i]!;
    const place = (at: number, low: number, high: number) =>
      Math.min(Math.max(at < 0 ? at + size : at, low), high);
    const first = step > 0 ? place(from[i]!, 0, size) : place(from[i]!, 0, size - 1);
    const last = step > 0 ? place(to[i]!, 0, size) : place(to[i]!, -1, size - 1);
    dims[axis] = Math.max(0, Math.ceil((last - first) / step));
  });
  return [dims];
};

const gather: Rule = (node, [x, indices]) => {
  if (!x || !indices) return undefined;
  const [axis] = axesOf([intAttribute(node, "axis", 0)], x.dims.length);
  const size = x.dims[axis!]!;
  if (indices.values?.some((at) => at >= size || at < -size)) {
    throw new RangeError(`[${indices.values}] lies outside of ${size}`);
  }
  return [[...x.dims.slice(0, axis), ...indices.dims, ...x.dims.slice(axis! + 1)]];
};

const reduce: Rule = (node, [x, given]) => {
  const axes = axesGiven(node, given, 1);
  if (!x || !axes) return undefined;
  if (axes.length === 0 && intAttribute(node, "noop_with_empty_axes", 0) !== 0) return [x.dims];
  const gone = axesOf(axes.length === 0 ? x.dims.map((_, i) => i) : axes, x.dims.length);
  const keep = intAttribute(node, "keepdims", 1) !== 0;
  return [x.dims.flatMap((size, i) => (gone.includes(i) ? (keep ? [1] : []) : [size]))];
};

const expand: Rule = (_, [x, shape]) => x && shape?.values && [broadcastDims(x.dims, shape.values)];

const constant: Rule = (node) => {
  const value = node.attributes.get("value");
  return value?.type === "tensor" ? [value.value.dims] : undefined;
};

const pad: Rule = (node, [x, given, , axesIn]) => {
  const pads = given ? given.values : intsAttribute(node, "pads", []);
  if (!x || !pads) return undefined;
  const counted = node.inputs[3] ? axesIn?.values : x.dims.map((_, axis) => axis);
  if (!counted || pads.length !== 2 * counted.length) return undefined;
  const axes = axesOf(counted, x.dims.length);
  return [
    x.dims.map((size, axis) => {
      const i = axes.indexOf(axis);
      return i < 0 ? size : size + pads[i]! + pads[i + axes.length]!;
    }),
  ];
};

const tile: Rule = (_, [x, repeats]) =>
  x && repeats?.values && [x.dims.map((size, i) => size * repeats.values![i]!)];

const range: Rule = (_, [start, limit, delta]) => {
  const [from, to, step] = [start?.values?.[0], limit?.values?.[0], delta?.values?.[0]];
  if (from === undefined || to === undefined || step === undefined) return undefined;
  return [[Math.max(0, Math.ceil((to - from) / step))]];
};

const resize: Rule = (_, [x, , scales, sizes]) => {
  if (!x) return undefined;
  if (sizes?.values) return [sizes.values];
  if (scales?.values?.length !== x.dims.length) return undefined;
  return [x.dims.map((size, i) => Math.floor(size * scales.values![i]!))];
};

const PASS_THROUGH =
  "Relu Sigmoid Tanh Erf Sqrt Exp Log Neg Abs Reciprocal Floor Ceil Round Sign Not Clip HardSwish " +
  "HardSigmoid LeakyRelu Elu Selu Celu Softplus Softsign Gelu Mish ThresholdedRelu Softmax " +
  "LogSoftmax Hardmax Identity Dropout Cast RMSNormalization " +
  "BatchNormalization InstanceNormalization GroupNormalization LpNormalization LRN " +
  "MeanVarianceNormalization QuantizeLinear DequantizeLinear Trilu CumSum ScatterND";
const BROADCASTING =
  "Add Sub Mul Div Pow Mod Max Min Sum Mean Equal Greater Less GreaterOrEqual LessOrEqual And Or " +
  "Xor Where PRelu";
const REDUCING =
  "ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare " +
  "ReduceLogSum ReduceLogSumExp";

function each(names: string, rule: Rule): Record<string, Rule> {
  return Object.fromEntries(names.split(" ").map((name) => [name, rule]));
}

/** Back from whole blocks of channels to those there are. */
const reorderOutput: Rule = (node, [x]) =>
  x && [x.dims.map((size, axis) => (axis === 1 ? intAttribute(node, "channels", size) : size))];

const RULES: Readonly<Record<string, Rule>> = {
  ...each(PASS_THROUGH, same),
  ...each(BROADCASTING, broadcast),
  ...each(REDUCING, reduce),
  ...each("MaxPool AveragePool LpPool", pool),
  ...each("GlobalAveragePool GlobalMaxPool GlobalLpPool", globalPool),
  LayerNormalization: layerNorm,
  Conv: conv,
  Gemm: gemm,
  MatMul: matMul,
  Reshape: reshape,
  Flatten: flatten,
  Transpose: transpose,
  Squeeze: squeeze,
  Unsqueeze: unsqueeze,
  Concat: concat,
  Split: split,
  Slice: slice,
  Gather: gather,
  Expand: expand,
  Constant: constant,
  Pad: pad,
  Tile: tile,
  Range: range,
  Resize: resize,
  "com.microsoft.nchwc.Conv": conv,
  "com.microsoft.nchwc.GlobalAveragePool": globalPool,
  "com.microsoft.nchwc.ReorderInput": same,
  "com.microsoft.nchwc.ReorderOutput": reorderOutput,
  Shape: (_, [x]) => x && [[x.dims.length]],
  Size: (_, [x]) => x && [[]],
  ConstantOfShape: (_, [shape]) => shape?.values && [shape.values],
  GatherElements: (_, [, indices]) => indices && [indices.dims],
};
