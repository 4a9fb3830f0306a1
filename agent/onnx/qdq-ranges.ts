import { node } from "./builder.ts";
import type { Graph, Node } from "./graph.ts";
import type { ActivationEncoding } from "./qdq.ts";
import { withOnlyOutputs } from "./subgraph.ts";
import { DataType, floatTensor, int64Tensor, type Tensor } from "./tensor.ts";

/** Where what is known of a value comes out of a graph. */
export interface RangeOutputs {
  /** float32 scalars: the smallest and the largest element. */
  readonly minName: string;
  readonly maxName: string;
  /** float32 `[elements / step]`: every step-th element in the order of memory. */
  readonly samplesName: string;
}

/** Stands before everything that is added here. */
const PREFIX = "taco_range/";

/**
 * The graph that hands out the extremes and samples of values and nothing else, so that what
 * leaves the runtime stays small.
 *
 * @param steps one a name: every step-th element is handed out.
 */
export function withRanges(
  graph: Graph,
  names: readonly string[],
  steps: readonly number[],
): { readonly graph: Graph; readonly outputs: readonly RangeOutputs[] } {
  const nodes: Node[] = [];
  const constants = new Map<string, Tensor>([
    [`${PREFIX}flat`, int64Tensor([1], [-1])],
    [`${PREFIX}first`, int64Tensor([1], [0])],
    [`${PREFIX}last`, int64Tensor([1], [2 ** 40])],
  ]);
  const outputs = names.map((name, i): RangeOutputs => {
    const [minName, maxName] = [`${PREFIX}${i}_min`, `${PREFIX}${i}_max`];
    const [row, samplesName] = [`${PREFIX}${i}_row`, `${PREFIX}${i}_samples`];
    const step = `${PREFIX}step_${steps[i]}`;
    constants.set(step, int64Tensor([1], [steps[i]!]));
    nodes.push(node("ReduceMin", [name], [minName], { keepdims: 0 }));
    nodes.push(node("ReduceMax", [name], [maxName], { keepdims: 0 }));
    nodes.push(node("Reshape", [name, `${PREFIX}flat`], [row]));
    const [first, last] = [`${PREFIX}first`, `${PREFIX}last`];
    nodes.push(node("Slice", [row, first, last, first, step], [samplesName]));
    return { minName, maxName, samplesName };
  });
  const all = outputs.flatMap((o) => [o.minName, o.maxName, o.samplesName]);
  return { graph: handingOut(graph, nodes, constants, all), outputs };
}

/**
 * The graph that hands out the largest size of each channel of `[N, C, h, w]` values, `[C]` each.
 *
 * @returns names of the outputs, by value.
 */
export function withChannelRanges(
  graph: Graph,
  names: readonly string[],
): { readonly graph: Graph; readonly outputs: readonly string[] } {
  const nodes: Node[] = [];
  const constants = new Map<string, Tensor>([[`${PREFIX}axes`, int64Tensor([3], [0, 2, 3])]]);
  const outputs = names.map((name, i): string => {
    const at = `${PREFIX}${i}`;
    nodes.push(node("Abs", [name], [`${at}_size`]));
    const how = graph.opset < 18 ? { axes: [0, 2, 3] } : {};
    const inputs = graph.opset < 18 ? [`${at}_size`] : [`${at}_size`, `${PREFIX}axes`];
    nodes.push(node("ReduceMax", inputs, [`${at}_largest`], { keepdims: 0, ...how }));
    return `${at}_largest`;
  });
  return { graph: handingOut(graph, nodes, constants, outputs), outputs };
}

/** A value, the node whose output tells how well it is stored, and ways to store it. */
export interface EncodingTrial {
  readonly value: string;
  /** A node that reads it. */
  readonly reader: Node;
  readonly encodings: readonly ActivationEncoding[];
}

/**
 * The graph that hands out, for every trial and encoding, how far the reader's output moves when
 * only this value is rounded: ‖ŷ − y‖², a float32 scalar each.
 *
 * @returns names of the outputs, by trial and encoding.
 */
export function withTrials(
  graph: Graph,
  trials: readonly EncodingTrial[],
): { readonly graph: Graph; readonly outputs: readonly (readonly string[])[] } {
  const nodes: Node[] = [];
  const constants = new Map<string, Tensor>();
  const outputs = trials.map(({ value, reader, encodings }, i) =>
    encodings.map((encoding, k): string => {
      const at = `${PREFIX}${i}_${k}`;
      constants.set(`${at}_scale`, floatTensor([], [encoding.scale]));
      constants.set(`${at}_zero`, zeroPointTensor(encoding));
      const how = [`${at}_scale`, `${at}_zero`];
      nodes.push(node("QuantizeLinear", [value, ...how], [`${at}_quantized`]));
      nodes.push(node("DequantizeLinear", [`${at}_quantized`, ...how], [`${at}_rounded`]));
      const inputs = reader.inputs.map((name) => (name === value ? `${at}_rounded` : name));
      nodes.push({ ...reader, name: `${at}_reader`, inputs, outputs: [`${at}_output`] });
      nodes.push(node("Sub", [`${at}_output`, reader.outputs[0]!], [`${at}_difference`]));
      nodes.push(node("ReduceSumSquare", [`${at}_difference`], [`${at}_error`], { keepdims: 0 }));
      return `${at}_error`;
    }),
  );
  return { graph: handingOut(graph, nodes, constants, outputs.flat()), outputs };
}

function zeroPointTensor({ type, zeroPoint }: ActivationEncoding): Tensor {
  return type === "uint8"
    ? { dims: [], dataType: DataType.UINT8, data: Uint8Array.of(zeroPoint) }
    : { dims: [], dataType: DataType.INT8, data: Int8Array.of(zeroPoint) };
}

function handingOut(
  graph: Graph,
  nodes: readonly Node[],
  constants: ReadonlyMap<string, Tensor>,
  names: readonly string[],
): Graph {
  const initializers = new Map([...graph.initializers, ...constants]);
  return withOnlyOutputs({ ...graph, nodes: [...graph.nodes, ...nodes], initializers }, names);
}
