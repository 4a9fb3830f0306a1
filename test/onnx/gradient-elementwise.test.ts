import { test } from "node:test";
import { node } from "../../agent/onnx/builder.ts";
import { assertGradients, broadcasted, randomIn } from "./gradient.helpers.ts";

/** Shapes of two values that broadcast to each other. */
const SHAPES: readonly (readonly [readonly number[], readonly number[]])[] = [
  [[2, 3], [2, 3]],
  [[2, 3, 4], [4]],
  [[], [3, 2]],
  [[2, 3, 2, 2], [2, 3, 1, 1]],
  [[2, 1, 4], [3, 1]],
  [[1, 3], [2, 1, 3]],
  [[1], [1, 1]],
];

/** Functions of two numbers, with the range of the second (the first: −2 to 2). */
const BINARY: Readonly<Record<string, [(a: number, b: number) => number, low?: number]>> = {
  Add: [(a, b) => a + b],
  Sub: [(a, b) => a - b],
  Mul: [(a, b) => a * b],
  Div: [(a, b) => a / b, 0.5],
};

for (const [opType, [f, low = -2]] of Object.entries(BINARY)) {
  test(`gradient of ${opType}: summed where an input was broadcast`, async () => {
    for (const [i, [a, b]] of SHAPES.entries()) {
      const inputs = { a: randomIn(a, i, -2, 2), b: randomIn(b, i + 50, low, 2) };
      await assertGradients({
        nodes: [node(opType, ["a", "b"], ["y"])],
        inputs,
        oracle: (values) => broadcasted(values, f),
      });
    }
  });
}
