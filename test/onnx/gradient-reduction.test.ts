import assert from "node:assert/strict";
import { test } from "node:test";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import { buildGradientGraph } from "../../agent/onnx/gradient/gradient-graph.ts";
import { int64Tensor } from "../../agent/onnx/tensor.ts";
import { assertGradients, randomIn } from "./gradient.helpers.ts";
import { byReference } from "./reference.helpers.ts";
import { runGraph } from "./run-graph.helpers.ts";

const x = randomIn([2, 3, 4], 3);

for (const opType of ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2"]) {
  test(`gradient of ${opType}: over any axes, kept or not`, async () => {
    for (const axes of [[1], [0, -1], [], [2, 0, 1]]) {
      for (const keepdims of [0, 1]) {
        // As an attribute (of ReduceSum until 12 alone), and as an input (of the others from 18 on).
        const forms = opType === "ReduceSum" ? [17] : [17, 18];
        for (const opset of forms) {
          const asInput = opset === 18 || opType === "ReduceSum";
          const attribute = asInput || axes.length === 0 ? {} : { axes };
          await assertGradients(
            byReference({
              nodes: [
                node(opType, asInput ? ["x", "axes"] : ["x"], ["y"], { keepdims, ...attribute }),
              ],
              inputs: { x },
              ...(asInput ? { constants: { axes: int64Tensor([axes.length], axes) } } : {}),
              opset,
            }),
          );
        }
      }
    }
  });
}

test("gradient of a reduction over no axes at all, if that is what no axes mean", async () => {
  for (const opType of ["ReduceMean", "ReduceMax"]) {
    await assertGradients(
      byReference({
        nodes: [node(opType, ["x"], ["y"], { noop_with_empty_axes: 1 })],
        inputs: { x },
        opset: 18,
      }),
    );
  }
});

/** Gradient of the sum of what an operator makes of one row. */
async function gradientOfRow(opType: string, row: readonly number[]): Promise<number[]> {
  const forward = buildModel({
    inputs: [floatValue("x", [row.length])],
    outputs: [floatValue("y", [])],
    nodes: [node(opType, ["x"], ["y"], { keepdims: 0 })],
  });
  const dims = [row.length];
  const { graph, gradients } = buildGradientGraph(forward, {
    inputDims: new Map([["x", dims]]),
    loss: "y",
    of: ["x"],
  });
  const results = await runGraph(graph, { x: { dims, data: Float32Array.from(row) } });
  return [...results[gradients.get("x")!]!.data];
}

test("gradient of ReduceMax: shared evenly where several are largest", async () => {
  assert.deepEqual(await gradientOfRow("ReduceMax", [1, 3, 3, 2]), [0, 0.5, 0.5, 0]);
});

test("gradient of ReduceL2: no NaN for a row of zeros", async () => {
  assert.deepEqual(await gradientOfRow("ReduceL2", [0, 0, 0]), [0, 0, 0]);
});
