import assert from "node:assert/strict";
import { test } from "node:test";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import { buildGradientGraph } from "../../agent/onnx/gradient/gradient-graph.ts";
import { elementCount, floatTensor, int64Tensor } from "../../agent/onnx/tensor.ts";
import { assertGradients, broadcasted, randomIn, type Values } from "./gradient.helpers.ts";

/** (x − mean) / √(var + ε) of each run of `count` neighbors, in double precision. */
function standardized({ dims, data }: Values, count: number, epsilon: number): Values {
  const normal = Float64Array.from(data);
  for (let start = 0; start < normal.length; start += count) {
    const run = normal.subarray(start, start + count);
    const mean = run.reduce((a, b) => a + b, 0) / count;
    const variance = run.reduce((sum, x) => sum + (x - mean) ** 2, 0) / count;
    for (let i = 0; i < count; i++) run[i] = (run[i]! - mean) / Math.sqrt(variance + epsilon);
  }
  return { dims, data: normal };
}

const affine = (x: number, scale: number, bias = 0) => x * scale + bias;

test("gradient of LayerNormalization: of x, scale and bias, from any axis on", async () => {
  const dims = [2, 3, 4];
  for (const [seed, axis] of [-1, 1, 2, 0, -2].entries()) {
    const own = dims.slice(axis);
    const inputs = {
      x: randomIn(dims, seed, -2, 3),
      scale: randomIn(own, seed + 50),
      bias: randomIn(own, seed + 90),
    };
    for (const names of [
      ["x", "scale", "bias"],
      ["x", "scale"],
    ] as const) {
      await assertGradients({
        nodes: [node("LayerNormalization", names, ["y"], { axis, epsilon: 0.01 })],
        inputs: Object.fromEntries(names.map((name) => [name, inputs[name]])),
        oracle: ([x, ...rest]) =>
          broadcasted([standardized(x!, elementCount(own), 0.01), ...rest], affine as () => number),
      });
    }
  }
});

test("gradient of LayerNormalization: of some of its inputs alone", async () => {
  const values: Record<string, Values> = {
    x: randomIn([3, 5], 1),
    scale: randomIn([5], 2),
    bias: randomIn([5], 3),
  };
  for (const wanted of Object.keys(values)) {
    const { [wanted]: own, ...others } = values;
    const constants = Object.entries(others).map(
      ([name, { dims, data }]) => [name, floatTensor(dims, Array.from(data))] as const,
    );
    await assertGradients({
      nodes: [node("LayerNormalization", ["x", "scale", "bias"], ["y"])],
      inputs: { [wanted]: own! },
      constants: Object.fromEntries(constants),
      oracle: ([value]) => {
        const [x, scale, bias] = Object.values({ ...values, [wanted]: value! });
        return broadcasted([standardized(x!, 5, 1e-5), scale!, bias!], affine);
      },
    });
  }
});

test("gradient of LayerNormalization: sound where the mean is far from 0", async () => {
  const x = randomIn([2, 8], 4, 100, 102);
  await assertGradients({
    nodes: [node("LayerNormalization", ["x", "scale"], ["y"])],
    inputs: { x, scale: randomIn([8], 5) },
    oracle: ([each, scale]) => broadcasted([standardized(each!, 8, 1e-5), scale!], affine),
  });
});

test("gradient of a layer norm as exporters decompose it", async () => {
  await assertGradients({
    nodes: [
      node("ReduceMean", ["x"], ["mean"], { axes: [-1], keepdims: 1 }),
      node("Sub", ["x", "mean"], ["centered"]),
      node("Pow", ["centered", "two"], ["square"]),
      node("ReduceMean", ["square"], ["variance"], { axes: [-1], keepdims: 1 }),
      node("Add", ["variance", "epsilon"], ["safe"]),
      node("Sqrt", ["safe"], ["root"]),
      node("Div", ["centered", "root"], ["normal"]),
      node("Mul", ["normal", "scale"], ["scaled"]),
      node("Add", ["scaled", "bias"], ["y"]),
    ],
    inputs: { x: randomIn([2, 3, 6], 6), scale: randomIn([6], 7), bias: randomIn([6], 8) },
    constants: { two: floatTensor([], [2]), epsilon: floatTensor([], [1e-5]) },
    oracle: ([x, scale, bias]) => broadcasted([standardized(x!, 6, 1e-5), scale!, bias!], affine),
  });
});

test("gradient of BatchNormalization: of x, scale, bias, mean and variance", async () => {
  for (const [seed, dims] of [
    [2, 3, 2, 2],
    [4, 3],
    [2, 3, 5],
  ].entries()) {
    const channels = [3, ...dims.slice(2).map(() => 1)];
    await assertGradients({
      nodes: [
        node("BatchNormalization", ["x", "scale", "bias", "mean", "variance"], ["y"], {
          epsilon: 1e-3,
        }),
      ],
      inputs: {
        x: randomIn(dims, seed, -2, 2),
        scale: randomIn([3], seed + 20),
        bias: randomIn([3], seed + 40),
        mean: randomIn([3], seed + 60),
        variance: randomIn([3], seed + 80, 0.2, 2),
      },
      oracle: ([x, ...parameters]) =>
        broadcasted(
          [x!, ...parameters.map(({ data }) => ({ dims: channels, data }))],
          (value, scale, bias, mean, variance) =>
            ((value! - mean!) / Math.sqrt(variance! + 1e-3)) * scale! + bias!,
        ),
    });
  }
});

test("gradient of BatchNormalization: of x alone by a single product", async () => {
  const ones = floatTensor([3], [1, 2, 3]);
  const graph = await assertGradients({
    nodes: [node("BatchNormalization", ["x", "ones", "ones", "ones", "ones"], ["y"])],
    inputs: { x: randomIn([2, 3, 4], 9) },
    constants: { ones },
    oracle: ([x]) =>
      broadcasted(
        [x!, { dims: [3, 1], data: ones.data as Float32Array }],
        (value, p) => ((value! - p!) / Math.sqrt(p! + 1e-5)) * p! + p!,
      ),
  });
  const readers = graph.nodes.filter(
    ({ name, inputs }) => name.startsWith("backward/") && inputs.includes("x"),
  );
  assert.deepEqual(readers, [], "x need not be kept");
});

test("gradient of InstanceNormalization: of x, scale and bias", async () => {
  const dims = [2, 3, 2, 4];
  await assertGradients({
    nodes: [node("InstanceNormalization", ["x", "scale", "bias"], ["y"], { epsilon: 0.01 })],
    inputs: { x: randomIn(dims, 10), scale: randomIn([3], 11), bias: randomIn([3], 12) },
    oracle: ([x, ...parameters]) =>
      broadcasted(
        [standardized(x!, 8, 0.01), ...parameters.map(({ data }) => ({ dims: [3, 1, 1], data }))],
        affine as () => number,
      ),
  });
});

test("gradient of normalization: refused where the loss reads statistics or trains them", () => {
  const value = (name: string) => floatValue(name, [2, 3]);
  const differentiate = (read: string, training: number) =>
    buildGradientGraph(
      buildModel({
        inputs: [value("x")],
        outputs: [],
        nodes: [
          node(
            "BatchNormalization",
            ["x", "p", "p", "p", "p"],
            training ? ["b", "m", "v"] : ["b"],
            {
              training_mode: training,
            },
          ),
          node("LayerNormalization", ["b", "p"], ["y", "mean"]),
          node("ReduceSum", [read], ["loss"], { keepdims: 0 }),
        ],
        initializers: { p: floatTensor([3], [1, 1, 1]), axes: int64Tensor([1], [0]) },
      }),
      { inputDims: new Map([["x", [2, 3]]]), loss: "loss", of: ["x"] },
    );
  assert.throws(() => differentiate("mean", 0), /LayerNormalization "y".*mean or deviation/);
  assert.throws(() => differentiate("y", 1), /BatchNormalization "b".*training mode/);
});
