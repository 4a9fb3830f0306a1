import { create } from "@bufbuild/protobuf";
import { OperatorSetIdProtoSchema } from "onnx-buf";
import { type AttributeValue, node } from "./builder.ts";
import { slidingOf } from "./gradient/sliding.ts";
import { type Graph, intAttribute, intsAttribute, type Node, qualifiedName } from "./graph.ts";
import { inferShapes } from "./infer-shapes.ts";
import type { Known } from "./shape-values.ts";
import { floatTensor, int64Tensor, type Tensor } from "./tensor.ts";

/**
 * Operators of ONNX Runtime's CPU provider on its blocked layout, NCHWc: B channels side by side,
 *
 *     [N, C, H, W]  →  [N, C/B, H, W, B], under the shape [N, C, H, W]
 *
 * (onnxruntime/core/mlas, `snchwc.cpp`). ONNX Runtime puts them in where weights are constants; with
 * weights that change, a depthwise convolution in the plain layout takes three to seven times as long.
 */
const DOMAIN = "com.microsoft.nchwc";

/** Convolution of a blocked value with weights as {@link toBlockedLayout} lays them out. */
export const BLOCKED_CONV = `${DOMAIN}.Conv`;
/** GlobalAveragePool of a blocked value. */
export const BLOCKED_MEAN = `${DOMAIN}.GlobalAveragePool`;
/** From the plain layout to the blocked one; channels must be whole blocks. */
export const REORDER_INPUT = `${DOMAIN}.ReorderInput`;
/** From the blocked layout to the plain one; `channels` of them are left. */
export const REORDER_OUTPUT = `${DOMAIN}.ReorderOutput`;

/** A graph that uses the operators of the blocked layout. */
export function importBlockedLayout(graph: Graph): Graph {
  const others = graph.shell.opsetImport.filter(({ domain }) => domain !== DOMAIN);
  const own = create(OperatorSetIdProtoSchema, { domain: DOMAIN, version: 1n });
  return { ...graph, shell: { ...graph.shell, opsetImport: [...others, own] } };
}

/**
 * Puts depthwise and pointwise convolutions, and what lies between them element by element, into
 * ONNX Runtime's blocked layout, with weights that need not be constants: they are laid out anew
 * by standard operators at each run. Channels are filled up to whole blocks; what stands in the
 * channels that were added does not reach any output. Names of outputs and initializers stay; the
 * graph computes the same, up to rounding. A graph without a depthwise convolution is returned as it
 * is: matrix products are as fast in the plain layout.
 *
 * @param inputDims shape of each graph input, which the result is for.
 * @param kept values that are read from outside too, so that they stay in the plain layout.
 * @param blockSize B, a property of the processor: see `findBlockSize` of `runtime`.
 */
export function toBlockedLayout(
  graph: Graph,
  inputDims: ReadonlyMap<string, readonly number[]>,
  kept: readonly string[],
  blockSize: number,
): Graph {
  const known = inferShapes(graph, inputDims);
  const change = new LayoutChange(graph, known, blockSize);
  if (!graph.nodes.some((each) => change.isDepthwise(each))) return graph;
  return change.run(kept);
}

/** A value in the blocked layout. */
interface Blocked {
  /** `[N, channels, H, W]`, whole blocks of channels. */
  readonly name: string;
  readonly dims: readonly [number, number, number, number];
}

/**
 * Operators of one value, element by element, whose further inputs are single numbers. At 0, which
 * stands in the channels that fill blocks up, they and their slopes must be finite: a weight of 0 does
 * not hold back what is not.
 */
const UNARY = new Set(
  "Relu LeakyRelu Elu Sigmoid HardSigmoid HardSwish Tanh Softplus Erf Gelu Clip Neg Abs Exp Identity".split(
    " ",
  ),
);
const BINARY = new Set(["Add", "Sub", "Mul", "Div", "Min", "Max"]);

/** ReorderOutput gives channels in fours only. */
const ALIGNED = 4;

class LayoutChange {
  readonly #graph: Graph;
  readonly #known: ReadonlyMap<string, Known>;
  readonly #blockSize: number;
  readonly #nodes: Node[] = [];
  readonly #initializers: Map<string, Tensor>;
  /** Values that exist in the blocked layout, by their name in the plain one. */
  readonly #blocked = new Map<string, Blocked>();
  /** Values that were computed in the blocked layout and are not yet in the plain one. */
  readonly #absent = new Set<string>();
  readonly #made = new Map<string, string>();
  readonly #taken: Set<string>;

  constructor(graph: Graph, known: ReadonlyMap<string, Known>, blockSize: number) {
    this.#graph = graph;
    this.#known = known;
    this.#blockSize = blockSize;
    this.#initializers = new Map(graph.initializers);
    this.#taken = new Set([
      ...graph.initializers.keys(),
      ...graph.inputs.map(({ name }) => name),
      ...graph.nodes.flatMap(({ outputs }) => outputs),
    ]);
  }

  run(kept: readonly string[]): Graph {
    for (const each of this.#graph.nodes) {
      const done = this.#convolution(each) || this.#elementwise(each) || this.#mean(each);
      if (done) continue;
      for (const name of each.inputs) this.#plain(name);
      this.#nodes.push(each);
    }
    for (const name of [...kept, ...this.#graph.outputs.map((output) => output.name)]) {
      this.#plain(name);
    }
    return importBlockedLayout({
      ...this.#graph,
      nodes: this.#nodes,
      initializers: this.#initializers,
    });
  }

  /** Whether a node is a depthwise convolution of a map, in one output channel each. */
  isDepthwise(each: Node): boolean {
    const { x, w } = this.#convolved(each) ?? {};
    if (!x || !w || intAttribute(each, "group", 1) !== x[1] || w[0] !== x[1]) return false;
    return x[1]! >= this.#blockSize && this.#canBeTurned(each);
  }

  #isPointwise(each: Node): boolean {
    const { x, w } = this.#convolved(each) ?? {};
    if (!x || !w || intAttribute(each, "group", 1) !== 1) return false;
    // Next to a squeezed value, a matrix product of one row, the layout is not worth a change.
    const squeezed = x[2] === 1 && x[3] === 1;
    const whole = [2, 3].every((axis) => this.#dims(each.outputs[0]!)?.[axis] === x[axis]);
    const fits = w[2] === 1 && w[3] === 1 && whole && !squeezed;
    return fits && Math.min(x[1]!, w[0]!) >= this.#blockSize;
  }

  #convolved(each: Node): { x: readonly number[]; w: readonly number[] } | undefined {
    if (qualifiedName(each) !== "Conv") return undefined;
    const [x, w] = [this.#dims(each.inputs[0]!), this.#dims(each.inputs[1]!)];
    return x?.length === 4 && w ? { x, w } : undefined;
  }

  /** Whether the gradient of a depthwise convolution can take the form it has in this layout. */
  #canBeTurned(each: Node): boolean {
    const sizesOf = (name: string): readonly number[] => this.#dims(name)!.slice(2);
    const [x, w] = [sizesOf(each.inputs[0]!), sizesOf(each.inputs[1]!)];
    const y = sizesOf(each.outputs[0]!);
    const { kernel, strides, dilations, before } = slidingOf(each, x, w);
    return x.every((size, i) => {
      const rest = size - y[i]! * strides[i]! + before[i]!;
      return dilations[i] === 1 && before[i]! < kernel[i]! && rest >= 0;
    });
  }

  #convolution(each: Node): boolean {
    const depthwise = this.isDepthwise(each);
    if (!depthwise && !this.#isPointwise(each)) return false;
    const [x, w, b] = each.inputs as [string, string, string?];
    const input = this.#inBlocks(x);
    const outputs = this.#rounded(this.#dims(w)![0]!);
    const weights = depthwise ? this.#depthwiseWeights(w) : this.#pointwiseWeights(w);
    const bias = b ? [this.#filled(this.#plain(b), 0, outputs)] : [];
    const attributes = Object.fromEntries(each.attributes);
    if (depthwise) attributes["group"] = { type: "int", value: outputs };
    const name = this.#add(BLOCKED_CONV, [input.name, weights, ...bias], attributes, each.name);
    const [pictures, , height, width] = this.#dims(each.outputs[0]!)!;
    this.#computed(each.outputs[0]!, { name, dims: [pictures!, outputs, height!, width!] });
    return true;
  }

  /** [C, 1, kh, kw] → [C/B, kh, kw, B]. */
  #depthwiseWeights(w: string): string {
    return this.#once(`depthwise ${w}`, () => {
      const [channels, , ...kernel] = this.#dims(w)! as [number, number, number, number];
      const whole = this.#rounded(channels);
      const filled = this.#filled(this.#plain(w), 0, whole);
      const apart = [whole / this.#blockSize, this.#blockSize, ...kernel];
      const turned = this.#add("Transpose", [this.#reshaped(filled, apart)], {
        perm: [0, 2, 3, 1],
      });
      return this.#reshaped(turned, [whole, 1, ...kernel]);
    });
  }

  /** [O, C, 1, 1] → [O/B, C/B, B of C, B of O]. */
  #pointwiseWeights(w: string): string {
    return this.#once(`pointwise ${w}`, () => {
      const [outputs, channels] = this.#dims(w)!.map((size) => this.#rounded(size));
      const block = this.#blockSize;
      const tall = this.#filled(this.#plain(w), 0, outputs!);
      const filled = this.#filled(tall, 1, channels!, this.#dims(w)![1]!);
      const apart = [outputs! / block, block, channels! / block, block];
      const turned = this.#add("Transpose", [this.#reshaped(filled, apart)], {
        perm: [0, 2, 3, 1],
      });
      return this.#reshaped(turned, [outputs!, channels!, 1, 1]);
    });
  }

  /** Element by element, where one of the values is in the blocked layout. */
  #elementwise(each: Node): boolean {
    const name = qualifiedName(each);
    const [first, ...others] = each.inputs as [string, ...string[]];
    if (UNARY.has(name) && this.#blocked.has(first)) {
      if (others.some((other) => other !== "" && !this.#isNumber(other))) return false;
      const x = this.#blocked.get(first)!;
      const inputs = [x.name, ...others.map((other) => this.#plain(other))];
      this.#computed(each.outputs[0]!, { ...x, name: this.#like(each, inputs) });
      return true;
    }
    if (!BINARY.has(name) || each.inputs.length !== 2) return false;
    const leader = each.inputs.find((input) => this.#blocked.has(input));
    const dims = this.#dims(each.outputs[0]!);
    if (leader === undefined || dims?.join() !== this.#dims(leader)?.join()) return false;
    return this.#pair(each, this.#blocked.get(leader)!, dims!);
  }

  /** Two values of which one at least is blocked, the other as large, one a channel, or a number. */
  #pair(each: Node, { dims }: Blocked, plainDims: readonly number[]): boolean {
    const [pictures, channels] = plainDims as [number, number];
    const kinds = each.inputs.map((input) => {
      if (this.#isNumber(input)) return "number";
      const own = this.#dims(input)!;
      if (own.join() === plainDims.join()) return "map";
      const spread = [...Array.from({ length: 4 - own.length }, () => 1), ...own];
      const channelwise = spread[1] === channels && spread[2] === 1 && spread[3] === 1;
      return channelwise && (spread[0] === 1 || spread[0] === pictures) ? "channels" : "other";
    });
    if (kinds.includes("other")) return false;
    if (qualifiedName(each) === "Div" && kinds[1] !== "number") return false;
    if (qualifiedName(each) === "Mul" && kinds.includes("map") && kinds.includes("channels")) {
      const [map, factors] = kinds[0] === "map" ? each.inputs : [...each.inputs].reverse();
      const name = this.#scaled(this.#inBlocks(map!), this.#perChannel(factors!), factors!);
      this.#computed(each.outputs[0]!, { name, dims });
      return true;
    }
    const rows = kinds.includes("channels");
    const inputs = each.inputs.map((input, i) => {
      if (kinds[i] === "number") return this.#plain(input);
      if (kinds[i] === "channels") return this.#perChannel(input);
      const map = this.#inBlocks(input);
      return rows ? this.#rows(map) : map.name;
    });
    const result = this.#like(each, inputs);
    const name = rows ? this.#reshaped(result, dims) : result;
    this.#computed(each.outputs[0]!, { name, dims });
    return true;
  }

  /**
   * A factor a channel, as squeeze-excite and layer scale have it, as a depthwise convolution of one
   * tap. Where each picture has its own, all their channels are those of one picture. It takes fewer
   * passes than a product that broadcasts, most of all backward.
   */
  #scaled({ name, dims }: Blocked, factors: string, plainFactors: string): string {
    const [pictures, channels, height, width] = dims;
    const own = this.#dims(plainFactors)!;
    const each = own.length === 4 && own[0] === pictures ? pictures : 1;
    const group = each * channels;
    const weights = this.#reshaped(factors, [group, 1, 1, 1]);
    const map = this.#reshaped(name, [pictures / each, group, height, width]);
    const product = this.#add(BLOCKED_CONV, [map, weights], { group, kernel_shape: [1, 1] });
    return this.#reshaped(product, dims);
  }

  /** One number a channel as `[N or 1, C/B, 1, B]`. */
  #perChannel(name: string): string {
    return this.#once(`channels ${name}`, () => {
      const dims = this.#dims(name)!;
      const axis = dims.length - 3;
      const channels = dims[axis]!;
      const whole = this.#rounded(channels);
      const filled = this.#filled(this.#plain(name), axis, whole, channels);
      const pictures = axis > 0 ? dims[0]! : 1;
      return this.#reshaped(filled, [pictures, whole / this.#blockSize, 1, this.#blockSize]);
    });
  }

  /** GlobalAveragePool, and ReduceMean over height and width. */
  #mean(each: Node): boolean {
    const x = this.#blocked.get(each.inputs[0] ?? "");
    if (x === undefined || !this.#isMeanOfMap(each)) return false;
    const [pictures, whole, height, width] = x.dims;
    const [, channels] = this.#dims(each.inputs[0]!)!;
    const sums = this.#add("ReduceSum", [this.#rows(x), this.#integers([2])], { keepdims: 1 });
    const means = this.#add("Mul", [sums, this.#number(1 / (height * width))]);
    const column = this.#reshaped(means, [pictures, whole, 1, 1]);
    const kept = whole === channels ? column : this.#first(column, channels!);
    const dims = this.#integers(this.#dims(each.outputs[0]!)!);
    this.#nodes.push(node("Reshape", [kept, dims], each.outputs));
    return true;
  }

  #isMeanOfMap(each: Node): boolean {
    if (qualifiedName(each) === "GlobalAveragePool") return true;
    if (qualifiedName(each) !== "ReduceMean") return false;
    const axes = each.inputs[1]
      ? this.#known.get(each.inputs[1])?.values
      : intsAttribute(each, "axes", []);
    const sorted = axes?.map((axis) => (axis < 0 ? axis + 4 : axis)).sort();
    return sorted?.join() === "2,3";
  }

  #dims(name: string): readonly number[] | undefined {
    return this.#known.get(name)?.dims;
  }

  #isNumber(name: string): boolean {
    const dims = this.#dims(name);
    return dims !== undefined && dims.length <= 4 && dims.every((size) => size === 1);
  }

  #rounded(channels: number): number {
    return Math.ceil(channels / this.#blockSize) * this.#blockSize;
  }

  #computed(plain: string, value: Blocked): void {
    this.#blocked.set(plain, value);
    this.#absent.add(plain);
  }

  /** A value in the blocked layout, brought there if need be. */
  #inBlocks(plain: string): Blocked {
    const before = this.#blocked.get(plain);
    if (before) return before;
    const [pictures, channels, height, width] = this.#dims(plain)! as [
      number,
      number,
      number,
      number,
    ];
    const whole = this.#rounded(channels);
    const name = this.#add(REORDER_INPUT, [this.#filled(plain, 1, whole, channels)]);
    const blocked = { name, dims: [pictures, whole, height, width] } as const;
    this.#blocked.set(plain, blocked);
    return blocked;
  }

  /** A value in the plain layout, brought there if need be. */
  #plain(name: string): string {
    if (!this.#absent.delete(name)) return name;
    const channels = this.#dims(name)![1]!;
    const { name: blocked, dims } = this.#blocked.get(name)!;
    if (channels % ALIGNED === 0) {
      this.#nodes.push(node(REORDER_OUTPUT, [blocked], [name], { channels }));
      return name;
    }
    const whole = this.#add(REORDER_OUTPUT, [blocked], { channels: dims[1] });
    const kept = this.#first(whole, channels);
    this.#nodes.push(node("Identity", [kept], [name]));
    return name;
  }

  /** `[N, C/B, H·W, B]`, in which what is one a channel broadcasts. */
  #rows({ name, dims }: Blocked): string {
    const [pictures, channels, height, width] = dims;
    return this.#once(`rows ${name}`, () => {
      const blocks = channels / this.#blockSize;
      return this.#reshaped(name, [pictures, blocks, height * width, this.#blockSize]);
    });
  }

  /** Zeros behind the values of an axis. */
  #filled(name: string, axis: number, whole: number, size = this.#dims(name)![axis]!): string {
    if (whole === size) return name;
    const rank = this.#dims(name)?.length ?? 4;
    const pads = new Array<number>(2 * rank).fill(0);
    pads[rank + axis] = whole - size;
    return this.#add("Pad", [name, this.#integers(pads)]);
  }

  /** The first channels of a value. */
  #first(name: string, channels: number): string {
    const cut = [[0], [channels], [1]].map((values) => this.#integers(values));
    return this.#add("Slice", [name, ...cut]);
  }

  #reshaped(name: string, dims: readonly number[]): string {
    return this.#add("Reshape", [name, this.#integers(dims)]);
  }

  #integers(values: readonly number[]): string {
    return this.#constant(`integers ${values}`, int64Tensor([values.length], values));
  }

  #number(value: number): string {
    return this.#constant(`number ${value}`, floatTensor([], [value]));
  }

  #constant(key: string, tensor: Tensor): string {
    return this.#once(key, () => {
      const name = this.#fresh("blocked/constant");
      this.#initializers.set(name, tensor);
      return name;
    });
  }

  #once(key: string, make: () => string): string {
    const before = this.#made.get(key);
    if (before !== undefined) return before;
    const name = make();
    this.#made.set(key, name);
    return name;
  }

  /** The same operator on other inputs. */
  #like(each: Node, inputs: readonly string[]): string {
    const name = this.#fresh(`${each.outputs[0]}/blocked`);
    this.#nodes.push({ ...each, name, inputs, outputs: [name] });
    return name;
  }

  #add(
    opType: string,
    inputs: readonly string[],
    attributes: Readonly<Record<string, AttributeValue>> = {},
    base = opType,
  ): string {
    const name = this.#fresh(`blocked/${base}`);
    this.#nodes.push(node(opType, inputs, [name], attributes));
    return name;
  }

  #fresh(base: string): string {
    let name = base;
    for (let i = 1; this.#taken.has(name); i++) name = `${base}_${this.#taken.size + i}`;
    this.#taken.add(name);
    return name;
  }
}
