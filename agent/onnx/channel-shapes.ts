import type { Graph, Node, ValueInfo } from "./graph.ts";
import { inferNode, knownTensor } from "./infer-shapes.ts";
import { type Inputs, permutation, slicedAxes } from "./node-axes.ts";
import type { Known } from "./shape-values.ts";

/**
 * Stands for a batch that is free: a prime that no width is a multiple of by chance, so that what
 * comes out with it holds for other batches too, and small enough to write a batch's channels out.
 */
const PROBE_BATCH = 101;
/** Stands for a height or width that is free. */
const PROBE_SIDE = 224;
const PROBE_COLORS = 3;

/**
 * Shapes of all values that follow from the graph, constants included, for code that looks at
 * channels and not at pictures: free dimensions of the input are set to likely sizes (a batch of
 * 101, pictures of 3 × 224 × 224). What an unknown operator makes is absent, and what is computed
 * from that.
 */
export function channelShapes(graph: Graph): Map<string, Known> {
  const known = new Map<string, Known>();
  for (const [name, tensor] of graph.initializers) known.set(name, knownTensor(tensor));
  for (const input of graph.inputs) {
    const dims = probeDims(input);
    if (dims) known.set(input.name, { dims });
  }
  for (const node of graph.nodes) {
    const inputs = node.inputs.map((name) => known.get(name));
    const results = knownOutputs(node, inputs);
    node.outputs.forEach((name, i) => {
      const result = results[i];
      if (name !== "" && result) known.set(name, result);
    });
  }
  return known;
}

function probeDims({ dims }: ValueInfo): number[] | undefined {
  return dims?.map((size, axis) => {
    if (typeof size === "number" && size > 0) return size;
    if (axis === 0) return PROBE_BATCH;
    const colors = axis === 1 && dims.length === 4 && dims[3] !== PROBE_COLORS;
    return colors ? PROBE_COLORS : PROBE_SIDE;
  });
}

/** Sizes that do not fit the probe are as good as not known. */
function knownOutputs(node: Node, inputs: Inputs): (Known | undefined)[] {
  try {
    const results = inferNode(node, inputs);
    const [first] = results;
    if (!first || first.values) return results;
    const values = rearranged(node, inputs, first.dims);
    return values ? [{ ...first, ...values }] : results;
  } catch (error) {
    if (error instanceof RangeError) return [];
    throw error;
  }
}

/** Small matrices that are cut and turned, as PyTorch writes the padding of a Pad. */
function rearranged(
  node: Node,
  inputs: Inputs,
  dims: readonly number[],
): Pick<Known, "values" | "fractions"> | undefined {
  const [x] = inputs;
  if (!x?.values) return undefined;
  const from = sourcePlace(node, inputs, x.dims);
  if (!from) return undefined;
  const values = everyPlace(dims, (at) => x.values![flatPlace(x.dims, from(at))]!);
  return { values, fractions: x.fractions ?? false };
}

type Move = (at: readonly number[]) => readonly number[];

function sourcePlace(node: Node, inputs: Inputs, dims: readonly number[]): Move | undefined {
  if (node.opType === "Transpose") {
    const order = permutation(node, dims.length);
    return (at) => dims.map((_, axis) => at[order.indexOf(axis)]!);
  }
  const sliced = node.opType === "Slice" ? slicedAxes(node, inputs, dims) : undefined;
  if (!sliced) return undefined;
  const places = new Map(sliced.map((axis) => [axis.axis, axis.places]));
  return (at) => at.map((i, axis) => places.get(axis)?.[i] ?? i);
}

function everyPlace(dims: readonly number[], valueAt: (at: readonly number[]) => number): number[] {
  const at = new Array<number>(dims.length).fill(0);
  return Array.from({ length: dims.reduce((a, b) => a * b, 1) }, () => {
    const value = valueAt(at);
    for (let axis = dims.length - 1; axis >= 0; axis--) {
      if (++at[axis]! < dims[axis]!) break;
      at[axis] = 0;
    }
    return value;
  });
}

function flatPlace(dims: readonly number[], at: readonly number[]): number {
  return dims.reduce((flat, size, axis) => flat * size + at[axis]!, 0);
}
