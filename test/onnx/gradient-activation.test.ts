import assert from "node:assert/strict";
import { test } from "node:test";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import { buildGradientGraph } from "../../agent/onnx/gradient/gradient-graph.ts";
import { floatTensor } from "../../agent/onnx/tensor.ts";
import { assertGradients, broadcasted, mapped, randomIn } from "./gradient.helpers.ts";
import { runGraph } from "./run-graph.helpers.ts";

const clamp = (x: number, low: number, high: number) => Math.min(Math.max(x, low), high);
const sigmoid = (x: number) => 1 / (1 + Math.exp(-x));
const elu = (alpha: number) => (x: number) => (x > 0 ? x : alpha * (Math.exp(x) - 1));

/** erf(x) = 2/√π Σ (−1)ⁿ x^(2n+1) / (n! (2n+1)), to about 1e-12 for |x| < 3. */
function erf(x: number): number {
  let [term, sum] = [x, x];
  for (let n = 1; n < 100; n++) {
    term *= (-x * x) / n;
    sum += term / (2 * n + 1);
  }
  return (2 / Math.sqrt(Math.PI)) * sum;
}

const gelu = (x: number) => (x / 2) * (1 + erf(x / Math.SQRT2));
const tanhGelu = (x: number) =>
  (x / 2) * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));

const ACTIVATIONS: readonly [string, (x: number) => number, attributes?: object, opset?: number][] =
  [
    ["Relu", (x) => Math.max(x, 0)],
    ["LeakyRelu", (x) => (x > 0 ? x : 0.01 * x)],
    ["LeakyRelu", (x) => (x > 0 ? x : 0.3 * x), { alpha: 0.3 }],
    ["Elu", elu(1)],
    ["Elu", elu(0.4), { alpha: 0.4 }],
    ["Elu", elu(1.7), { alpha: 1.7 }],
    ["Softplus", (x) => Math.log1p(Math.exp(x))],
    ["Tanh", Math.tanh],
    ["Sigmoid", sigmoid],
    ["HardSigmoid", (x) => clamp(0.2 * x + 0.5, 0, 1)],
    ["HardSigmoid", (x) => clamp(x / 6 + 0.3, 0, 1), { alpha: 1 / 6, beta: 0.3 }],
    ["HardSwish", (x) => x * clamp(x / 6 + 0.5, 0, 1)],
    ["Erf", erf],
    ["Gelu", gelu, {}, 20],
    ["Gelu", tanhGelu, { approximate: "tanh" }, 20],
  ];

for (const [opType, f, attributes, opset] of ACTIVATIONS) {
  test(`gradient of ${opType} ${JSON.stringify(attributes ?? {})}`, async () => {
    await assertGradients({
      nodes: [node(opType, ["x"], ["y"], { ...attributes })],
      inputs: { x: randomIn([3, 4, 5], 1, -3.5, 3.5) },
      oracle: ([x]) => mapped(x!, f),
      opset: opset ?? 17,
    });
  });
}

test("gradient of Relu and Clip: 0 on a limit, and whole however near or far from it", async () => {
  const x = { dims: [6], data: Float32Array.of(-1e30, -1e-20, 0, 1e-20, 1, 1e30) };
  const nodes = [
    node("Relu", ["x"], ["r"]),
    node("Clip", ["x", "", "one"], ["c"]),
    node("Sub", ["r", "c"], ["y"]),
    node("ReduceSum", ["y"], ["loss"], { keepdims: 0 }),
  ];
  const forward = buildModel({
    inputs: [floatValue("x", x.dims)],
    outputs: [floatValue("loss", [])],
    nodes,
    initializers: { one: floatTensor([], [1]) },
  });
  const inputDims = new Map([["x", x.dims]]);
  const { graph, gradients } = buildGradientGraph(forward, { inputDims, loss: "loss", of: ["x"] });
  const { data } = (await runGraph(graph, { x }))[gradients.get("x")!]!;
  assert.deepEqual([...data], [-1, -1, -1, 0, 1, 1]);
});

test("gradient of Clip: only inside its limits, either of which may be missing", async () => {
  for (const [low, high] of [
    [-1, 2],
    [0, 6],
    [undefined, 0.5],
    [-0.5, undefined],
    [undefined, undefined],
  ]) {
    const constants = {
      ...(low === undefined ? {} : { low: floatTensor([], [low]) }),
      ...(high === undefined ? {} : { high: floatTensor([], [high]) }),
    };
    const limits = [low === undefined ? "" : "low", high === undefined ? "" : "high"];
    await assertGradients({
      nodes: [node("Clip", ["x", ...limits], ["y"])],
      inputs: { x: randomIn([4, 5], 2, -3, 7) },
      constants,
      oracle: ([x]) => mapped(x!, (value) => clamp(value, low ?? -Infinity, high ?? Infinity)),
    });
  }
});

test("gradient of PRelu: to the slope as well, one for all or one a channel", async () => {
  for (const [i, slope] of [[3, 1, 1], [1], [2, 3, 2, 4]].entries()) {
    await assertGradients({
      nodes: [node("PRelu", ["x", "s"], ["y"])],
      inputs: { x: randomIn([2, 3, 2, 4], i, -2, 2), s: randomIn(slope, i + 50, 0, 1) },
      oracle: (inputs) => broadcasted(inputs, (x, s) => (x! > 0 ? x! : s! * x!)),
    });
  }
});

for (const inputs of [
  ["x", "s"],
  ["s", "x"],
]) {
  test(`gradient of ${inputs.join(" · ")}, s = σ(x): of both nodes at once`, async () => {
    const swish = { x: randomIn([3, 7], 4, -6, 6) };
    const graph = await assertGradients({
      nodes: [node("Sigmoid", ["x"], ["s"]), node("Mul", inputs, ["y"])],
      inputs: swish,
      oracle: ([x]) => mapped(x!, (value) => value * sigmoid(value)),
    });
    const backward = graph.nodes.filter(({ name }) => name.startsWith("backward/"));
    assert.ok(
      backward.every((each) => !each.inputs.includes("x")),
      "x need not be kept",
    );
    // One of the products is that with the weights of the loss.
    const passes = backward.flatMap(({ opType }) => /Add|Sub|Mul/.exec(opType) ?? []);
    assert.deepEqual(passes.sort(), ["Add", "Mul", "Mul", "Mul", "Sub"]);
    await assertGradients({
      nodes: [
        node("Sigmoid", ["x"], ["s"]),
        node("Mul", inputs, ["z"]),
        node("Sub", ["z", "s"], ["y"]),
      ],
      inputs: swish,
      oracle: ([x]) => mapped(x!, (value) => (value - 1) * sigmoid(value)),
    });
  });
}

test("gradient of GELU as exporters decompose it", async () => {
  await assertGradients({
    nodes: [
      node("Div", ["x", "root"], ["u"]),
      node("Erf", ["u"], ["e"]),
      node("Add", ["e", "one"], ["s"]),
      node("Mul", ["x", "s"], ["p"]),
      node("Mul", ["p", "half"], ["y"]),
    ],
    inputs: { x: randomIn([3, 4], 5, -4, 4) },
    constants: {
      root: floatTensor([], [Math.SQRT2]),
      one: floatTensor([], [1]),
      half: floatTensor([], [0.5]),
    },
    oracle: ([x]) => mapped(x!, gelu),
  });
});
