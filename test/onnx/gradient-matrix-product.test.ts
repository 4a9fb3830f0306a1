import assert from "node:assert/strict";
import { test } from "node:test";
import { node } from "../../agent/onnx/builder.ts";
import { floatTensor } from "../../agent/onnx/tensor.ts";
import { assertGradients, randomIn } from "./gradient.helpers.ts";
import { byReference } from "./reference.helpers.ts";

test("gradient of Gemm: of any transposition, scale and shape of the bias", async () => {
  const biases = [[5], [1, 5], [3, 1], [], [3, 5]];
  for (const [transA, transB] of [
    [0, 0],
    [0, 1],
    [1, 0],
    [1, 1],
  ] as const) {
    for (const [i, bias] of biases.entries()) {
      await assertGradients(
        byReference({
          nodes: [
            node("Gemm", ["a", "b", "c"], ["y"], {
              transA,
              transB,
              alpha: 0.7,
              beta: { type: "float", value: i === 0 ? 1 : -0.5 },
            }),
          ],
          inputs: {
            a: randomIn(transA ? [4, 3] : [3, 4], i),
            b: randomIn(transB ? [5, 4] : [4, 5], i + 10),
            c: randomIn(bias, i + 20),
          },
        }),
      );
    }
  }
});

test("gradient of Gemm: without a bias, and of one factor alone", async () => {
  const a = randomIn([3, 4], 1);
  const b = floatTensor([4, 5], Float32Array.from(randomIn([4, 5], 2).data));
  const nodes = [node("Gemm", ["a", "b"], ["y"])];
  const frozen = await assertGradients(byReference({ nodes, inputs: { a }, constants: { b } }));
  assert.equal(frozen.nodes.filter(({ opType }) => opType === "Gemm").length, 2);
});

/** Shapes of both factors: matrices, stacks of them that broadcast, vectors. */
const SHAPES: readonly (readonly [readonly number[], readonly number[]])[] = [
  [
    [3, 4],
    [4, 5],
  ],
  [
    [2, 3, 4],
    [4, 5],
  ],
  [
    [2, 2, 3, 4],
    [1, 4, 5],
  ],
  [
    [3, 4],
    [1, 1, 4, 5],
  ],
  [
    [3, 4],
    [2, 4, 5],
  ],
  [
    [2, 1, 3, 4],
    [1, 6, 4, 5],
  ],
  [
    [2, 3, 3, 4],
    [2, 3, 4, 2],
  ],
  [[4], [4, 5]],
  [[3, 4], [4]],
  [[4], [4]],
  [[4], [2, 4, 5]],
  [[2, 3, 4], [4]],
];

test("gradient of MatMul: of matrices, stacks that broadcast, and vectors", async () => {
  for (const [i, [a, b]] of SHAPES.entries()) {
    await assertGradients(
      byReference({
        nodes: [node("MatMul", ["a", "b"], ["y"])],
        inputs: { a: randomIn(a, i), b: randomIn(b, i + 50) },
      }),
    );
  }
});

test("gradient of MatMul: a weight that all rows share is one product of all rows", async () => {
  const graph = await assertGradients(
    byReference({
      nodes: [node("MatMul", ["x", "w"], ["y"])],
      inputs: { x: randomIn([2, 7, 4], 1), w: randomIn([4, 5], 2) },
    }),
  );
  const counts = ["Gemm", "MatMul", "ReduceSum", "Transpose"].map(
    (opType) => graph.nodes.filter((each) => each.opType === opType).length,
  );
  // The two sums: of the test's loss alone.
  assert.deepEqual(counts, [2, 1, 1, 0]);
});
