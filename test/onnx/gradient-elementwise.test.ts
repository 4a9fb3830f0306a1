import assert from "node:assert/strict";
import { test } from "node:test";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import { buildGradientGraph } from "../../agent/onnx/gradient/gradient-graph.ts";
import { DataType, floatTensor, int64Tensor, type Tensor } from "../../agent/onnx/tensor.ts";
import { assertGradients, broadcasted, mapped, randomIn } from "./gradient.helpers.ts";

/** Shapes of two values that broadcast to each other. */
const SHAPES: readonly (readonly [readonly number[], readonly number[]])[] = [
  [
    [2, 3],
    [2, 3],
  ],
  [[2, 3, 4], [4]],
  [[], [3, 2]],
  [
    [2, 3, 2, 2],
    [2, 3, 1, 1],
  ],
  [
    [2, 1, 4],
    [3, 1],
  ],
  [
    [1, 3],
    [2, 1, 3],
  ],
  [[1], [1, 1]],
];

/** Functions of two numbers, and the least value of the first and the second (the largest is 2). */
const BINARY: Readonly<Record<string, [(a: number, b: number) => number, number, number]>> = {
  Add: [(a, b) => a + b, -2, -2],
  Sub: [(a, b) => a - b, -2, -2],
  Mul: [(a, b) => a * b, -2, -2],
  Div: [(a, b) => a / b, -2, 0.5],
  Pow: [(a, b) => a ** b, 0.2, -2],
  Min: [Math.min, -2, -2],
  Max: [Math.max, -2, -2],
  Sum: [(a, b) => a + b, -2, -2],
  Mean: [(a, b) => (a + b) / 2, -2, -2],
};

for (const [opType, [f, lowA, lowB]] of Object.entries(BINARY)) {
  test(`gradient of ${opType}: summed where an input was broadcast`, async () => {
    for (const [i, [a, b]] of SHAPES.entries()) {
      await assertGradients({
        nodes: [node(opType, ["a", "b"], ["y"])],
        inputs: { a: randomIn(a, i, lowA, 2), b: randomIn(b, i + 50, lowB, 2) },
        oracle: (values) => broadcasted(values, f),
      });
    }
  });
}

test("gradient of Sum and Mean: of any number of inputs", async () => {
  for (const count of [1, 3]) {
    const names = ["a", "b", "c"].slice(0, count);
    const shapes = [[2, 3], [3], [2, 1]];
    const inputs = names.map((name, i) => [name, randomIn(shapes[i]!, i)] as const);
    for (const opType of ["Sum", "Mean"]) {
      await assertGradients({
        nodes: [node(opType, names, ["y"])],
        inputs: Object.fromEntries(inputs),
        oracle: (values) =>
          broadcasted(values, (...x) => {
            const sum = x.reduce((a, b) => a + b, 0);
            return opType === "Sum" ? sum : sum / count;
          }),
      });
    }
  }
});

/** Functions of one number, and the range in which they are tested. */
const UNARY: Readonly<Record<string, [(x: number) => number, number, number]>> = {
  Sqrt: [Math.sqrt, 0.2, 3],
  Exp: [Math.exp, -2, 2],
  Log: [Math.log, 0.2, 3],
  Neg: [(x) => -x, -2, 2],
  Reciprocal: [(x) => 1 / x, 0.3, 2],
  Abs: [Math.abs, -2, 2],
};

for (const [opType, [f, low, high]] of Object.entries(UNARY)) {
  test(`gradient of ${opType}`, async () => {
    await assertGradients({
      nodes: [node(opType, ["x"], ["y"])],
      inputs: { x: randomIn([3, 5], 1, low, high) },
      oracle: ([x]) => mapped(x!, f),
    });
  });
}

test("gradient of a product or a sum of a value with itself", async () => {
  for (const [opType, f] of [
    ["Mul", (x: number) => x * x],
    ["Add", (x: number) => x + x],
    ["Div", () => 1],
  ] as const) {
    await assertGradients({
      nodes: [node(opType, ["x", "x"], ["y"])],
      inputs: { x: randomIn([2, 3], 2, 0.5, 2) },
      oracle: ([x]) => mapped(x!, f),
    });
  }
});

test("gradient of Pow: by constants of any type and sign, at bases of any sign", async () => {
  const exponents: readonly [Tensor, number][] = [
    [floatTensor([], [2]), -2],
    [floatTensor([1], [3]), -2],
    [int64Tensor([], [2]), -2],
    [int64Tensor([1], [4]), -2],
    [floatTensor([], [0.5]), 0.2],
    [floatTensor([], [-1.5]), 0.2],
    [floatTensor([], [1]), -2],
  ];
  for (const [p, low] of exponents) {
    await assertGradients({
      nodes: [node("Pow", ["x", "p"], ["y"])],
      inputs: { x: randomIn([2, 4], 3, low, 2) },
      constants: { p },
      oracle: ([x]) => mapped(x!, (value) => value ** Number(p.data[0])),
    });
  }
});

test("gradient of Pow: no infinity of the exponent at a base of 0", async () => {
  await assertGradients({
    nodes: [node("Pow", ["one", "p"], ["y"])],
    inputs: { p: randomIn([2, 2], 4, 1, 2) },
    constants: { one: floatTensor([2], [0, 1.5]) },
    oracle: ([p]) => broadcasted([{ dims: [2], data: [0, 1.5] }, p!], (a, b) => a ** b),
  });
});

test("gradient of Where: to the value that was taken", async () => {
  const condition = {
    dims: [2, 1, 3],
    dataType: DataType.BOOL,
    data: Uint8Array.of(1, 0, 0, 1, 1, 0),
  };
  const chosen = { dims: condition.dims, data: condition.data };
  for (const [i, [a, b]] of [
    [
      [2, 2, 3],
      [2, 2, 3],
    ],
    [[2, 3], [1]],
    [[], [2, 1, 1]],
  ].entries()) {
    await assertGradients({
      nodes: [node("Where", ["condition", "a", "b"], ["y"])],
      inputs: { a: randomIn(a!, i), b: randomIn(b!, i + 50) },
      constants: { condition },
      oracle: ([x, z]) => broadcasted([chosen, x!, z!], (is, yes, no) => (is ? yes! : no!)),
    });
  }
});

test("gradient of a comparison and of Cast: that of the parts between the steps", async () => {
  await assertGradients({
    nodes: [
      node("Greater", ["x", "limit"], ["above"]),
      node("Cast", ["above"], ["mask"], { to: DataType.FLOAT }),
      node("Cast", ["x"], ["same"], { to: DataType.FLOAT }),
      node("Floor", ["x"], ["down"]),
      node("Mul", ["mask", "same"], ["kept"]),
      node("Sub", ["kept", "down"], ["y"]),
    ],
    inputs: { x: randomIn([3, 4], 5, -2, 2) },
    constants: { limit: floatTensor([], [0.5]) },
    oracle: ([x]) => mapped(x!, (value) => (value > 0.5 ? value : 0) - Math.floor(value)),
  });
});

test("gradient of elementwise nodes: refused where there is none", () => {
  const gradientOf = (opType: string, inputs: string[], attributes = {}) =>
    buildGradientGraph(
      buildModel({
        inputs: [floatValue("x", [])],
        outputs: [floatValue("y", [])],
        nodes: [node(opType, inputs, ["y"], attributes)],
      }),
      { inputDims: new Map([["x", []]]), loss: "y", of: ["x"] },
    );
  assert.throws(() => gradientOf("Max", ["x", "x", "x"]), /Max "y".*expected two inputs, got 3/);
  const half = { to: DataType.FLOAT16 };
  assert.throws(() => gradientOf("Cast", ["x"], half), /expected float32, got FLOAT16/);
});
