import assert from "node:assert/strict";
import { test } from "node:test";
import { type AttributeValue, buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import { buildGradientGraph } from "../../agent/onnx/gradient/gradient-graph.ts";
import type { Node } from "../../agent/onnx/graph.ts";
import { DataType, floatTensor, int64Tensor, type Tensor } from "../../agent/onnx/tensor.ts";
import { assertGradients, randomIn } from "./gradient.helpers.ts";
import { byReference } from "./reference.helpers.ts";

/** Checks an operator on a random x with further inputs that are lists of integers. */
async function assertMovement(
  opType: string,
  dims: readonly number[],
  lists: readonly (readonly number[] | undefined)[] = [],
  attributes: Readonly<Record<string, AttributeValue>> = {},
  opset = 17,
): Promise<void> {
  const names = lists.map((list, i) => (list ? `list${i}` : ""));
  const constants = lists.flatMap((list, i) =>
    list ? [[`list${i}`, int64Tensor([list.length], list)] as const] : [],
  );
  await assertGradients(
    byReference({
      nodes: [node(opType, ["x", ...names], ["y"], attributes)],
      inputs: { x: randomIn(dims, dims.length) },
      constants: Object.fromEntries(constants),
      opset,
    }),
  );
}

test("gradient of a new shape: of Reshape, Flatten, Squeeze, Unsqueeze and Identity", async () => {
  await assertMovement("Reshape", [2, 3, 4], [[0, -1]]);
  await assertMovement("Reshape", [2, 3, 4], [[4, 6]]);
  await assertMovement("Flatten", [2, 3, 4], [], { axis: 2 });
  await assertMovement("Flatten", [2, 3, 4], [], { axis: -1 });
  await assertMovement("Squeeze", [2, 1, 3, 1]);
  await assertMovement("Squeeze", [2, 1, 3, 1], [[-1]]);
  await assertMovement("Unsqueeze", [2, 3], [[0, -1]]);
  await assertMovement("Identity", [2, 3]);
});

test("gradient of Dropout: of x itself, as it is used", async () => {
  await assertMovement("Dropout", [2, 3]);
});

test("gradient of Transpose: by any permutation", async () => {
  await assertMovement("Transpose", [2, 3, 4]);
  await assertMovement("Transpose", [2, 3, 4], [], { perm: [2, 0, 1] });
  await assertMovement("Transpose", [2, 3, 4, 5], [], { perm: [0, 2, 3, 1] });
});

test("gradient of Concat: every input has its part, and one that is frozen none", async () => {
  const inputs = { a: randomIn([2, 3, 2], 1), b: randomIn([2, 1, 2], 2) };
  const constants = { c: floatTensor([2, 2, 2], [1, 2, 3, 4, 5, 6, 7, 8]) };
  for (const names of [
    ["a", "b"],
    ["a", "c", "b"],
    ["c", "a", "b"],
    ["a", "b", "a"],
  ]) {
    const graph = await assertGradients(
      byReference({ nodes: [node("Concat", names, ["y"], { axis: -2 })], inputs, constants }),
    );
    const cuts = graph.nodes.filter(({ opType }) => opType === "Slice" || opType === "Split");
    assert.equal(cuts.length, names.includes("c") ? 2 : 1);
  }
});

test("gradient of Split: zeros for the parts that are not read", async () => {
  const parts = node("Split", ["x", "sizes"], ["p", "q", "r"], { axis: -1 });
  const readings: Node[][] = [
    [node("Concat", ["r", "p", "q"], ["y"], { axis: 1 })],
    [node("Mul", ["q", "q"], ["y"])],
    [node("Neg", ["p"], ["y"])],
    [node("Mul", ["q", "r"], ["y"])],
  ];
  for (const reading of readings) {
    await assertGradients(
      byReference({
        nodes: [parts, ...reading],
        inputs: { x: randomIn([2, 5], 1) },
        constants: { sizes: int64Tensor([3], [1, 2, 2]) },
      }),
    );
  }
  await assertGradients(
    byReference({
      nodes: [node("Split", ["x"], ["p", "q"]), node("Sub", ["p", "q"], ["y"])],
      inputs: { x: randomIn([4, 3], 2) },
    }),
  );
});

test("gradient of Slice: of any axes, in steps and backwards", async () => {
  const cuts: (readonly number[])[][] = [
    [[1], [3], [1], [1]],
    [
      [-3, 0],
      [-1, 99],
      [2, 1],
      [1, 2],
    ],
    [[0], [99], [2], [3]],
    [[1], [99], [2], [4]],
    [[-1], [-99], [2], [-2]],
    [[4], [0], [2], [-3]],
    [[99], [-99], [0], [-1]],
    [
      [1, 1, 2],
      [2, 3, 6],
      [0, -2, 2],
      [1, 1, 1],
    ],
  ];
  for (const lists of cuts) await assertMovement("Slice", [2, 4, 7], lists);
  await assertMovement("Slice", [3, 4], [[1], [3]]);
  await assertMovement("Slice", [3, 4], [[1], [3], undefined, [2]]);
});

/** Checks a Gather by indices of any shape. */
async function assertGather(indices: Tensor, axis: number): Promise<void> {
  await assertGradients(
    byReference({
      nodes: [node("Gather", ["x", "indices"], ["y"], { axis })],
      inputs: { x: randomIn([2, 3, 4], 1) },
      constants: { indices },
    }),
  );
}

test("gradient of Gather: one place, neighbors, and places taken several times or never", async () => {
  await assertGather(int64Tensor([], [0]), 1);
  await assertGather(int64Tensor([], [-1]), 0);
  await assertGather(int64Tensor([1], [2]), -1);
  await assertGather(int64Tensor([2], [1, 2]), 1);
  await assertGather(int64Tensor([2, 2], [3, 1, 1, -1]), 2);
  await assertGather(int64Tensor([3], [0, 0, 1]), 0);
  const narrow = { dims: [3], dataType: DataType.INT32, data: Int32Array.of(2, 0, -3) };
  await assertGather(narrow, 1);
});

test("gradient of copies: of Expand and Tile the sum", async () => {
  await assertMovement("Expand", [2, 1, 3], [[5, 2, 4, 1]]);
  await assertMovement("Expand", [2, 3], [[2, 3]]);
  await assertMovement("Tile", [2, 3], [[3, 2]]);
  await assertMovement("Tile", [2, 1, 3], [[1, 4, 1]]);
});

test("gradient of Pad: without the border, or with zeros for what it took away", async () => {
  await assertMovement("Pad", [2, 3], [[0, 1, 2, 3]]);
  await assertMovement("Pad", [4, 5], [[1, -1, -2, 3]]);
  await assertMovement("Pad", [4, 5], [[-1, 3], undefined, [-1]], {}, 18);
});

test("gradient of Pad and Dropout: refused where they are no plain movement, with the reason", () => {
  const graphOf = (opType: string, lists: readonly string[], mode: Record<string, string> = {}) =>
    buildModel({
      inputs: [floatValue("x", [2, 3])],
      outputs: [floatValue("loss", [])],
      nodes: [
        node(opType, ["x", ...lists], ["y"], mode),
        node("ReduceSum", ["y"], ["loss"], { keepdims: 0 }),
      ],
      initializers: {
        pads: int64Tensor([4], [0, 1, 0, 1]),
        half: floatTensor([], [0.5]),
        yes: { dims: [], dataType: DataType.BOOL, data: Uint8Array.of(1) },
      },
    });
  const gradientOf = (graph: ReturnType<typeof graphOf>) =>
    buildGradientGraph(graph, { inputDims: new Map([["x", [2, 3]]]), loss: "loss", of: ["x"] });
  assert.throws(() => gradientOf(graphOf("Pad", ["pads"], { mode: "reflect" })), /mode reflect/);
  assert.throws(() => gradientOf(graphOf("Dropout", ["half", "yes"])), /at random/);
});
