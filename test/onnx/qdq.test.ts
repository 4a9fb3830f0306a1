import assert from "node:assert/strict";
import { test } from "node:test";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import { quantizeGraph } from "../../agent/onnx/qdq.ts";
import { floatTensor } from "../../agent/onnx/tensor.ts";
import { randomInput, randomValues, runGraph } from "./run-graph.helpers.ts";

test("qdq: a convolution on integers gives what its fake-quantized floats give", async () => {
  const weights = randomValues(4 * 3 * 9, 1);
  const graph = buildModel({
    inputs: [floatValue("x", ["N", 3, 8, 8])],
    outputs: [floatValue("y", ["N", 4, 6, 6])],
    nodes: [node("Conv", ["x", "w", "b"], ["y"])],
    initializers: {
      w: floatTensor([4, 3, 3, 3], weights),
      b: floatTensor([4], [0.1, -0.2, 0.3, 0]),
    },
  });
  const scales = Float32Array.of(1 / 127, 1 / 127, 1 / 127, 1 / 127);
  const values = Int8Array.from(weights, (w) => Math.round(w * 127));
  const quantized = quantizeGraph(graph, {
    nodes: new Set(["y"]),
    activations: new Map([
      ["x", { type: "uint8", scale: 2 / 255, zeroPoint: 128 }],
      ["y", { type: "uint8", scale: 10 / 255, zeroPoint: 128 }],
    ]),
    weights: new Map([["w", { values, scales, axis: 0 }]]),
  });
  const x = randomInput([2, 3, 8, 8], 2);
  const { y } = await runGraph(quantized, { x });
  const exact = await runGraph(graph, { x });
  y!.data.forEach((value, i) => {
    assert.ok(Math.abs(value - exact["y"]!.data[i]!) < 0.1, `${value} ${exact["y"]!.data[i]}`);
  });
});
