import { buildModel, floatValue, node } from "./builder.ts";
import { removeDeadCode } from "./dead-code.ts";
import type { Graph, Node } from "./graph.ts";
import { floatTensor, int64Tensor, type Tensor } from "./tensor.ts";
import { decodeTfjsWeights, type TfjsWeight, type TfjsWeightSpec } from "./tfjs-weights.ts";

/** `model.json` of a TensorFlow.js graph model, as far as it is read here. */
export interface TfjsGraphModel {
  readonly format?: string;
  readonly modelTopology: { readonly node: readonly TfjsNode[] };
  readonly weightsManifest: readonly {
    readonly paths: readonly string[];
    readonly weights: readonly TfjsWeightSpec[];
  }[];
}

/** A node of the TensorFlow graph. Strings in attributes are base64. */
export interface TfjsNode {
  readonly name: string;
  readonly op: string;
  readonly input?: readonly string[];
  readonly attr?: Readonly<Record<string, TfjsAttribute>>;
}

interface TfjsAttribute {
  readonly s?: string;
  readonly i?: string | number;
  readonly f?: number;
  readonly b?: boolean;
  readonly list?: { readonly s?: readonly string[]; readonly i?: readonly (string | number)[] };
}

/** How to convert; see {@link convertTfjsGraphModel}. */
export interface TfjsConversion {
  /** Size of the pictures in pixels: padding of strided operations depends on it. */
  readonly height: number;
  readonly width: number;
  /** Channels of the input; default 3. */
  readonly channels?: number;
  /**
   * Node whose output becomes the input of the new model, for graphs that begin with
   * preprocessing; default: the placeholder.
   */
  readonly from?: string;
  /** Node whose output becomes the output, to leave a softmax out; default: the last node. */
  readonly to?: string;
  /** Prefix of node names that is dropped in the new model. */
  readonly dropPrefix?: string;
}

/** Sizes in TensorFlow's order (batch, height, width, channel); null is the batch. */
type Dims = readonly (number | null)[];

type Value =
  | { readonly kind: "activation"; readonly name: string; readonly dims: Dims }
  | { readonly kind: "constant"; readonly weight: TfjsWeight }
  /** A shape vector or a part of it. */
  | { readonly kind: "shape"; readonly sizes: Dims; readonly scalar: boolean };

type Activation = Extract<Value, { kind: "activation" }>;

interface Context {
  readonly values: Map<string, Value>;
  readonly nodes: Node[];
  readonly initializers: Map<string, Tensor>;
  /** How many nodes read each TensorFlow node. */
  readonly readers: ReadonlyMap<string, number>;
  /** The `[N, C, 1, 1]` value behind a pooled `[N, C]` one. */
  readonly pooled: Map<string, string>;
  readonly short: (name: string) => string;
}

/**
 * Converts a TensorFlow.js graph model of the classifier kind to ONNX (opset 13): channels last
 * becomes channels first, SAME padding explicit pads (more at the end where it is odd), batch
 * norm is folded into the convolution before it.
 *
 * @param weights bytes of all weight files, one after the other in the order of the manifest.
 * @returns input `input` [N, channels, height, width], output `logits` [N, …].
 * @throws {RangeError} naming every operation that is not known, or the node that does not fit.
 */
export function convertTfjsGraphModel(
  model: TfjsGraphModel,
  weights: Uint8Array,
  how: TfjsConversion,
): Graph {
  const nodes = inOrder(model.modelTopology.node, how);
  refuseUnknown(nodes);
  const specs = model.weightsManifest.flatMap((group) => group.weights);
  const constants = decodeTfjsWeights(specs, weights);
  const prefix = how.dropPrefix ?? "";
  const context: Context = {
    values: new Map(),
    nodes: [],
    initializers: new Map(),
    readers: countReaders(nodes),
    pooled: new Map(),
    short: (name) => (prefix && name.startsWith(prefix) ? name.slice(prefix.length) : name),
  };
  const input = floatValue("input", ["N", how.channels ?? 3, how.height, how.width]);
  const first: Value = {
    kind: "activation",
    name: input.name,
    dims: [null, how.height, how.width, how.channels ?? 3],
  };
  for (const tf of nodes) {
    context.values.set(tf.name, valueOfNode(context, tf, how, constants, first));
  }
  return finish(context, input, context.values.get(nodes.at(-1)!.name)!);
}

function valueOfNode(
  context: Context,
  tf: TfjsNode,
  how: TfjsConversion,
  constants: ReadonlyMap<string, TfjsWeight>,
  first: Value,
): Value {
  if (tf.name === how.from || (tf.op === "Placeholder" && how.from === undefined)) return first;
  if (tf.op === "Const") {
    const weight = constants.get(tf.name);
    if (weight === undefined) throw new RangeError(`the manifest has no weight "${tf.name}"`);
    return { kind: "constant", weight };
  }
  return OPERATIONS[tf.op]!(context, tf);
}

function finish(context: Context, input: ReturnType<typeof floatValue>, last: Value): Graph {
  if (last.kind !== "activation") throw new RangeError("the output does not depend on the input");
  // The last node makes the value under its public name; nothing else can read it.
  const nodes = context.nodes.map((n): Node => {
    const rename = (name: string): string => (name === last.name ? "logits" : name);
    return { ...n, inputs: n.inputs.map(rename), outputs: n.outputs.map(rename) };
  });
  const outputs = [floatValue("logits", ["N", ...last.dims.slice(1)])];
  const parts = { inputs: [input], outputs, nodes, initializers: context.initializers };
  return removeDeadCode(buildModel({ ...parts, opset: 13, irVersion: 8, name: "classifier" }));
}

/** The nodes that the output needs, each after its inputs, ending with the output. */
function inOrder(all: readonly TfjsNode[], how: TfjsConversion): TfjsNode[] {
  const byName = new Map(all.map((tf) => [tf.name, tf]));
  const target = how.to ?? all.find((tf) => !all.some((o) => inputsOf(o).includes(tf.name)))?.name;
  const order: TfjsNode[] = [];
  const seen = new Set<string>();
  // Depth first with an own stack: graphs are deeper than the call stack may be.
  const stack: { name: string; done: boolean }[] = [{ name: target ?? "", done: false }];
  for (let top = stack.pop(); top !== undefined; top = stack.pop()) {
    const tf = byName.get(top.name);
    if (tf === undefined) throw new RangeError(`the graph has no node "${top.name}"`);
    if (top.done) {
      order.push(tf);
    } else if (!seen.has(tf.name)) {
      seen.add(tf.name);
      stack.push({ name: tf.name, done: true });
      if (tf.name === how.from) continue;
      for (const name of [...inputsOf(tf)].reverse()) stack.push({ name, done: false });
    }
  }
  return order;
}

/** Names of a node's data inputs: without the output number, and without control inputs. */
function inputsOf(tf: TfjsNode): string[] {
  return (tf.input ?? []).filter((name) => !name.startsWith("^")).map((n) => n.split(":")[0]!);
}

function countReaders(nodes: readonly TfjsNode[]): Map<string, number> {
  const readers = new Map<string, number>();
  for (const name of nodes.flatMap(inputsOf)) readers.set(name, (readers.get(name) ?? 0) + 1);
  return readers;
}

function refuseUnknown(nodes: readonly TfjsNode[]): void {
  const known = new Set(["Placeholder", "Const", ...Object.keys(OPERATIONS)]);
  const unknown = [...new Set(nodes.map(({ op }) => op).filter((op) => !known.has(op)))];
  if (unknown.length > 0) {
    throw new RangeError(`TensorFlow operations that cannot be converted: ${unknown.join(", ")}`);
  }
}

type Operation = (context: Context, tf: TfjsNode) => Value;

const OPERATIONS: Readonly<Record<string, Operation>> = {
  Conv2D: convolution,
  _FusedConv2D: convolution,
  DepthwiseConv2dNative: convolution,
  FusedDepthwiseConv2dNative: convolution,
  FusedBatchNorm: batchNorm,
  FusedBatchNormV2: batchNorm,
  FusedBatchNormV3: batchNorm,
  BiasAdd: binary("Add"),
  Add: binary("Add"),
  AddV2: binary("Add"),
  Sub: binary("Sub"),
  Mul: binary("Mul"),
  RealDiv: binary("Div"),
  Relu: unary("Relu"),
  Relu6: (context, tf) => clip6(context, tf, activation(context, tf, 0)),
  Sigmoid: unary("Sigmoid"),
  Tanh: unary("Tanh"),
  Elu: unary("Elu"),
  Softmax: (context, tf) => same(context, tf, "Softmax", { axis: channelAxis(context, tf) }),
  LeakyRelu: (context, tf) =>
    same(context, tf, "LeakyRelu", {
      alpha: { type: "float", value: tf.attr?.["alpha"]?.f ?? 0.2 },
    }),
  MatMul: matMul,
  _FusedMatMul: matMul,
  MaxPool: pool("MaxPool"),
  AvgPool: pool("AveragePool"),
  Mean: mean,
  Pad: pad,
  ConcatV2: concat,
  Identity: (context, tf) => input(context, tf, 0),
  Shape: (context, tf) => {
    return { kind: "shape", sizes: activation(context, tf, 0).dims, scalar: false };
  },
  StridedSlice: stridedSlice,
  Pack: pack,
  Reshape: reshape,
  Squeeze: squeeze,
  ExpandDims: expandDims,
};

function text(attribute: TfjsAttribute | undefined): string {
  return atob(attribute?.s ?? "");
}

function integers(attribute: TfjsAttribute | undefined): number[] {
  return (attribute?.list?.i ?? []).map(Number);
}

function input(context: Context, tf: TfjsNode, at: number): Value {
  const value = context.values.get(inputsOf(tf)[at] ?? "");
  if (value === undefined) throw new RangeError(`${tf.op} "${tf.name}" has no input ${at}`);
  return value;
}

function activation(context: Context, tf: TfjsNode, at: number): Activation {
  const value = input(context, tf, at);
  if (value.kind === "activation") return value;
  throw new RangeError(`${tf.op} "${tf.name}": input ${at} does not depend on the picture`);
}

function constant(context: Context, tf: TfjsNode, at: number): TfjsWeight {
  const value = input(context, tf, at);
  if (value.kind === "constant") return value.weight;
  throw new RangeError(`${tf.op} "${tf.name}": expected a constant as input ${at}`);
}

function emit(
  context: Context,
  opType: string,
  inputs: readonly string[],
  output: string,
  attributes: Parameters<typeof node>[3] = {},
): string {
  context.nodes.push(node(opType, inputs, [output], attributes));
  return output;
}

function keep(context: Context, name: string, tensor: Tensor): string {
  context.initializers.set(name, tensor);
  return name;
}

/** An operation that leaves the shape as it is. */
function same(
  context: Context,
  tf: TfjsNode,
  opType: string,
  attributes: Parameters<typeof node>[3] = {},
): Activation {
  const x = activation(context, tf, 0);
  const name = emit(context, opType, [x.name], context.short(tf.name), attributes);
  return { ...x, name };
}

function unary(opType: string): Operation {
  return (context, tf) => same(context, tf, opType);
}

function channelAxis(context: Context, tf: TfjsNode): number {
  return activation(context, tf, 0).dims.length === 4 ? 1 : -1;
}

function clip6(
  context: Context,
  tf: TfjsNode,
  x: Activation,
  output = context.short(tf.name),
): Activation {
  const zero = keep(context, "clip.zero", floatTensor([], [0]));
  const six = keep(context, "clip.six", floatTensor([], [6]));
  return { ...x, name: emit(context, "Clip", [x.name, zero, six], output) };
}

/** A refusal of layouts other than the one TensorFlow.js runs everywhere. */
function checkLayout(tf: TfjsNode): void {
  const layout = text(tf.attr?.["data_format"]);
  if (layout !== "" && layout !== "NHWC") {
    throw new RangeError(`${tf.op} "${tf.name}": expected layout NHWC, got ${layout}`);
  }
}

/** Output sizes [height, width] and ONNX pads [top, left, bottom, right] of a sliding window. */
function window(
  tf: TfjsNode,
  dims: Dims,
  kernel: readonly [number, number],
  strides: readonly [number, number],
  dilations: readonly [number, number],
): { sizes: [number, number]; pads: [number, number, number, number] } {
  const padding = text(tf.attr?.["padding"]);
  if (padding !== "SAME" && padding !== "VALID") {
    throw new RangeError(`${tf.op} "${tf.name}": padding ${padding || "?"} cannot be converted`);
  }
  const axis = (at: 0 | 1) => {
    const size = dims[at + 1]!;
    const reach = (kernel[at] - 1) * dilations[at] + 1;
    if (padding === "VALID") {
      return { size: Math.floor((size - reach) / strides[at]) + 1, begin: 0, end: 0 };
    }
    const count = Math.ceil(size / strides[at]);
    const total = Math.max(0, (count - 1) * strides[at] + reach - size);
    return { size: count, begin: Math.floor(total / 2), end: Math.ceil(total / 2) };
  };
  const [y, x] = [axis(0), axis(1)];
  return { sizes: [y.size, x.size], pads: [y.begin, x.begin, y.end, x.end] };
}

function pair(list: readonly number[]): [number, number] {
  return [list[1] ?? 1, list[2] ?? 1];
}

function convolution(context: Context, tf: TfjsNode): Value {
  checkLayout(tf);
  const x = activation(context, tf, 0);
  const filter = constant(context, tf, 1);
  const depthwise = tf.op.includes("Depthwise");
  const [kh, kw, inChannels, last] = filter.shape as [number, number, number, number];
  const outChannels = depthwise ? inChannels * last : last;
  const groups = depthwise ? inChannels : x.dims[3]! / inChannels;
  const strides = pair(integers(tf.attr?.["strides"]));
  const dilations = pair(integers(tf.attr?.["dilations"]));
  const { sizes, pads } = window(tf, x.dims, [kh, kw], strides, dilations);
  const base = context.short(tf.name);
  const dims = [outChannels, depthwise ? 1 : inChannels, kh, kw];
  const kernel = depthwise ? depthwiseKernel(filter) : permute(filter, [3, 2, 0, 1]);
  const inputs = [x.name, keep(context, `${base}.weight`, floatTensor(dims, kernel))];
  const fused = (tf.attr?.["fused_ops"]?.list?.s ?? []).map((s) => atob(s));
  if (fused[0] === "BiasAdd") {
    const bias = constant(context, tf, 2).values;
    inputs.push(keep(context, `${base}.bias`, floatTensor([outChannels], bias)));
  }
  const rest = fused.filter((op) => op !== "BiasAdd");
  const attributes = { kernel_shape: [kh, kw], strides, dilations, pads, group: groups };
  const product = rest.length > 0 ? `${base}/conv` : base;
  emit(context, "Conv", inputs, product, attributes);
  const result: Activation = {
    kind: "activation",
    name: product,
    dims: [null, ...sizes, outChannels],
  };
  return fusedActivation(context, tf, rest, result);
}

/** The activation that a fused operation ends with. */
function fusedActivation(
  context: Context,
  tf: TfjsNode,
  fused: readonly string[],
  x: Activation,
): Activation {
  const [op, ...more] = fused;
  if (op === undefined) return x;
  const output = context.short(tf.name);
  if (more.length === 0 && op === "Relu6") return clip6(context, tf, x, output);
  if (more.length === 0 && ["Relu", "Sigmoid", "Elu", "Tanh"].includes(op)) {
    return { ...x, name: emit(context, op, [x.name], output) };
  }
  throw new RangeError(`${tf.op} "${tf.name}": fused ${fused.join(", ")} cannot be converted`);
}

/** [kh, kw, C, multiplier] → [C·multiplier, 1, kh, kw]. */
function depthwiseKernel(filter: TfjsWeight): Float32Array {
  return permute(filter, [2, 3, 0, 1]);
}

/** Values with the axes in another order: axis i of the result is axis `order[i]`. */
function permute(weight: TfjsWeight, order: readonly number[]): Float32Array {
  const { shape, values } = weight;
  const strides = shape.map((_, i) => shape.slice(i + 1).reduce((a, b) => a * b, 1));
  const result = new Float32Array(values.length);
  const at = order.map(() => 0);
  for (let i = 0; i < result.length; i++) {
    let from = 0;
    for (let a = 0; a < order.length; a++) from += at[a]! * strides[order[a]!]!;
    result[i] = values[from]!;
    for (let a = order.length - 1; a >= 0; a--) {
      at[a]!++;
      if (at[a]! < shape[order[a]!]!) break;
      at[a] = 0;
    }
  }
  return result;
}

/** y = (x − mean)·scale/√(var + ε) + offset, into the convolution before it where that is alone. */
function batchNorm(context: Context, tf: TfjsNode): Value {
  checkLayout(tf);
  const x = activation(context, tf, 0);
  const [scale, offset, mu, variance] = [1, 2, 3, 4].map((i) => constant(context, tf, i).values);
  const epsilon = tf.attr?.["epsilon"]?.f ?? 1e-3;
  const factor = Float64Array.from(scale!, (s, c) => s / Math.sqrt(variance![c]! + epsilon));
  const shift = Float64Array.from(offset!, (o, c) => o - mu![c]! * factor[c]!);
  const source = inputsOf(tf)[0]!;
  const before = context.nodes.at(-1);
  const conv = before?.opType === "Conv" && before.outputs[0] === x.name ? before : undefined;
  if (conv && context.readers.get(source) === 1) {
    foldIntoConv(context, conv, factor, shift);
    return x;
  }
  const base = context.short(tf.name);
  const dims = [1, factor.length, 1, 1];
  const scaleName = keep(context, `${base}.scale`, floatTensor(dims, factor));
  const shiftName = keep(context, `${base}.shift`, floatTensor(dims, shift));
  const scaled = emit(context, "Mul", [x.name, scaleName], `${base}/scaled`);
  return { ...x, name: emit(context, "Add", [scaled, shiftName], base) };
}

function foldIntoConv(
  context: Context,
  conv: Node,
  factor: Float64Array,
  shift: Float64Array,
): void {
  const [xName, weightName, oldBias] = conv.inputs as [string, string, string?];
  const weight = context.initializers.get(weightName)!;
  const perRow = weight.data.length / factor.length;
  const values = (weight.data as Float32Array).map((w, i) => w * factor[Math.floor(i / perRow)]!);
  context.initializers.set(weightName, floatTensor(weight.dims, values));
  const bias = oldBias ? (context.initializers.get(oldBias)!.data as Float32Array) : undefined;
  const biasName = oldBias ?? weightName.replace(/\.weight$/, ".bias");
  const moved = Float32Array.from(shift, (s, c) => s + (bias?.[c] ?? 0) * factor[c]!);
  context.initializers.set(biasName, floatTensor([moved.length], moved));
  context.nodes[context.nodes.length - 1] = { ...conv, inputs: [xName, weightName, biasName] };
}

function binary(opType: string): Operation {
  return (context, tf) => {
    const values = [input(context, tf, 0), input(context, tf, 1)] as const;
    const acts = values.filter((value) => value.kind === "activation");
    const [x] = acts;
    if (x === undefined) throw new RangeError(`${tf.op} "${tf.name}" works on constants alone`);
    const rank = Math.max(...acts.map(({ dims }) => dims.length));
    const names = values.map((value, i) => operand(context, tf, value, rank, i));
    const dims = acts.reduce((a, b) => broadcast(tf, a, b.dims), x.dims);
    return { kind: "activation", name: emit(context, opType, names, context.short(tf.name)), dims };
  };
}

function operand(context: Context, tf: TfjsNode, value: Value, rank: number, at: number): string {
  if (value.kind === "activation") {
    if (value.dims.length === rank) return value.name;
    throw new RangeError(
      `${tf.op} "${tf.name}": operands of ranks that differ cannot be converted`,
    );
  }
  if (value.kind === "shape") {
    throw new RangeError(`${tf.op} "${tf.name}": arithmetic on shapes cannot be converted`);
  }
  const { shape, values } = value.weight;
  const name = `${context.short(tf.name)}.constant_${at}`;
  if (rank < 4 || shape.length === 0) return keep(context, name, floatTensor(shape, values));
  const full = [...Array<number>(4 - shape.length).fill(1), ...shape];
  const turned = permute({ shape: full, dtype: "float32", values }, [0, 3, 1, 2]);
  const dims = [full[0]!, full[3]!, full[1]!, full[2]!];
  return keep(context, name, floatTensor(dims, turned));
}

function broadcast(tf: TfjsNode, a: Dims, b: Dims): Dims {
  return a.map((size, i) => {
    const other = b[i];
    if (size === other || other === 1) return size;
    if (size === 1) return other ?? null;
    throw new RangeError(`${tf.op} "${tf.name}": [${a}] and [${b}] do not broadcast`);
  });
}

function matMul(context: Context, tf: TfjsNode): Value {
  const x = activation(context, tf, 0);
  const weight = constant(context, tf, 1);
  if (x.dims.length !== 2 || weight.shape.length !== 2 || tf.attr?.["transpose_a"]?.b) {
    throw new RangeError(`${tf.op} "${tf.name}": expected [N, features] times a constant matrix`);
  }
  const transposed = tf.attr?.["transpose_b"]?.b === true;
  const [rows, cols] = (transposed ? weight.shape : [...weight.shape].reverse()) as [
    number,
    number,
  ];
  const stored = transposed ? Float32Array.from(weight.values) : permute(weight, [1, 0]);
  const base = context.short(tf.name);
  const inputs = [x.name, keep(context, `${base}.weight`, floatTensor([rows, cols], stored))];
  const fused = (tf.attr?.["fused_ops"]?.list?.s ?? []).map((s) => atob(s));
  if (fused[0] === "BiasAdd") {
    const bias = constant(context, tf, 2).values;
    inputs.push(keep(context, `${base}.bias`, floatTensor([rows], bias)));
  }
  const rest = fused.filter((op) => op !== "BiasAdd");
  const product = rest.length > 0 ? `${base}/product` : base;
  emit(context, "Gemm", inputs, product, { transB: 1 });
  return fusedActivation(context, tf, rest, {
    kind: "activation",
    name: product,
    dims: [null, rows],
  });
}

function pool(opType: string): Operation {
  return (context, tf) => {
    checkLayout(tf);
    const x = activation(context, tf, 0);
    const kernel = pair(integers(tf.attr?.["ksize"]));
    const strides = pair(integers(tf.attr?.["strides"]));
    const { sizes, pads } = window(tf, x.dims, kernel, strides, [1, 1]);
    const attributes = { kernel_shape: kernel, strides, pads };
    const name = emit(context, opType, [x.name], context.short(tf.name), attributes);
    return { kind: "activation", name, dims: [null, ...sizes, x.dims[3]!] };
  };
}

/** The mean over height and width, which is all that classifiers take. */
function mean(context: Context, tf: TfjsNode): Value {
  const x = activation(context, tf, 0);
  const axes = [...constant(context, tf, 1).values].map(
    (axis) => (axis + x.dims.length) % x.dims.length,
  );
  if (x.dims.length !== 4 || axes.sort().join() !== "1,2") {
    throw new RangeError(`${tf.op} "${tf.name}": expected the mean over height and width`);
  }
  const base = context.short(tf.name);
  const channels = x.dims[3]!;
  if (tf.attr?.["keep_dims"]?.b) {
    const name = emit(context, "GlobalAveragePool", [x.name], base);
    return { kind: "activation", name, dims: [null, 1, 1, channels] };
  }
  const wide = emit(context, "GlobalAveragePool", [x.name], `${base}/pool`);
  context.pooled.set(base, wide);
  const name = emit(context, "Flatten", [wide], base, { axis: 1 });
  return { kind: "activation", name, dims: [null, channels] };
}

function pad(context: Context, tf: TfjsNode): Value {
  const x = activation(context, tf, 0);
  const pads = constant(context, tf, 1).values;
  if (x.dims.length !== 4) throw new RangeError(`${tf.op} "${tf.name}": expected four dimensions`);
  const [n0, n1, h0, h1, w0, w1, c0, c1] = pads as unknown as number[];
  const base = context.short(tf.name);
  const order = [n0!, c0!, h0!, w0!, n1!, c1!, h1!, w1!];
  const name = keep(context, `${base}.pads`, int64Tensor([8], order));
  const dims = x.dims.map((size, i) =>
    size === null ? null : size + pads[2 * i]! + pads[2 * i + 1]!,
  );
  return { kind: "activation", name: emit(context, "Pad", [x.name, name], base), dims };
}

function concat(context: Context, tf: TfjsNode): Value {
  const count = inputsOf(tf).length - 1;
  const parts = Array.from({ length: count }, (_, i) => activation(context, tf, i));
  const rank = parts[0]!.dims.length;
  const axis = (constant(context, tf, count).values[0]! + rank) % rank;
  const onnxAxis = rank === 4 ? [0, 2, 3, 1][axis]! : axis;
  const dims = parts[0]!.dims.map((size, i) =>
    i === axis ? parts.reduce((sum, part) => sum + part.dims[i]!, 0) : size,
  );
  const names = parts.map(({ name }) => name);
  const name = emit(context, "Concat", names, context.short(tf.name), { axis: onnxAxis });
  return { kind: "activation", name, dims };
}

/** One element or a plain range of a shape vector. */
function stridedSlice(context: Context, tf: TfjsNode): Value {
  const value = input(context, tf, 0);
  if (value.kind !== "shape") {
    throw new RangeError(`${tf.op} "${tf.name}": only shapes can be sliced`);
  }
  const length = value.sizes.length;
  const at = (i: number) => (constant(context, tf, i).values[0]! + length) % length;
  if (Number(tf.attr?.["shrink_axis_mask"]?.i ?? 0) === 1) {
    return { kind: "shape", sizes: [value.sizes[at(1)]!], scalar: true };
  }
  const begin =
    Number(tf.attr?.["begin_mask"]?.i ?? 0) & 1 ? 0 : constant(context, tf, 1).values[0]!;
  const end =
    Number(tf.attr?.["end_mask"]?.i ?? 0) & 1 ? length : constant(context, tf, 2).values[0]!;
  return { kind: "shape", sizes: value.sizes.slice(begin, end), scalar: false };
}

function pack(context: Context, tf: TfjsNode): Value {
  const sizes = inputsOf(tf).flatMap((_, i) => shapeOf(context, tf, i));
  return { kind: "shape", sizes, scalar: false };
}

/** A shape given as a constant (−1: what is left over, here always the batch) or computed. */
function shapeOf(context: Context, tf: TfjsNode, at: number): Dims {
  const value = input(context, tf, at);
  if (value.kind === "shape") return value.sizes;
  if (value.kind === "constant") return [...value.weight.values].map((v) => (v === -1 ? null : v));
  throw new RangeError(`${tf.op} "${tf.name}": expected a shape as input ${at}`);
}

function reshape(context: Context, tf: TfjsNode): Value {
  return reshapeTo(context, tf, activation(context, tf, 0), shapeOf(context, tf, 1));
}

function squeeze(context: Context, tf: TfjsNode): Value {
  const x = activation(context, tf, 0);
  const axes = integers(tf.attr?.["squeeze_dims"]).map(
    (axis) => (axis + x.dims.length) % x.dims.length,
  );
  const dims = x.dims.filter((size, i) => (axes.length > 0 ? !axes.includes(i) : size !== 1));
  return reshapeTo(context, tf, x, dims);
}

function expandDims(context: Context, tf: TfjsNode): Value {
  const x = activation(context, tf, 0);
  const axis = constant(context, tf, 1).values[0]!;
  const at = axis < 0 ? axis + x.dims.length + 1 : axis;
  return reshapeTo(context, tf, x, [...x.dims.slice(0, at), 1, ...x.dims.slice(at)]);
}

/** A reshape as TensorFlow means it: in the order batch, height, width, channel. */
function reshapeTo(context: Context, tf: TfjsNode, x: Activation, target: Dims): Activation {
  const dims = withBatchInFront(tf, x.dims, target);
  const base = context.short(tf.name);
  const wide = context.pooled.get(x.name);
  if (wide !== undefined && dims.length === 4 && dims[1] === 1 && dims[2] === 1) {
    return { kind: "activation", name: wide, dims };
  }
  let source = x.name;
  if (isSpatial(x.dims)) {
    source = emit(context, "Transpose", [source], `${base}/nhwc`, { perm: [0, 2, 3, 1] });
  }
  const turnBack = isSpatial(dims);
  const sizes = dims.slice(1).map(Number);
  const direct = dims.length === 4 && !turnBack ? [sizes[2]!, sizes[0]!, sizes[1]!] : sizes;
  const shape = keep(context, `${base}.shape`, int64Tensor([dims.length], [-1, ...direct]));
  const output = turnBack ? `${base}/reshaped` : base;
  const flat = emit(context, "Reshape", [source, shape], output);
  if (!turnBack) return { kind: "activation", name: flat, dims };
  const name = emit(context, "Transpose", [flat], base, { perm: [0, 3, 1, 2] });
  return { kind: "activation", name, dims };
}

/** True where channels first and channels last differ in memory. */
function isSpatial(dims: Dims): boolean {
  return dims.length === 4 && dims[1]! * dims[2]! > 1 && dims[3]! > 1;
}

/** Checks that the batch stays in front, and works out a size given as "what is left". */
function withBatchInFront(tf: TfjsNode, from: Dims, target: Dims): Dims {
  const count = from.slice(1).reduce<number>((product, size) => product * size!, 1);
  const [first, ...rest] = target;
  const open = rest.filter((size) => size === null).length;
  const known = rest.reduce<number>((product, size) => product * (size ?? 1), 1);
  const fits = open === 0 ? known === count : open === 1 && count % known === 0;
  if ((first !== null && first !== undefined) || !fits) {
    throw new RangeError(`${tf.op} "${tf.name}": [${from}] to [${target}] moves the batch`);
  }
  return [null, ...rest.map((size) => size ?? count / known)];
}
