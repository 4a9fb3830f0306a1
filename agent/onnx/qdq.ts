import { floatAttribute, type Graph, type Node, type ValueInfo } from "./graph.ts";
import { describe, indexGraph } from "./query.ts";
import { DataType, elementCount, isFloatType, type Tensor, toFloat32 } from "./tensor.ts";

/** How real numbers become 8-bit ones: real = scale · (q − zeroPoint), q saturating. */
export interface ActivationEncoding {
  readonly type: "uint8" | "int8";
  /** Positive and finite. */
  readonly scale: number;
  /** A whole number that `type` can hold. */
  readonly zeroPoint: number;
}

/** Symmetric 8-bit weights, one scale for each slice along an axis: real = scales[i] · q. */
export interface WeightEncoding {
  /** As the initializer lies, row-major, in [−127, 127]. */
  readonly values: Int8Array;
  readonly scales: Float32Array;
  /** 0 for Conv and Gemm with transB, 1 for MatMul and Gemm without. */
  readonly axis: number;
}

/** What {@link quantizeGraph} makes of a graph. */
export interface QdqPlan {
  /**
   * Nodes that compute on integers, by the name of their first output. Each needs an encoding of
   * everything it reads: weights of Conv, Gemm and MatMul in `weights`, all other values (constants
   * too) in `activations`; biases follow from these. One whose output has no encoding hands out
   * floats.
   */
  readonly nodes: ReadonlySet<string>;
  readonly activations: ReadonlyMap<string, ActivationEncoding>;
  readonly weights: ReadonlyMap<string, WeightEncoding>;
}

/** First version in which (De)QuantizeLinear take one scale a channel. */
export const QDQ_OPSET = 13;

const CONSTANT_MAPS = new Set(["Conv", "Gemm", "MatMul"]);

/**
 * Writes a graph's integers as ONNX states them: QuantizeLinear and DequantizeLinear (QDQ) around
 * every node of the plan, which runtimes fuse into integer kernels.
 *
 * ```
 * x ─ Q ─ DQ ─ Conv ─ Q ─ DQ ─ …      weights int8 ─ DQ (a scale a channel)
 *                                     bias int32 ─ DQ (scale of x · scale of the weights)
 * ```
 * A value that an integer node makes is read by everybody behind its DQ; one that a float node
 * makes is read behind a DQ by integer nodes only. Weights, biases and constants are stored as
 * integers. Float nodes stay as they are.
 *
 * @throws {RangeError} if an encoding is missing, does not fit, or the opset is below 13.
 */
export function quantizeGraph(graph: Graph, plan: QdqPlan): Graph {
  if (graph.opset < QDQ_OPSET) {
    throw new RangeError(`expected opset ${QDQ_OPSET} or later, got ${graph.opset}`);
  }
  const draft = new Draft(graph, plan);
  for (const node of graph.nodes) draft.add(node);
  return draft.finish();
}

/** The graph being written. */
class Draft {
  readonly #graph: Graph;
  readonly #plan: QdqPlan;
  readonly #nodes: Node[] = [];
  readonly #initializers: Map<string, Tensor>;
  readonly #outputs: ReadonlySet<string>;
  /** Name of the dequantized form of a value. */
  readonly #dequantized = new Map<string, string>();
  /** Name of the integers of a value. */
  readonly #quantized = new Map<string, string>();
  /** Values made by integer nodes: the name under which the float node's successor reads them. */
  readonly #made = new Set<string>();
  /** Names of values and of nodes; ONNX Runtime wants both to be unique. */
  readonly #taken: Set<string>;

  constructor(graph: Graph, plan: QdqPlan) {
    this.#graph = graph;
    this.#plan = plan;
    this.#initializers = new Map(graph.initializers);
    this.#outputs = indexGraph(graph).outputs;
    this.#taken = new Set([
      ...graph.initializers.keys(),
      ...graph.inputs.map(({ name }) => name),
      ...graph.nodes.flatMap(({ name, outputs }) => [name, ...outputs]),
    ]);
  }

  add(node: Node): void {
    const integer = this.#plan.nodes.has(node.outputs[0] ?? "");
    if (integer && node.opType === "HardSigmoid") {
      this.#gate(node);
      return;
    }
    const inputs = node.inputs.map((name, place) => {
      if (name === "") return name;
      if (integer) return this.#integerInput(node, name, place);
      return this.#made.has(name) ? this.#dequantized.get(name)! : name;
    });
    const output = node.outputs[0] ?? "";
    if (!integer || !this.#plan.activations.has(output)) {
      this.#nodes.push({ ...node, inputs });
      return;
    }
    const raw = this.#name(`${output}_float`);
    this.#nodes.push({ ...node, inputs, outputs: [raw, ...node.outputs.slice(1)] });
    this.#made.add(output);
    // Whatever read the value reads it dequantized, a graph output under its own name.
    this.#quantizeValue(output, raw, this.#outputs.has(output) ? output : undefined);
  }

  finish(): Graph {
    const used = new Set<string>([...this.#outputs, ...this.#nodes.flatMap((n) => n.inputs)]);
    const made = new Set(this.#nodes.flatMap((n) => n.outputs));
    const infos = [...this.#graph.valueInfos].filter(([name]) => made.has(name));
    return {
      ...this.#graph,
      nodes: this.#nodes,
      initializers: new Map([...this.#initializers].filter(([name]) => used.has(name))),
      valueInfos: new Map<string, ValueInfo>(infos),
    };
  }

  #integerInput(node: Node, name: string, place: number): string {
    const linear = CONSTANT_MAPS.has(node.opType);
    const weight = this.#plan.weights.get(name);
    if (linear && weight && this.#graph.initializers.has(name)) return this.#weight(name, weight);
    if (linear && place === 2) return this.#bias(node, name);
    const known = this.#dequantized.get(name);
    if (known !== undefined) return known;
    const constant = this.#graph.initializers.get(name);
    return constant ? this.#constant(name, constant) : this.#quantizeValue(name, name);
  }

  /**
   * clip(α·x + β, 0, 1) of x = s·(q − z) with s·z = β/α is α·s·clip(q, 0, 1/(α·s)): the integers of
   * x cut above, at another scale and with zero point 0.
   */
  #gate(node: Node): void {
    const [name, output] = [node.inputs[0]!, node.outputs[0]!];
    const { type, scale, zeroPoint } = this.#encoding(name);
    const slope = floatAttribute(node, "alpha", 0.2);
    const offset = floatAttribute(node, "beta", 0.5);
    if (type !== "uint8" || Math.abs((slope * scale * zeroPoint) / offset - 1) > 1e-5) {
      throw new RangeError(
        `${describe(node)}: expected its input as uint8 with scale · zero point = ` +
          `${offset / slope}, got ${type}, ${scale * zeroPoint}`,
      );
    }
    const byte = (base: string, value: number) =>
      this.#constantNamed(base, { dims: [], dataType: DataType.UINT8, data: Uint8Array.of(value) });
    const zero = byte(`${output}_zero_point`, 0);
    const top = byte(`${output}_top`, Math.min(255, Math.round(1 / (slope * scale))));
    const scaleTensor = {
      dims: [],
      dataType: DataType.FLOAT,
      data: Float32Array.of(slope * scale),
    };
    const gateScale = this.#constantNamed(`${output}_scale`, scaleTensor);
    if (!this.#quantized.has(name)) this.#quantizeValue(name, name);
    const clipped = this.#name(`${output}_quantized`);
    this.#push("Clip", [this.#quantized.get(name)!, zero, top], clipped);
    this.#push("DequantizeLinear", [clipped, gateScale, zero], output);
    this.#made.add(output);
    this.#dequantized.set(output, output);
  }

  /** Q and DQ behind the value `from`, which stands for `name`. @returns the DQ's output. */
  #quantizeValue(name: string, from: string, output?: string): string {
    const encoding = this.#encoding(name);
    const [scale, zeroPoint] = this.#encodingConstants(name, encoding);
    const quantized = this.#name(`${name}_quantized`);
    const dequantized = output ?? this.#name(`${name}_dequantized`);
    this.#push("QuantizeLinear", [from, scale, zeroPoint], quantized);
    this.#push("DequantizeLinear", [quantized, scale, zeroPoint], dequantized);
    this.#dequantized.set(name, dequantized);
    this.#quantized.set(name, quantized);
    return dequantized;
  }

  #weight(name: string, { values, scales, axis }: WeightEncoding): string {
    const known = this.#dequantized.get(name);
    if (known !== undefined) return known;
    const { dims } = this.#graph.initializers.get(name)!;
    if (values.length !== elementCount(dims) || scales.length !== dims[axis]) {
      throw new RangeError(
        `weights "${name}" [${dims}]: expected ${elementCount(dims)} values and ${dims[axis]} ` +
          `scales on axis ${axis}, got ${values.length} and ${scales.length}`,
      );
    }
    const stored = this.#constantNamed(`${name}_quantized`, {
      dims,
      dataType: DataType.INT8,
      data: values,
    });
    return this.#dequantizeConstant(name, stored, scales, DataType.INT8, axis);
  }

  /** A bias is int32 at the scale of the products that it is added to. */
  #bias(node: Node, name: string): string {
    const [input, weightName] = node.inputs as readonly [string, string];
    const tensor = this.#graph.initializers.get(name);
    const weight = this.#plan.weights.get(weightName);
    if (!tensor || !weight) {
      throw new RangeError(`${describe(node)}: expected constant weights and bias`);
    }
    const { scale } = this.#encoding(input);
    const scales = weight.scales.map((s) => Math.fround(s * Math.fround(scale)));
    const values = toFloat32(tensor);
    if (values.length !== scales.length) {
      throw new RangeError(
        `${describe(node)}: expected ${scales.length} biases, got ${values.length}`,
      );
    }
    const data = Int32Array.from(values, (value, i) => {
      return Math.max(-(2 ** 31), Math.min(2 ** 31 - 1, Math.round(value / scales[i]!)));
    });
    const stored = this.#constantNamed(`${name}_quantized`, {
      dims: [data.length],
      dataType: DataType.INT32,
      data,
    });
    return this.#dequantizeConstant(null, stored, scales, DataType.INT32, 0);
  }

  /** An elementwise operand that never changes, quantized once. */
  #constant(name: string, tensor: Tensor): string {
    if (!isFloatType(tensor.dataType)) return name;
    const encoding = this.#encoding(name);
    const [scale, zeroPoint] = this.#encodingConstants(name, encoding);
    const values = toFloat32(tensor);
    const quantized =
      encoding.type === "uint8" ? new Uint8Array(values.length) : new Int8Array(values.length);
    const [low, high] = encoding.type === "uint8" ? [0, 255] : [-128, 127];
    values.forEach((value, i) => {
      const q = Math.round(value / encoding.scale) + encoding.zeroPoint;
      quantized[i] = Math.max(low, Math.min(high, q));
    });
    const stored = this.#constantNamed(`${name}_quantized`, {
      dims: tensor.dims,
      dataType: encoding.type === "uint8" ? DataType.UINT8 : DataType.INT8,
      data: quantized,
    });
    const output = this.#name(`${name}_dequantized`);
    this.#push("DequantizeLinear", [stored, scale, zeroPoint], output);
    this.#dequantized.set(name, output);
    return output;
  }

  #dequantizeConstant(
    name: string | null,
    stored: string,
    scales: Float32Array,
    dataType: DataType,
    axis: number,
  ): string {
    const dims = [scales.length];
    const scale = this.#constantNamed(`${stored}_scale`, {
      dims,
      dataType: DataType.FLOAT,
      data: scales,
    });
    const zeros =
      dataType === DataType.INT8 ? new Int8Array(scales.length) : new Int32Array(scales.length);
    const zero = this.#constantNamed(`${stored}_zero_point`, { dims, dataType, data: zeros });
    const output = this.#name(`${stored}_dequantized`);
    this.#push("DequantizeLinear", [stored, scale, zero], output, axis);
    if (name !== null) this.#dequantized.set(name, output);
    return output;
  }

  #encoding(name: string): ActivationEncoding {
    const encoding = this.#plan.activations.get(name);
    if (!encoding) throw new RangeError(`expected an encoding of "${name}", got none`);
    const { type, scale, zeroPoint } = encoding;
    const [low, high] = type === "uint8" ? [0, 255] : [-128, 127];
    if (!(Math.fround(scale) > 0 && Number.isFinite(Math.fround(scale)))) {
      throw new RangeError(`"${name}": expected a positive, finite scale, got ${scale}`);
    }
    if (!(Number.isInteger(zeroPoint) && zeroPoint >= low && zeroPoint <= high)) {
      throw new RangeError(`"${name}": expected a zero point that fits ${type}, got ${zeroPoint}`);
    }
    return encoding;
  }

  #encodingConstants(name: string, { type, scale, zeroPoint }: ActivationEncoding) {
    const zero =
      type === "uint8"
        ? { dataType: DataType.UINT8, data: Uint8Array.of(zeroPoint) }
        : { dataType: DataType.INT8, data: Int8Array.of(zeroPoint) };
    const scaleTensor = { dims: [], dataType: DataType.FLOAT, data: Float32Array.of(scale) };
    return [
      this.#constantNamed(`${name}_scale`, scaleTensor),
      this.#constantNamed(`${name}_zero_point`, { dims: [], ...zero }),
    ] as const;
  }

  #constantNamed(base: string, tensor: Tensor): string {
    const name = this.#name(base);
    this.#initializers.set(name, tensor);
    return name;
  }

  #name(base: string): string {
    let name = base;
    for (let i = 1; this.#taken.has(name); i++) name = `${base}_${i}`;
    this.#taken.add(name);
    return name;
  }

  #push(opType: string, inputs: readonly string[], output: string, axis?: number): void {
    const attributes =
      axis === undefined ? new Map() : new Map([["axis", { type: "int", value: axis } as const]]);
    const name = this.#name(`${inputs[0]}_${opType}`);
    this.#nodes.push({ name, opType, domain: "", inputs, outputs: [output], attributes });
  }
}
