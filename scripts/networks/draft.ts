import { type AttributeValue, buildModel, node } from "../../agent/onnx/builder.ts";
import type { Graph, Node } from "../../agent/onnx/graph.ts";
import { floatTensor, int64Tensor, type Tensor } from "../../agent/onnx/tensor.ts";

/** How a network is written. */
export interface NetworkOptions {
  /** Seed of the random weights; default 1. */
  readonly seed?: number;
  /** Version of the operator set, 11 to 21; default 17. */
  readonly opset?: number;
  readonly classes?: number;
  /** Height and width of the input in pixels; default 224. */
  readonly size?: number;
  /** `free`, the default, is a batch of any size; `one` is written for one picture. */
  readonly batch?: "free" | "one";
}

/** A network while it is put together: the operators of an exporter, with random weights. */
export class Draft {
  readonly opset: number;
  readonly size: number;
  readonly batch: "free" | "one";
  readonly #nodes: Node[] = [];
  readonly #initializers = new Map<string, Tensor>();
  #state: number;

  constructor(options: NetworkOptions) {
    this.opset = options.opset ?? 17;
    this.size = options.size ?? 224;
    this.batch = options.batch ?? "free";
    this.#state = (options.seed ?? 1) >>> 0;
  }

  /** Adds a node; its output bears its name. */
  add(
    opType: string,
    inputs: readonly string[],
    name: string,
    attributes: Readonly<Record<string, AttributeValue>> = {},
  ): string {
    this.#nodes.push(node(opType, inputs, [name], attributes));
    return name;
  }

  addSplit(input: string, name: string, axis: number, sizes: readonly number[]): string[] {
    const outputs = sizes.map((_, i) => `${name}_${i}`);
    const attributes = this.opset < 13 ? { axis, split: sizes } : { axis };
    const inputs = this.opset < 13 ? [input] : [input, this.integers(sizes)];
    this.#nodes.push(node("Split", inputs, outputs, attributes, name));
    return outputs;
  }

  /** Squeeze, Unsqueeze or a reduction: their axes became an input with some opset. */
  addOverAxes(
    opType: string,
    input: string,
    name: string,
    axes: readonly number[],
    attributes: Readonly<Record<string, AttributeValue>> = {},
  ): string {
    const since = opType.startsWith("Reduce") ? 18 : 13;
    if (this.opset < since) return this.add(opType, [input], name, { ...attributes, axes });
    return this.add(opType, [input, this.integers(axes)], name, attributes);
  }

  /** Uniform in [center − spread, center + spread]. */
  uniform(name: string, dims: readonly number[], center: number, spread: number): string {
    const count = dims.reduce((a, b) => a * b, 1);
    const data = new Float32Array(count);
    for (let i = 0; i < count; i++) data[i] = center + spread * this.#next();
    return this.constant(name, floatTensor(dims, data));
  }

  /** Weights whose outputs have `gain²` times the mean square of their inputs. */
  weight(name: string, dims: readonly number[], fanIn: number, gain = 1): string {
    return this.uniform(name, dims, 0, gain * Math.sqrt(3 / fanIn));
  }

  constant(name: string, tensor: Tensor): string {
    this.#initializers.set(name, tensor);
    return name;
  }

  scalar(name: string, value: number): string {
    return this.constant(name, floatTensor([], [value]));
  }

  integers(values: readonly number[]): string {
    return this.constant(`integers_${values.join("_")}`, int64Tensor([values.length], values));
  }

  /** First size of a Reshape target: whatever the batch is. */
  get anyBatch(): number {
    return this.batch === "one" ? 1 : 0;
  }

  /** The network, from `input` to `logits`. */
  finish(name: string, classes: number): Graph {
    const batch = this.batch === "one" ? 1 : "N";
    return buildModel({
      name,
      inputs: [{ name: "input", dataType: 1, dims: [batch, 3, this.size, this.size] }],
      outputs: [{ name: "logits", dataType: 1, dims: [batch, classes] }],
      nodes: this.#nodes,
      initializers: this.#initializers,
      opset: this.opset,
      irVersion: irVersionFor(this.opset),
    });
  }

  /** Uniform in [−1, 1) (mulberry32). */
  #next(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 31 - 1;
  }
}

/** The file format's version of the ONNX release that brought an opset. */
function irVersionFor(opset: number): number {
  if (opset >= 21) return 10;
  if (opset >= 19) return 9;
  if (opset >= 15) return 8;
  return opset >= 12 ? 7 : 6;
}

/** x · W + b over the last axis, as exporters write a linear layer. */
export function linear(
  draft: Draft,
  input: string,
  name: string,
  [inputs, outputs]: readonly [number, number],
  gain = 1,
): string {
  const weight = draft.weight(`${name}.weight`, [inputs, outputs], inputs, gain);
  const bias = draft.uniform(`${name}.bias`, [outputs], 0, 0.02);
  return draft.add("Add", [bias, draft.add("MatMul", [input, weight], `${name}/MatMul`)], name);
}

/** The classifier: `features` × `classes`, stored class by class. */
export function classifier(draft: Draft, input: string, features: number, classes: number): void {
  const weight = draft.weight("head.weight", [classes, features], features);
  const bias = draft.uniform("head.bias", [classes], 0, 0.02);
  draft.add("Gemm", [input, weight, bias], "logits", { transB: 1 });
}

/** Over the last axis; as one operator from opset 17 on, in seven before. */
export function layerNorm(
  draft: Draft,
  input: string,
  name: string,
  features: number,
  epsilon = 1e-6,
): string {
  const weight = draft.uniform(`${name}.weight`, [features], 1, 0.2);
  const bias = draft.uniform(`${name}.bias`, [features], 0, 0.1);
  if (draft.opset >= 17) {
    return draft.add("LayerNormalization", [input, weight, bias], name, { axis: -1, epsilon });
  }
  const two = draft.scalar("two", 2);
  const mean = draft.addOverAxes("ReduceMean", input, `${name}/mean`, [-1]);
  const centered = draft.add("Sub", [input, mean], `${name}/centered`);
  const square = draft.add("Pow", [centered, two], `${name}/square`);
  const variance = draft.addOverAxes("ReduceMean", square, `${name}/variance`, [-1]);
  const safe = draft.add(
    "Add",
    [variance, draft.scalar(`${name}/epsilon`, epsilon)],
    `${name}/safe`,
  );
  const root = draft.add("Sqrt", [safe], `${name}/root`);
  const normal = draft.add("Div", [centered, root], `${name}/normal`);
  return draft.add("Add", [draft.add("Mul", [normal, weight], `${name}/scaled`), bias], name);
}

/** As one operator from opset 20 on, through the error function before. */
export function gelu(draft: Draft, input: string, name: string): string {
  if (draft.opset >= 20) return draft.add("Gelu", [input], name);
  const scaled = draft.add("Div", [input, draft.scalar("sqrt_2", Math.SQRT2)], `${name}/scaled`);
  const erf = draft.add("Erf", [scaled], `${name}/erf`);
  const shifted = draft.add("Add", [erf, draft.scalar("one", 1)], `${name}/shifted`);
  const product = draft.add("Mul", [input, shifted], `${name}/product`);
  return draft.add("Mul", [product, draft.scalar("half", 0.5)], name);
}
