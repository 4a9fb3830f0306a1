import { node } from "./builder.ts";
import type { Graph, Node } from "./graph.ts";
import { DataType, floatToHalf, halfToFloat, int64Tensor, type Tensor } from "./tensor.ts";

/** A weight matrix as codes of few bits: real = scale · (code − zero), a scale for each block. */
export interface PackedWeight {
  /** 2 to 8. */
  readonly bits: number;
  /** `rows × cols`, row-major, in [0, 2^bits). */
  readonly codes: Uint8Array;
  readonly rows: number;
  readonly cols: number;
  /** Neighbors in a row that share a scale; divides `cols`. */
  readonly blockSize: number;
  /** `rows × cols/blockSize`, row-major. */
  readonly scale: Float32Array;
  /** Code of exactly 0, as many as scales. */
  readonly zero: Uint8Array;
  /** How the initializer lies: as the matrix, or transposed. */
  readonly order: "rows" | "cols";
}

/** BitShift and CumSum, which the weights are decoded by, came with it. */
const PACKED_OPSET = 11;

/**
 * Stores weights as codes of `bits` bits and lets the graph decode them, in front of everything
 * else, by operators that every ONNX Runtime has:
 *
 * ```
 * words uint8|uint64 [n,1] ─ BitShift left by 0, bits, … ─ BitShift right ─ codes [n, codes a word]
 * codes ─ Reshape ─ Slice ─ Reshape ─ Cast ─ Sub zero ─ Mul scale ─ Reshape, Transpose ─ the weight
 * ```
 * A matrix with many zeros is stored as one bit a weight and the codes of the others:
 *
 * ```
 * bits ─ Cast ─ CumSum ─ Mul bits ─ Gather from [zero, codes of what is not zero] ─ codes
 * ```
 * Nothing here depends on the picture, so ONNX Runtime computes it once, when it loads the model,
 * and then runs the very network that has float weights: the file is small, the speed and the
 * memory are those of floats. DequantizeLinear of INT4 would be shorter and needs opset 21, but
 * ONNX Runtime (1.30, CPU) leaves it in the graph: every run decodes all weights again, and
 * convolutions lose their blocked layout. INT4 also has no three bits and no way to leave zeros out.
 *
 * @param weights by initializer. Their scales are rounded to float16 where it has their range.
 * @throws {RangeError} if a size does not fit, an initializer is missing or the opset is below 11.
 */
export function packWeights(graph: Graph, weights: ReadonlyMap<string, PackedWeight>): Graph {
  if (graph.opset < PACKED_OPSET) {
    throw new RangeError(`expected opset ${PACKED_OPSET} or later, got ${graph.opset}`);
  }
  const draft = new Draft(graph);
  for (const [name, weight] of weights) draft.add(name, weight);
  return draft.finish();
}

/** A scale as {@link packWeights} stores it. */
export function storedScales(scale: Float32Array): Float32Array {
  return fitsHalf(scale) ? scale.map((s) => halfToFloat(floatToHalf(s))) : scale;
}

/** float16 keeps its 11 bits of precision from 2⁻¹⁴ on. */
function fitsHalf(scale: Float32Array): boolean {
  return scale.every((s) => s >= 2 ** -14 && s < 65_000);
}

/** The graph being written. Names are short, as there are ten nodes a layer. */
class Draft {
  readonly #graph: Graph;
  readonly #nodes: Node[] = [];
  readonly #initializers: Map<string, Tensor>;
  readonly #prefix: string;
  #count = 0;

  constructor(graph: Graph) {
    this.#graph = graph;
    this.#initializers = new Map(graph.initializers);
    let prefix = "_w";
    const names = [...graph.initializers.keys(), ...graph.nodes.flatMap((n) => n.outputs)];
    while (names.some((name) => name.startsWith(prefix))) prefix += "_";
    this.#prefix = prefix;
  }

  add(name: string, weight: PackedWeight): void {
    const tensor = this.#initializers.get(name);
    const { rows, cols, blockSize, scale, zero, order, codes } = weight;
    const blocks = cols / blockSize;
    if (tensor?.data.length !== rows * cols || codes.length !== rows * cols) {
      throw new RangeError(
        `weights "${name}": expected ${rows} × ${cols} values and codes, ` +
          `got ${tensor?.data.length ?? "none"} and ${codes.length}`,
      );
    }
    if (scale.length !== rows * blocks || zero.length !== scale.length) {
      throw new RangeError(
        `weights "${name}": expected ${rows} × ${blocks} scales and zeros, ` +
          `got ${scale.length} and ${zero.length}`,
      );
    }
    this.#initializers.delete(name);
    // Each value on the way stays in memory until all are decoded: no step more than is needed.
    const whole = order === "rows" ? tensor.dims : [rows, cols];
    const shape = blocks === 1 ? whole : [rows, blocks, blockSize];
    const grid = shape.map((_, axis) => (axis === 0 ? rows : axis === 1 ? blocks : 1));
    const integers = this.#reshape(this.#codes(weight), shape);
    const floats = this.#node("Cast", [integers], { to: DataType.FLOAT });
    const shifted = this.#node("Sub", [floats, this.#zeros(zero, grid)]);
    const last = blocks === 1 && order === "rows" ? name : undefined;
    const values = this.#node("Mul", [shifted, this.#scales(scale, grid)], {}, last);
    if (last !== undefined) return;
    const matrix =
      blocks === 1 ? values : this.#reshape(values, whole, order === "rows" ? name : undefined);
    if (order === "cols") this.#node("Transpose", [matrix], { perm: [1, 0] }, name);
  }

  finish(): Graph {
    const nodes = [...this.#nodes, ...this.#graph.nodes];
    return { ...this.#graph, nodes, initializers: this.#initializers };
  }

  /** Codes as a flat value of some integer type. */
  #codes(weight: PackedWeight): string {
    const { codes, bits, zero } = weight;
    const only = zero.every((code) => code === zero[0]) ? zero[0]! : null;
    const kept = only === null ? null : codes.filter((code) => code !== only);
    const dense = Math.ceil((codes.length * bits) / 8);
    if (kept === null || (codes.length + kept.length * bits) / 8 + MASK_BYTES > dense) {
      return this.#unpacked(codes, bits);
    }
    const mask = this.#unpacked(
      codes.map((code) => (code === only ? 0 : 1)),
      1,
    );
    const ones = this.#node("Cast", [mask], { to: DataType.INT32 });
    const counted = this.#node("CumSum", [ones, this.#integers([], [0])]);
    const places = this.#node("Mul", [counted, ones]);
    const values = new Uint8Array(1 + kept.length);
    values[0] = only!;
    values.set(kept, 1);
    return this.#node("Gather", [this.#unpacked(values, bits), places]);
  }

  #unpacked(codes: Uint8Array, bits: number): string {
    if (bits === 8)
      return this.#constant({ dims: [codes.length], dataType: DataType.UINT8, data: codes });
    const { words, perWord } = pack(codes, bits);
    const width = words.data.BYTES_PER_ELEMENT * 8;
    const left = Array.from({ length: perWord }, (_, i) => width - bits * (i + 1));
    const same = { dataType: words.dataType };
    const up = this.#node(
      "BitShift",
      [this.#constant(words), this.#shifts([perWord], left, same)],
      {
        direction: "LEFT",
      },
    );
    const down = this.#node("BitShift", [up, this.#shifts([], [width - bits], same)], {
      direction: "RIGHT",
    });
    const small =
      words.dataType === DataType.UINT8 ? down : this.#node("Cast", [down], { to: DataType.UINT8 });
    const flat = this.#reshape(small, [-1]);
    if (words.dims[0]! * perWord === codes.length) return flat;
    return this.#node("Slice", [
      flat,
      this.#integers([1], [0]),
      this.#integers([1], [codes.length]),
    ]);
  }

  #zeros(zero: Uint8Array, dims: readonly number[]): string {
    if (zero.every((code) => code === zero[0])) {
      const data = Float32Array.of(zero[0]!);
      return this.#shared({ dims: [], dataType: DataType.FLOAT, data }, `z${zero[0]}`);
    }
    const stored = this.#constant({ dims, dataType: DataType.UINT8, data: zero });
    return this.#node("Cast", [stored], { to: DataType.FLOAT });
  }

  #scales(scale: Float32Array, dims: readonly number[]): string {
    if (!fitsHalf(scale)) return this.#constant({ dims, dataType: DataType.FLOAT, data: scale });
    const data = Uint16Array.from(scale, floatToHalf);
    const stored = this.#constant({ dims, dataType: DataType.FLOAT16, data });
    return this.#node("Cast", [stored], { to: DataType.FLOAT });
  }

  #reshape(value: string, dims: readonly number[], output?: string): string {
    return this.#node("Reshape", [value, this.#integers([dims.length], dims)], {}, output);
  }

  #shifts(
    dims: readonly number[],
    values: readonly number[],
    { dataType }: Pick<Tensor, "dataType">,
  ) {
    const data =
      dataType === DataType.UINT8 ? Uint8Array.from(values) : BigUint64Array.from(values, BigInt);
    return this.#shared({ dims, dataType, data }, `s${dataType}_${values.join("_")}`);
  }

  #integers(dims: readonly number[], values: readonly number[]): string {
    return this.#shared(int64Tensor(dims, values), `i${dims.length}_${values.join("_")}`);
  }

  /** A constant that many layers read. */
  #shared(tensor: Tensor, key: string): string {
    const name = `${this.#prefix}${key}`;
    if (!this.#initializers.has(name)) this.#initializers.set(name, tensor);
    return name;
  }

  #constant(tensor: Tensor): string {
    const name = this.#next();
    this.#initializers.set(name, tensor);
    return name;
  }

  #node(
    opType: string,
    inputs: readonly string[],
    attributes: Parameters<typeof node>[3] = {},
    output = this.#next(),
  ): string {
    this.#nodes.push(node(opType, inputs, [output], attributes, ""));
    return output;
  }

  #next(): string {
    return `${this.#prefix}${this.#count++}`;
  }
}

/** Bytes that the nodes for a mask take in the file, about. */
const MASK_BYTES = 400;

/**
 * Codes side by side in words, the first in the lowest bits: bytes where they fit evenly, else 64
 * bits, of which three-bit codes leave one unused.
 */
function pack(codes: Uint8Array, bits: number) {
  if (8 % bits === 0) {
    const perWord = 8 / bits;
    const data = new Uint8Array(Math.ceil(codes.length / perWord));
    codes.forEach((code, i) => {
      data[Math.floor(i / perWord)]! |= code << (bits * (i % perWord));
    });
    return { words: { dims: [data.length, 1], dataType: DataType.UINT8, data }, perWord };
  }
  const perWord = Math.floor(64 / bits);
  const data = new BigUint64Array(Math.ceil(codes.length / perWord));
  const halves = new Uint32Array(data.buffer);
  codes.forEach((code, i) => {
    const at = 2 * Math.floor(i / perWord);
    const shift = bits * (i % perWord);
    if (shift < 32) halves[at]! |= code << shift;
    if (shift + bits > 32)
      halves[at + 1]! |= shift < 32 ? code >>> (32 - shift) : code << (shift - 32);
  });
  return { words: { dims: [data.length, 1], dataType: DataType.UINT64, data }, perWord };
}

/** What {@link pack} put into words, and the zeros behind it. */
function unpack(words: Tensor["data"], bits: number): Uint8Array {
  const perWord = Math.floor((8 * words.BYTES_PER_ELEMENT) / bits);
  const mask = 2 ** bits - 1;
  const codes = new Uint8Array(words.length * perWord);
  if (words instanceof Uint8Array) {
    for (let i = 0; i < codes.length; i++) {
      codes[i] = (words[Math.floor(i / perWord)]! >>> (bits * (i % perWord))) & mask;
    }
    return codes;
  }
  const halves = new Uint32Array(words.buffer, words.byteOffset, 2 * words.length);
  for (let i = 0; i < codes.length; i++) {
    const at = 2 * Math.floor(i / perWord);
    const shift = bits * (i % perWord);
    const low = shift < 32 ? halves[at]! >>> shift : halves[at + 1]! >>> (shift - 32);
    const high = shift < 32 && shift + bits > 32 ? halves[at + 1]! << (32 - shift) : 0;
    codes[i] = (low | high) & mask;
  }
  return codes;
}

/** A packed weight of a graph, as far as its count needs it. */
interface StoredCodes {
  /** Initializers that are no weights: codes, masks, scales, zeros. */
  readonly names: readonly string[];
  readonly parameters: number;
  readonly nonzero: number;
}

/** The weights of a graph that {@link packWeights} wrote. */
export function packedWeightsOf(graph: Graph): StoredCodes[] {
  const makers = new Map(graph.nodes.flatMap((n) => n.outputs.map((name) => [name, n] as const)));
  const found: StoredCodes[] = [];
  for (const { opType, inputs } of graph.nodes) {
    const shift = opType === "Mul" ? makers.get(inputs[0]!) : undefined;
    const cast = shift?.opType === "Sub" ? makers.get(shift.inputs[0]!) : undefined;
    if (!(shift && cast?.opType === "Cast")) continue;
    const reader = new Reader(graph, makers);
    const codes = reader.integers(cast.inputs[0]!);
    const zeros = reader.integers(shift.inputs[1]!);
    if (codes === null || zeros === null) continue;
    reader.integers(inputs[1]!);
    const size = codes.length / zeros.length;
    let nonzero = 0;
    for (let i = 0; i < codes.length; i++) {
      if (codes[i] !== zeros[Math.floor(i / size)]) nonzero++;
    }
    found.push({ names: reader.names, parameters: codes.length, nonzero });
  }
  return found;
}

/** Computes what the nodes of {@link packWeights} compute, flat and on integers. */
class Reader {
  readonly #graph: Graph;
  readonly #makers: ReadonlyMap<string, Node>;
  /** Initializers that were read. */
  readonly names: string[] = [];

  constructor(graph: Graph, makers: ReadonlyMap<string, Node>) {
    this.#graph = graph;
    this.#makers = makers;
  }

  /** null where something else than constants or those nodes stands behind the value. */
  integers(name: string): ArrayLike<number> | null {
    const constant = this.#graph.initializers.get(name);
    if (constant) {
      this.names.push(name);
      return constant.data instanceof BigInt64Array || constant.data instanceof BigUint64Array
        ? Array.from(constant.data, Number)
        : constant.data;
    }
    const { opType, inputs } = this.#makers.get(name) ?? { opType: "", inputs: [] };
    const [first = "", second = ""] = inputs;
    switch (opType) {
      case "Cast":
      case "Reshape":
        return this.integers(first);
      case "Slice": {
        const values = this.integers(first);
        const end = this.integers(inputs[2]!)?.[0];
        return values === null || end === undefined
          ? null
          : Array.prototype.slice.call(values, 0, end);
      }
      case "BitShift":
        return this.#unpacked(first, second);
      case "Gather": {
        const [values, places] = [this.integers(first), this.#places(second)];
        return values && places ? Uint8Array.from(places, (place) => values[place]!) : null;
      }
      default:
        return null;
    }
  }

  /** The codes behind two shifts, of which the second is by all bits but those of a code. */
  #unpacked(shifted: string, by: string): Uint8Array | null {
    const first = this.#makers.get(shifted);
    const words = this.#graph.initializers.get(first?.inputs[0] ?? "");
    const kept = this.integers(by)?.[0];
    if (!(first?.opType === "BitShift" && words) || kept === undefined) return null;
    this.names.push(first.inputs[0]!);
    return unpack(words.data, 8 * words.data.BYTES_PER_ELEMENT - kept);
  }

  /** Where each code lies among the kept ones: the running count of the mask, 0 where it is 0. */
  #places(name: string): Uint32Array | null {
    const product = this.#makers.get(name);
    if (product?.opType !== "Mul") return null;
    const mask = this.integers(product.inputs[1]!);
    if (mask === null) return null;
    let count = 0;
    return Uint32Array.from(mask, (bit) => (bit === 0 ? 0 : ++count));
  }
}
