import { buildModel } from "../../agent/onnx/builder.ts";
import {
  floatAttribute,
  type Graph,
  intAttribute,
  intsAttribute,
  type Node,
  stringAttribute,
} from "../../agent/onnx/graph.ts";
import { DataType, elementCount, isFloatType, type Tensor } from "../../agent/onnx/tensor.ts";
import {
  broadcastDims,
  broadcastTo,
  cut,
  type DoubleTensor,
  joined,
  permuted,
  real,
  rowsAlong,
  stridesOf,
  unpermuted,
  whole,
} from "./double-tensor.helpers.ts";
import type { DifferentiatedCase, Values } from "./gradient.helpers.ts";
import { averagePooled, convolved, maxPooled } from "./reference-windows.helpers.ts";

/** Computes the outputs of a node. An input that is left out is undefined. */
type Operator = (node: Node, ...inputs: (DoubleTensor | undefined)[]) => DoubleTensor[];

/**
 * Runs a graph in double precision, slowly and by the words of the ONNX standard (operator sets 13
 * to 18): the oracle that float32 results and gradients are held against.
 *
 * @param feeds graph inputs; a name of an initializer replaces it.
 * @returns all values of the graph, by name.
 * @throws {RangeError} naming the node that it has no operator for.
 */
export function runReference(
  graph: Graph,
  feeds: ReadonlyMap<string, DoubleTensor>,
): Map<string, DoubleTensor> {
  const values = new Map<string, DoubleTensor>();
  for (const [name, tensor] of graph.initializers) {
    if (!feeds.has(name)) values.set(name, doubleTensor(tensor));
  }
  for (const [name, value] of feeds) values.set(name, value);
  for (const node of graph.nodes) {
    const operator = OPERATORS[node.opType];
    if (!operator) throw new RangeError(`the reference has no ${node.opType} ("${node.name}")`);
    const outputs = operator(node, ...node.inputs.map((name) => values.get(name)));
    node.outputs.forEach((name, i) => {
      const output = outputs[i];
      if (output) values.set(name, output);
    });
  }
  return values;
}

/** A case for `assertGradients` whose oracle is {@link runReference}. */
export function byReference(tested: Omit<DifferentiatedCase, "oracle">): DifferentiatedCase {
  const names = Object.keys(tested.inputs);
  const graph = buildModel({
    inputs: [],
    outputs: [],
    nodes: tested.nodes,
    initializers: tested.constants ?? {},
  });
  const oracle = (inputs: readonly Values[]) => {
    const feeds = names.map((name, i) => [name, real(inputs[i]!.dims, inputs[i]!.data)] as const);
    return runReference(graph, new Map(feeds)).get("y")!;
  };
  return { ...tested, oracle };
}

/** The values of a float32, integer or boolean tensor. */
export function doubleTensor({ dims, dataType, data }: Tensor): DoubleTensor {
  const values = data instanceof BigInt64Array ? Array.from(data, Number) : (data as Float32Array);
  return { dims, data: new Float64Array(values), integer: !isFloatType(dataType) };
}

/** One function of a number, for each. */
function unary(f: (x: number, node: Node) => number): Operator {
  return (node, x) => [{ ...x!, data: x!.data.map((value) => f(value, node)) }];
}

/** One function of the numbers at the same place, of inputs that broadcast. */
function together(f: (...x: number[]) => number, kind?: "truth"): Operator {
  return (_, ...inputs) => {
    const given = inputs.map((input) => input!);
    const dims = broadcastDims(given.map((input) => input.dims));
    const wide = given.map((input) => broadcastTo(input, dims).data);
    const [a, b] = wide as [Float64Array, Float64Array];
    const data = a.map((value, i) =>
      wide.length === 2 ? f(value, b[i]!) : f(...wide.map((each) => each[i]!)),
    );
    const integer = kind === "truth" || given.every((input) => input.integer);
    return [{ dims, data, integer }];
  };
}

const divide: Operator = (node, a, b) => {
  const [quotient] = together((x, y) => x / y)(node, a, b) as [DoubleTensor];
  return [quotient.integer ? { ...quotient, data: quotient.data.map(Math.trunc) } : quotient];
};

const where: Operator = (_, condition, a, b) => {
  const dims = broadcastDims([condition!.dims, a!.dims, b!.dims]);
  const [yes, no] = [broadcastTo(a!, dims).data, broadcastTo(b!, dims).data];
  const data = broadcastTo(condition!, dims).data.map((value, i) => (value ? yes[i]! : no[i]!));
  return [{ ...a!, dims, data }];
};

/** erf x = 2/√π · e^(−x²) · Σ 2ⁿ x²ⁿ⁺¹ / (1·3·5…(2n+1)): no term is negative for x ≥ 0. */
function erf(x: number): number {
  const size = Math.abs(x);
  if (size > 6) return Math.sign(x);
  let [term, sum] = [size, 0];
  for (let n = 0; term > sum * 1e-17; n++) {
    sum += term;
    term *= (2 * size * size) / (2 * n + 3);
  }
  return Math.sign(x) * (2 / Math.sqrt(Math.PI)) * Math.exp(-size * size) * sum;
}

function gelu(x: number, node: Node): number {
  const cube = Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3);
  const tanh = stringAttribute(node, "approximate", "none") === "tanh";
  return 0.5 * x * (1 + (tanh ? Math.tanh(cube) : erf(x / Math.SQRT2)));
}

function hardSigmoid(x: number, alpha: number, beta: number): number {
  return Math.max(0, Math.min(1, alpha * x + beta));
}

const clip: Operator = (_, x, low, high) => {
  const [least, most] = [low?.data[0] ?? -Infinity, high?.data[0] ?? Infinity];
  return [{ ...x!, data: x!.data.map((value) => Math.min(Math.max(value, least), most)) }];
};

const cast: Operator = (node, x) => {
  const to = intAttribute(node, "to", DataType.FLOAT);
  if (isFloatType(to)) return [{ dims: x!.dims, data: x!.data }];
  return [whole(x!.dims, x!.data.map(to === DataType.BOOL ? (v) => Number(v !== 0) : Math.trunc))];
};

function axisOf(node: Node, fallback: number, rank: number): number {
  return fromFront(intAttribute(node, "axis", fallback), rank);
}

function fromFront(axis: number, rank: number): number {
  return axis < 0 ? axis + rank : axis;
}

/** Axes from an input, or from an attribute as they were before they moved. */
function axesOf(node: Node, given: DoubleTensor | undefined, rank: number): number[] {
  const axes = given ? [...given.data] : intsAttribute(node, "axes", []);
  return axes.map((axis) => fromFront(axis, rank));
}

/** One number for all elements along some axes. */
function reduction(f: (row: Float64Array) => number): Operator {
  return (node, x, given) => {
    const { dims } = x!;
    const stated = axesOf(node, given, dims.length);
    if (stated.length === 0 && intAttribute(node, "noop_with_empty_axes", 0)) return [x!];
    const axes = stated.length === 0 ? dims.map((_, axis) => axis) : stated;
    const { rows, length } = rowsAlong(x!, axes);
    const data = Float64Array.from({ length: rows.data.length / length }, (_, i) =>
      f(rows.data.subarray(i * length, (i + 1) * length)),
    );
    const keep = intAttribute(node, "keepdims", 1) !== 0;
    const left = dims.flatMap((size, i) => (axes.includes(i) ? (keep ? [1] : []) : [size]));
    return [{ ...x!, dims: left, data }];
  };
}

const sum = (row: Float64Array): number => row.reduce((a, b) => a + b, 0);
const mean = (row: Float64Array): number => sum(row) / row.length;

const globalAveragePool: Operator = (_, x) => {
  const [batch, channels, ...plane] = x!.dims;
  const size = elementCount(plane);
  const data = Float64Array.from({ length: x!.data.length / size }, (_, i) =>
    mean(x!.data.subarray(i * size, (i + 1) * size)),
  );
  return [{ dims: [batch!, channels!, ...plane.map(() => 1)], data }];
};

/** Changes rows along an axis, each into one of the same length. */
function rowByRow(f: (row: Float64Array) => Float64Array): Operator {
  return (node, x) => {
    const { rows, length, perm } = rowsAlong(x!, [axisOf(node, -1, x!.dims.length)]);
    const data = new Float64Array(rows.data.length);
    for (let at = 0; at < data.length; at += length) {
      data.set(f(rows.data.subarray(at, at + length)), at);
    }
    return [unpermuted({ ...rows, data }, perm)];
  };
}

function logSoftmax(row: Float64Array): Float64Array {
  const largest = Math.max(...row);
  const log = largest + Math.log(row.reduce((total, x) => total + Math.exp(x - largest), 0));
  return row.map((x) => x - log);
}

const layerNormalization: Operator = (node, x, scale, bias) => {
  const length = elementCount(x!.dims.slice(axisOf(node, -1, x!.dims.length)));
  const epsilon = floatAttribute(node, "epsilon", 1e-5);
  const data = new Float64Array(x!.data.length);
  for (let at = 0; at < data.length; at += length) {
    const row = x!.data.subarray(at, at + length);
    const middle = mean(row);
    const deviation = Math.sqrt(mean(row.map((value) => (value - middle) ** 2)) + epsilon);
    data.set(
      row.map(
        (value, i) => ((value - middle) / deviation) * scale!.data[i]! + (bias?.data[i] ?? 0),
      ),
      at,
    );
  }
  return [{ dims: x!.dims, data }];
};

const batchNormalization: Operator = (node, x, scale, bias, middle, variance) => {
  const [, channels, ...plane] = x!.dims as [number, number, ...number[]];
  const size = elementCount(plane);
  const epsilon = floatAttribute(node, "epsilon", 1e-5);
  const data = x!.data.map((value, i) => {
    const c = Math.floor(i / size) % channels;
    const normal = (value - middle!.data[c]!) / Math.sqrt(variance!.data[c]! + epsilon);
    return normal * scale!.data[c]! + bias!.data[c]!;
  });
  return [{ dims: x!.dims, data }];
};

/** One product of matrices, `[m, k]` times `[k, n]`, added up into `y`. */
function multiply(
  a: Float64Array,
  b: Float64Array,
  y: Float64Array,
  [m, k, n]: readonly [number, number, number],
): void {
  for (let i = 0; i < m; i++) {
    for (let j = 0; j < k; j++) {
      const factor = a[i * k + j]!;
      for (let o = 0; o < n; o++) y[i * n + o]! += factor * b[j * n + o]!;
    }
  }
}

const matMul: Operator = (_, a, b) => {
  const left = a!.dims.length === 1 ? { ...a!, dims: [1, ...a!.dims] } : a!;
  const right = b!.dims.length === 1 ? { ...b!, dims: [...b!.dims, 1] } : b!;
  const outer = broadcastDims([left.dims.slice(0, -2), right.dims.slice(0, -2)]);
  const [m, k] = left.dims.slice(-2) as [number, number];
  const n = right.dims.at(-1)!;
  const stackA = broadcastTo(left, [...outer, m, k]).data;
  const stackB = broadcastTo(right, [...outer, k, n]).data;
  const data = new Float64Array(elementCount(outer) * m * n);
  for (let i = 0; i < elementCount(outer); i++) {
    multiply(
      stackA.subarray(i * m * k, (i + 1) * m * k),
      stackB.subarray(i * k * n, (i + 1) * k * n),
      data.subarray(i * m * n, (i + 1) * m * n),
      [m, k, n],
    );
  }
  const rows = a!.dims.length === 1 ? [] : [m];
  return [{ dims: [...outer, ...rows, ...(b!.dims.length === 1 ? [] : [n])], data }];
};

const gemm: Operator = (node, a, b, c) => {
  const turned = (x: DoubleTensor, name: string) =>
    intAttribute(node, name, 0) ? permuted(x, [1, 0]) : x;
  const [product] = matMul(node, turned(a!, "transA"), turned(b!, "transB")) as [DoubleTensor];
  const alpha = floatAttribute(node, "alpha", 1);
  const beta = floatAttribute(node, "beta", 1);
  const added = c && broadcastTo(c, product.dims).data;
  const data = product.data.map((value, i) => alpha * value + (added ? beta * added[i]! : 0));
  return [{ ...product, data }];
};

const reshape: Operator = (node, x, target) => {
  const dims = [...target!.data].map((size, i) =>
    size === 0 && !intAttribute(node, "allowzero", 0) ? x!.dims[i]! : size,
  );
  const free = dims.indexOf(-1);
  if (free >= 0) dims[free] = -x!.data.length / elementCount(dims);
  return [{ ...x!, dims }];
};

const flatten: Operator = (node, x) => {
  const { dims } = x!;
  const axis = axisOf(node, 1, dims.length);
  return [{ ...x!, dims: [elementCount(dims.slice(0, axis)), elementCount(dims.slice(axis))] }];
};

const squeeze: Operator = (node, x, given) => {
  const axes = axesOf(node, given, x!.dims.length);
  const gone = (size: number, axis: number) => (axes.length ? axes.includes(axis) : size === 1);
  return [{ ...x!, dims: x!.dims.filter((size, axis) => !gone(size, axis)) }];
};

const unsqueeze: Operator = (node, x, given) => {
  const count = given?.data.length ?? intsAttribute(node, "axes", []).length;
  const axes = axesOf(node, given, x!.dims.length + count);
  const rest = [...x!.dims];
  const dims = Array.from({ length: rest.length + count }, (_, axis) =>
    axes.includes(axis) ? 1 : rest.shift()!,
  );
  return [{ ...x!, dims }];
};

const transpose: Operator = (node, x) => {
  const backwards = x!.dims.map((_, i) => x!.dims.length - 1 - i);
  return [permuted(x!, intsAttribute(node, "perm", backwards))];
};

const concat: Operator = (node, ...parts) => {
  const given = parts.map((part) => part!);
  return [joined(given, axisOf(node, 0, given[0]!.dims.length))];
};

const split: Operator = (node, x, given) => {
  const axis = axisOf(node, 0, x!.dims.length);
  const each = Math.ceil(x!.dims[axis]! / node.outputs.length);
  const sizes = given
    ? [...given.data]
    : node.outputs.map((_, i) => Math.min(each, x!.dims[axis]! - i * each));
  let end = 0;
  return sizes.map((size) => {
    end += size;
    return cut(x!, axis, end - size, 1, size);
  });
};

const slice: Operator = (_, x, starts, ends, axesIn, stepsIn) => {
  let result = x!;
  starts!.data.forEach((start, i) => {
    const axis = fromFront(axesIn?.data[i] ?? i, x!.dims.length);
    const size = x!.dims[axis]!;
    const step = stepsIn?.data[i] ?? 1;
    const place = (at: number, low: number, high: number) =>
      Math.min(Math.max(at < 0 ? at + size : at, low), high);
    const first = step > 0 ? place(start, 0, size) : place(start, 0, size - 1);
    const stop = step > 0 ? place(ends!.data[i]!, 0, size) : place(ends!.data[i]!, -1, size - 1);
    result = cut(result, axis, first, step, Math.max(0, Math.ceil((stop - first) / step)));
  });
  return [result];
};

const gather: Operator = (node, x, indices) => {
  const { dims } = x!;
  const axis = axisOf(node, 0, dims.length);
  const taken = [...indices!.data].map((index) =>
    cut(x!, axis, fromFront(index, dims[axis]!), 1, 1),
  );
  const shape = [...dims.slice(0, axis), ...indices!.dims, ...dims.slice(axis + 1)];
  return [{ ...joined(taken, axis), dims: shape }];
};

const tile: Operator = (_, x, repeats) => {
  const copies = [...repeats!.data].reduce(
    (whole, count, axis) => joined(new Array<DoubleTensor>(count).fill(whole), axis),
    x!,
  );
  return [copies];
};

/** @throws {RangeError} for other borders than constant ones. */
const pad: Operator = (node, x, pads, fill, axesIn) => {
  if (stringAttribute(node, "mode", "constant") !== "constant") {
    throw new RangeError(`the reference has no such Pad ("${node.name}")`);
  }
  const rank = x!.dims.length;
  const axes = axesIn ? [...axesIn.data].map((axis) => fromFront(axis, rank)) : [...x!.dims.keys()];
  const [before, behind] = [x!.dims.map(() => 0), x!.dims.map(() => 0)];
  axes.forEach((axis, i) => {
    before[axis] = pads!.data[i]!;
    behind[axis] = pads!.data[i + axes.length]!;
  });
  const dims = x!.dims.map((size, axis) => size + before[axis]! + behind[axis]!);
  const data = new Float64Array(elementCount(dims)).fill(fill?.data[0] ?? 0);
  const [from, to] = [stridesOf(x!.dims), stridesOf(dims)];
  x!.data.forEach((value, place) => {
    const index = x!.dims.map((size, i) => (Math.floor(place / from[i]!) % size) + before[i]!);
    if (index.some((at, axis) => at < 0 || at >= dims[axis]!)) return;
    data[index.reduce((sum, at, axis) => sum + at * to[axis]!, 0)] = value;
  });
  return [{ ...x!, dims, data }];
};

const constant: Operator = (node) => {
  const value = node.attributes.get("value");
  if (value?.type !== "tensor") throw new RangeError(`"${node.name}" has no tensor`);
  return [doubleTensor(value.value)];
};

const constantOfShape: Operator = (node, shape) => {
  const dims = [...shape!.data];
  const value = node.attributes.get("value");
  const fill = value?.type === "tensor" ? doubleTensor(value.value) : { data: [0] };
  return [{ ...fill, dims, data: new Float64Array(elementCount(dims)).fill(fill.data[0]!) }];
};

const OPERATORS: Readonly<Record<string, Operator>> = {
  Add: together((a, b) => a + b),
  Sub: together((a, b) => a - b),
  Mul: together((a, b) => a * b),
  Div: divide,
  Pow: together((a, b) => a ** b),
  Sum: together((...x) => x.reduce((a, b) => a + b, 0)),
  Max: together(Math.max),
  Min: together(Math.min),
  Equal: together((a, b) => Number(a === b), "truth"),
  Where: where,
  Neg: unary((x) => -x),
  Abs: unary(Math.abs),
  Exp: unary(Math.exp),
  Log: unary(Math.log),
  Sqrt: unary(Math.sqrt),
  Erf: unary(erf),
  Tanh: unary(Math.tanh),
  Sigmoid: unary((x) => 1 / (1 + Math.exp(-x))),
  Relu: unary((x) => Math.max(x, 0)),
  HardSigmoid: unary((x, node) =>
    hardSigmoid(x, floatAttribute(node, "alpha", 0.2), floatAttribute(node, "beta", 0.5)),
  ),
  HardSwish: unary((x) => x * hardSigmoid(x, 1 / 6, 0.5)),
  Gelu: unary(gelu),
  Clip: clip,
  Cast: cast,
  Softmax: rowByRow((row) => logSoftmax(row).map(Math.exp)),
  LogSoftmax: rowByRow(logSoftmax),
  LayerNormalization: layerNormalization,
  BatchNormalization: batchNormalization,
  Conv: (node, x, w, bias) => [convolved(node, x!, w!, bias)],
  MaxPool: (node, x) => [maxPooled(node, x!)],
  AveragePool: (node, x) => [averagePooled(node, x!)],
  GlobalAveragePool: globalAveragePool,
  MatMul: matMul,
  Gemm: gemm,
  ReduceSum: reduction(sum),
  ReduceMean: reduction(mean),
  ReduceMax: reduction((row) => Math.max(...row)),
  ReduceMin: reduction((row) => Math.min(...row)),
  ReduceL2: reduction((row) => Math.sqrt(sum(row.map((x) => x * x)))),
  Identity: (_, x) => [x!],
  Dropout: (_, x) => [x!],
  Reshape: reshape,
  Flatten: flatten,
  Squeeze: squeeze,
  Unsqueeze: unsqueeze,
  Transpose: transpose,
  Concat: concat,
  Split: split,
  Slice: slice,
  Gather: gather,
  Expand: (_, x, shape) => [broadcastTo(x!, broadcastDims([x!.dims, [...shape!.data]]))],
  Tile: tile,
  Pad: pad,
  Shape: (_, x) => [whole([x!.dims.length], x!.dims)],
  Constant: constant,
  ConstantOfShape: constantOfShape,
};
