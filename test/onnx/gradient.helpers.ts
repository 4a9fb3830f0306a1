import assert from "node:assert/strict";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import { buildGradientGraph } from "../../agent/onnx/gradient/gradient-graph.ts";
import type { Graph, Node } from "../../agent/onnx/graph.ts";
import { elementCount, floatTensor, type Tensor } from "../../agent/onnx/tensor.ts";
import { randomValues, runGraph } from "./run-graph.helpers.ts";

/** Values with their shape, row-major. */
export interface Values {
  readonly dims: readonly number[];
  readonly data: ArrayLike<number>;
}

/** A function of some values, written twice: as ONNX nodes and in double precision. */
export interface DifferentiatedCase {
  /** Nodes that make "y" from `inputs` and `constants`. */
  readonly nodes: readonly Node[];
  /** Whose gradients are checked. */
  readonly inputs: Readonly<Record<string, Values>>;
  readonly constants?: Readonly<Record<string, Tensor>>;
  /** y of inputs in the order of `inputs`. */
  readonly oracle: (inputs: readonly Values[]) => Values;
  /** Default 17. */
  readonly opset?: number;
}

/** Largest error of a gradient allowed, against the largest entry or 1: float32 in a few sums. */
const TOLERANCE = 3e-5;

/**
 * Checks that a graph computes what its oracle does, and that ONNX Runtime finds the gradients of
 * Σ w · y, w random, which central differences of the oracle have.
 *
 * @returns the graph that computed them.
 */
export async function assertGradients(tested: DifferentiatedCase, seed = 1): Promise<Graph> {
  const names = Object.keys(tested.inputs);
  const inputs = Object.values(tested.inputs);
  const expected = tested.oracle(inputs);
  const weights = randomValues(elementCount(expected.dims), seed + 1000);
  const { graph, gradients } = buildGradientGraph(lossOf(tested, expected.dims, weights), {
    inputDims: new Map(names.map((name, i) => [name, inputs[i]!.dims])),
    loss: "loss",
    of: names,
  });
  const feeds = names.map(
    (name, i) => [name, { ...inputs[i]!, data: Float32Array.from(inputs[i]!.data) }] as const,
  );
  const results = await runGraph(graph, Object.fromEntries(feeds));
  assert.deepEqual(results["y"]!.dims, expected.dims);
  assertClose(results["y"]!.data, expected.data, "y");
  names.forEach((name, i) => {
    const { dims, data } = results[gradients.get(name)!]!;
    assert.deepEqual(dims, inputs[i]!.dims, `shape of the gradient of ${name}`);
    assertClose(data, centralDifferences(tested, inputs, i, weights), `gradient of ${name}`);
  });
  return graph;
}

function lossOf(tested: DifferentiatedCase, dims: readonly number[], weights: Float32Array): Graph {
  return buildModel({
    inputs: Object.entries(tested.inputs).map(([name, value]) => floatValue(name, value.dims)),
    outputs: [floatValue("y", dims)],
    nodes: [
      ...tested.nodes,
      node("Mul", ["y", "weights"], ["weighted"]),
      node("ReduceSum", ["weighted"], ["loss"], { keepdims: 0 }),
    ],
    initializers: { ...tested.constants, weights: floatTensor(dims, weights) },
    opset: tested.opset ?? 17,
  });
}

function centralDifferences(
  tested: DifferentiatedCase,
  inputs: readonly Values[],
  input: number,
  weights: Float32Array,
): number[] {
  const { dims, data } = inputs[input]!;
  const lossWith = (place: number, change: number): number => {
    const moved = Float64Array.from(data);
    moved[place]! += change;
    const y = tested.oracle(inputs.map((each, i) => (i === input ? { dims, data: moved } : each)));
    return weights.reduce((sum, weight, i) => sum + weight * y.data[i]!, 0);
  };
  return Array.from(data, (_, place) => (lossWith(place, 1e-5) - lossWith(place, -1e-5)) / 2e-5);
}

function assertClose(actual: ArrayLike<number>, expected: ArrayLike<number>, what: string): void {
  assert.equal(actual.length, expected.length, what);
  let largest = 1;
  for (let i = 0; i < expected.length; i++) largest = Math.max(largest, Math.abs(expected[i]!));
  for (let i = 0; i < expected.length; i++) {
    const error = Math.abs(actual[i]! - expected[i]!);
    assert.ok(
      error <= TOLERANCE * largest,
      `${what}: expected ${expected[i]} at ${i}, got ${actual[i]}`,
    );
  }
}

/** Random values of a shape, in [low, high). */
export function randomIn(dims: readonly number[], seed: number, low = -1, high = 1): Values {
  const data = randomValues(elementCount(dims), seed);
  return { dims, data: data.map((value) => low + ((value + 1) / 2) * (high - low)) };
}

/** Applies a function of one number to each. */
export function mapped(values: Values, f: (x: number) => number): Values {
  return { dims: values.dims, data: Float64Array.from(values.data, f) };
}

/** Applies a function to the numbers that stand at one place of several values, broadcast. */
export function broadcasted(inputs: readonly Values[], f: (...x: number[]) => number): Values {
  const rank = Math.max(...inputs.map(({ dims }) => dims.length));
  const padded = inputs.map(({ dims }) => [...Array(rank - dims.length).fill(1), ...dims]);
  const dims = Array.from({ length: rank }, (_, axis) =>
    Math.max(...padded.map((each) => each[axis]!)),
  );
  const data = Float64Array.from({ length: elementCount(dims) }, (_, place) =>
    f(...inputs.map((each, i) => each.data[placeIn(padded[i]!, dims, place)]!)),
  );
  return { dims, data };
}

/** Where an element of a shape stands in a value that is broadcast to it. */
function placeIn(own: readonly number[], dims: readonly number[], place: number): number {
  let [rest, at, stride] = [place, 0, 1];
  for (let axis = dims.length - 1; axis >= 0; axis--) {
    const index = rest % dims[axis]!;
    rest = Math.floor(rest / dims[axis]!);
    if (own[axis] !== 1) at += index * stride;
    stride *= own[axis]!;
  }
  return at;
}
