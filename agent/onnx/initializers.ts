import type { Graph } from "./graph.ts";
import { packedWeightsOf } from "./packed-weights.ts";
import { integersOf, isFloatType, type Tensor, toFloat32 } from "./tensor.ts";

/**
 * The graph with another constant under an existing name.
 *
 * @throws {RangeError} if the graph has no initializer of that name.
 */
export function replaceInitializer(graph: Graph, name: string, tensor: Tensor): Graph {
  if (!graph.initializers.has(name)) throw new RangeError(`the graph has no initializer "${name}"`);
  return { ...graph, initializers: new Map(graph.initializers).set(name, tensor) };
}

/** How many weights a graph has; see {@link countParameters}. */
export interface ParameterCount {
  readonly parameters: number;
  /** Those that are not zero. */
  readonly nonzero: number;
}

/**
 * Counts the weights of a graph: floating-point values of initializers and `Constant` nodes, and
 * integers that a DequantizeLinear or `packWeights` turns into weights, each tensor once however
 * many nodes read it. Scales and zero points of quantization are none; nor are scalars of rank 0, since exporters
 * write every √2 and ε so.
 */
export function countParameters(graph: Graph): ParameterCount {
  let parameters = 0;
  let nonzero = 0;
  const packed = packedWeightsOf(graph);
  for (const own of packed) {
    parameters += own.parameters;
    nonzero += own.nonzero;
  }
  const counted = new Set(packed.flatMap(({ names }) => names));
  for (const { tensor, zero } of weightsOf(graph, counted)) {
    if (tensor.dims.length === 0) continue;
    parameters += tensor.data.length;
    for (const value of numbersOf(tensor)) {
      if (value !== zero) nonzero++;
    }
  }
  return { parameters, nonzero };
}

/** Every weight tensor but the counted ones, with the stored value that stands for zero. */
function* weightsOf(
  graph: Graph,
  counted: ReadonlySet<string>,
): Generator<{ tensor: Tensor; zero: number }> {
  const quantized = new Set<string>();
  const settings = new Set<string>(counted);
  for (const { opType, inputs } of graph.nodes) {
    if (opType !== "DequantizeLinear" && opType !== "QuantizeLinear") continue;
    const [value = "", ...others] = inputs;
    for (const name of others) settings.add(name);
    const tensor = graph.initializers.get(value);
    if (!tensor || quantized.has(value)) continue;
    quantized.add(value);
    const points = graph.initializers.get(others[1] ?? "");
    // Weights are symmetric here, and everywhere that integers multiply fast: one point for all.
    yield { tensor, zero: points ? (numbersOf(points)[0] ?? 0) : 0 };
  }
  for (const [name, tensor] of graph.initializers) {
    if (quantized.has(name) || settings.has(name) || !isFloatType(tensor.dataType)) continue;
    yield { tensor, zero: 0 };
  }
  for (const node of graph.nodes) {
    if (node.opType !== "Constant") continue;
    const value = node.attributes.get("value");
    if (value?.type === "tensor" && isFloatType(value.value.dataType)) {
      yield { tensor: value.value, zero: 0 };
    }
  }
}

/** @throws {TypeError} for a tensor of anything but numbers. */
function numbersOf(tensor: Tensor): ArrayLike<number> & Iterable<number> {
  const { data } = tensor;
  // The common type of quantized weights needs no copy.
  if (data instanceof Int8Array) return data;
  return integersOf(tensor) ?? toFloat32(tensor);
}
