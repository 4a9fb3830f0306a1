import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { InferenceSession, Tensor } from "onnxruntime-node";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import { buildGradientGraph } from "../../agent/onnx/gradient/gradient-graph.ts";
import { withObjective } from "../../agent/onnx/gradient/objective.ts";
import { findTrainable } from "../../agent/onnx/gradient/trainable.ts";
import { type Graph, intAttribute, readGraph, writeGraph } from "../../agent/onnx/graph.ts";
import { removeIdentities } from "../../agent/onnx/identity.ts";
import { raiseOpset } from "../../agent/onnx/opset.ts";
import { elementCount, floatTensor, int64Tensor } from "../../agent/onnx/tensor.ts";
import { startTraining } from "../../agent/train/state.ts";
import { gatherGradients, progressOf, takeStep } from "../../agent/train/steps.ts";
import { BENCH_ABSENT, benchPath } from "../bench-data.helpers.ts";
import { closedForm, linearProblem, PLAIN, weightsOf } from "../train/training.helpers.ts";
import { type DoubleTensor, real } from "./double-tensor.helpers.ts";
import { randomIn } from "./gradient.helpers.ts";
import { runReference } from "./reference.helpers.ts";
import { BENCH_GRAPHS, benchGraph, randomValues, runGraph } from "./run-graph.helpers.ts";

/** Pictures of a batch. */
const PICTURES = 2;

/**
 * A network with other weights, so that every one of them matters: matrices and kernels with the
 * variance at which signals keep their size (He et al. 2015, eq. 10), vectors moved by a little.
 */
function withLivelyWeights(graph: Graph, trained: readonly string[]): Graph {
  const initializers = new Map(graph.initializers);
  trained.forEach((name, seed) => {
    const { dims, data } = initializers.get(name)!;
    const inputs = inputsOf(graph, name);
    const noise = randomValues(data.length, seed);
    // Uniform numbers in [−1, 1) have the variance 1/3.
    const values = noise.map((value, i) =>
      inputs === undefined ? Number(data[i]) + 0.1 * value : value * Math.sqrt(6 / inputs),
    );
    initializers.set(name, floatTensor(dims, values));
  });
  return { ...graph, initializers };
}

/** Number of inputs of each unit of a weight; undefined for biases, scales and embeddings. */
function inputsOf(graph: Graph, name: string): number | undefined {
  const { dims } = graph.initializers.get(name)!;
  const reader = graph.nodes.find(({ inputs }) => inputs.includes(name))!;
  if (reader.inputs[1] !== name) return undefined;
  if (reader.opType === "Conv") return elementCount(dims.slice(1));
  if (reader.opType === "MatMul") return dims.at(-2)!;
  if (reader.opType !== "Gemm") return undefined;
  return dims[intAttribute(reader, "transB", 0) === 0 ? 0 : 1]!;
}

/** A network with cross entropy against soft targets, and all that its graph must be fed. */
function lossOf(network: Graph, side: number) {
  const input = network.inputs[0]!.name;
  const classes = Number(network.outputs[0]!.dims!.at(-1));
  const { graph, loss, targets } = withObjective(network, [PICTURES, classes], [], {
    distillation: 0,
    temperature: 1,
    features: 0,
    labels: 1,
    logitOffsets: new Array<number>(classes).fill(0),
  });
  const pictures = randomIn([PICTURES, 3, side, side], 7);
  const share = randomIn([PICTURES, classes], 8, 0, 2 / classes);
  const feeds = new Map([
    [input, real(pictures.dims, pictures.data)],
    [targets, real(share.dims, share.data)],
  ]);
  return { graph, loss, input, feeds };
}

/** Loss and gradients by ONNX Runtime, in float32. */
async function gradientsInFloat(
  graph: Graph,
  loss: string,
  of: readonly string[],
  feeds: ReadonlyMap<string, DoubleTensor>,
) {
  const built = buildGradientGraph(graph, {
    inputDims: new Map([...feeds].map(([name, { dims }]) => [name, dims])),
    loss,
    of,
  });
  const weights = of.flatMap((name) => {
    const tensor = graph.initializers.get(name);
    return tensor
      ? [[name, { dims: tensor.dims, data: tensor.data as Float32Array }] as const]
      : [];
  });
  const given = [...feeds].map(
    ([name, { dims, data }]) => [name, { dims, data: Float32Array.from(data) }] as const,
  );
  const results = await runGraph(built.graph, Object.fromEntries([...given, ...weights]));
  return of.map((name) => results[built.gradients.get(name)!]!);
}

/** Step of the central differences along a direction: longer ones cross kinks of ReLUs. */
const STEP = 2e-9;
/** Most that an entry of a direction may be: a tiny gradient would ask for a giant step. */
const LARGEST_STRETCH = 1e4;
/** Largest error of a slope, against that of all arrays together: float32 through a whole network. */
const TOLERANCE = 1e-4;

/** Sum of products, in double precision. */
function inner(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i]! * b[i]!;
  return sum;
}

/** A random direction for one array, along which the slope is about 1 by its gradient. */
function directionFor(gradient: Float32Array, seed: number): Float64Array {
  const length = Math.sqrt(inner(gradient, gradient));
  const stretch = Math.min(Math.sqrt(3) / length, LARGEST_STRETCH);
  return new Float64Array(randomValues(gradient.length, seed)).map((value) => value * stretch);
}

/**
 * Checks gradients along random directions, in which every array of weights counts about the same,
 * against central differences of the loss in double precision, whose steps cross no kink.
 */
function assertDirections(
  graph: Graph,
  loss: string,
  of: readonly string[],
  gradients: readonly { data: Float32Array; dims: readonly number[] }[],
  feeds: ReadonlyMap<string, DoubleTensor>,
): void {
  for (const seed of [1, 2]) {
    const directions = gradients.map(({ data }, i) => directionFor(data, seed * 1000 + i));
    const lossAt = (step: number): number => {
      const moved = of.map((name, i) => {
        const { dims, data } = feeds.get(name) ?? graph.initializers.get(name)!;
        const values = directions[i]!.map((value, k) => Number(data[k]) + step * value);
        return [name, real(dims, values)] as const;
      });
      return runReference(graph, new Map([...feeds, ...moved])).get(loss)!.data[0]!;
    };
    const expected = (lossAt(STEP) - lossAt(-STEP)) / (2 * STEP);
    const slopes = gradients.map(({ data }, i) => inner(data, directions[i]!));
    const actual = slopes.reduce((a, b) => a + b, 0);
    const size = Math.sqrt(inner(slopes, slopes));
    assert.ok(
      Math.abs(actual - expected) <= TOLERANCE * size,
      `direction ${seed}: expected a slope of ${expected}, got ${actual} (all arrays: ${size})`,
    );
  }
}

for (const name of BENCH_GRAPHS) {
  const path = benchPath(`${name}.onnx`);
  test(`gradients of ${name}: central differences in all weights`, {
    skip: path ? false : BENCH_ABSENT,
  }, async () => {
    const form = name.includes("unfused_bn")
      ? removeIdentities(raiseOpset(readGraph(readFileSync(path!))))
      : benchGraph(name);
    const of = findTrainable(form);
    // Position embeddings fix the size of the picture; all others take a smaller one.
    const side = /deit|vit/.test(name) ? 64 : 32;
    const { graph, loss, input, feeds } = lossOf(withLivelyWeights(form, of), side);
    const all = [input, ...of];
    const gradients = await gradientsInFloat(graph, loss, all, feeds);
    gradients.forEach(({ dims }, i) => {
      const { dims: own } = feeds.get(all[i]!) ?? graph.initializers.get(all[i]!)!;
      assert.deepEqual(dims, own, all[i]);
    });
    assertDirections(graph, loss, all, gradients, feeds);
  });
}

test("gradient of a linear layer: descent along it ends at the closed-form solution", async () => {
  const { X, Y, samples, inputs, outputs } = linearProblem(5);
  const forward = buildModel({
    inputs: [floatValue("x", [samples, inputs]), floatValue("y", [samples, outputs])],
    outputs: [floatValue("loss", [])],
    nodes: [
      node("Gemm", ["x", "W", "b"], ["prediction"], { transB: 1 }),
      node("Sub", ["prediction", "y"], ["error"]),
      node("Mul", ["error", "error"], ["square"]),
      node("ReduceSum", ["square"], ["total"], { keepdims: 0 }),
      node("Mul", ["total", "share"], ["loss"]),
    ],
    initializers: {
      W: floatTensor([outputs, inputs], new Float32Array(outputs * inputs)),
      b: floatTensor([outputs], new Float32Array(outputs)),
      share: floatTensor([], [0.5 / samples]),
    },
  });
  const { graph, gradients } = buildGradientGraph(forward, {
    inputDims: new Map([
      ["x", [samples, inputs]],
      ["y", [samples, outputs]],
    ]),
    loss: "loss",
    of: ["W", "b"],
  });
  const training = startTraining(
    [weightsOf("W", new Array<number>(outputs * inputs).fill(0)), weightsOf("b", [0, 0, 0])],
    { ...PLAIN, limits: { ...PLAIN.limits, steps: 400 } },
  );
  const session = await InferenceSession.create(writeGraph(graph), { intraOpNumThreads: 1 });
  try {
    while (progressOf(training, 0) < 1) {
      const results = await session.run({
        x: new Tensor("float32", Float32Array.from(X), [samples, inputs]),
        y: new Tensor("float32", Float32Array.from(Y), [samples, outputs]),
        W: new Tensor("float32", training.weights[0]!, [outputs, inputs]),
        b: new Tensor("float32", training.weights[1]!, [outputs]),
      });
      const values = (name: string) => results[name]!.data as Float32Array;
      const gathered = ["W", "b"].map((name) => values(gradients.get(name)!));
      gatherGradients(training, values("loss")[0]!, gathered, samples);
      assert.equal(takeStep(training, 0).kind, "stepped");
    }
  } finally {
    await session.release();
  }
  const solution = closedForm({ X, Y, samples, inputs, outputs });
  [solution.W, solution.b].forEach((expected, i) => {
    expected.forEach((value, k) => {
      const actual = training.weights[i]![k]!;
      assert.ok(Math.abs(actual - value) <= 1e-5, `expected ${value}, got ${actual}`);
    });
  });
});

test("gradient graph: an operator without a rule is named, with what to freeze, which helps", async () => {
  const weights = (seed: number) => floatTensor([4, 4], randomValues(16, seed));
  const forward = buildModel({
    inputs: [floatValue("x", [2, 4])],
    outputs: [floatValue("loss", [])],
    nodes: [
      node("MatMul", ["x", "early"], ["a"]),
      node("CumSum", ["a", "axis"], ["b"], {}, "running sums"),
      node("MatMul", ["b", "late"], ["c"]),
      node("ReduceSum", ["c"], ["loss"], { keepdims: 0 }),
    ],
    initializers: { early: weights(1), late: weights(2), axis: int64Tensor([], [1]) },
  });
  const inputDims = new Map([["x", [2, 4]]]);
  const build = (of: readonly string[]) =>
    buildGradientGraph(forward, { inputDims, loss: "loss", of });
  assert.throws(
    () => build(["early", "late"]),
    /CumSum "running sums" cannot be differentiated: .*no rule for CumSum.*freeze .*: early$/,
  );
  const { graph, gradients } = build(["late"]);
  const results = await runGraph(graph, {
    x: { dims: [2, 4], data: randomValues(8, 3) },
    late: { dims: [4, 4], data: randomValues(16, 2) },
  });
  const sums = results[gradients.get("late")!]!;
  assert.deepEqual(sums.dims, [4, 4]);
  // The loss is the sum of b · late: every column of the gradient holds the column sums of b.
  assert.ok(sums.data.some((value) => value !== 0));
  for (let i = 0; i < 16; i++) assert.equal(sums.data[i], sums.data[i - (i % 4)]);
});
