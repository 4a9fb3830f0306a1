import assert from "node:assert/strict";
import { test } from "node:test";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import { findPrunableLayers } from "../../agent/onnx/prunable-layers.ts";
import {
  channelRanges,
  findScalableChannels,
  scaleChannels,
} from "../../agent/onnx/qdq-equalize.ts";
import { floatTensor } from "../../agent/onnx/tensor.ts";
import { largestDifference, randomInput, randomValues, runGraph } from "./run-graph.helpers.ts";

const weights = (seed: number, ...dims: number[]) =>
  floatTensor(
    dims,
    randomValues(
      dims.reduce((product, dim) => product * dim, 1),
      seed,
    ),
  );

/** expand ─ Relu ─ depthwise ─ Relu ─ gate ─ project: as in an inverted bottleneck. */
const GRAPH = buildModel({
  inputs: [floatValue("x", ["N", 3, 6, 6])],
  outputs: [floatValue("y", ["N", 4, 6, 6])],
  nodes: [
    node("Conv", ["x", "expand", "bias"], ["a"]),
    node("Relu", ["a"], ["a_relu"]),
    node("Conv", ["a_relu", "depthwise"], ["b"], { group: 8, pads: [1, 1, 1, 1] }),
    node("Relu", ["b"], ["b_relu"]),
    node("GlobalAveragePool", ["b_relu"], ["squeezed"]),
    node("Conv", ["squeezed", "gate"], ["c"]),
    node("Sigmoid", ["c"], ["excited"]),
    node("Mul", ["b_relu", "excited"], ["scaled"]),
    node("Conv", ["scaled", "project"], ["y"]),
  ],
  initializers: {
    expand: weights(1, 8, 3, 1, 1),
    bias: weights(2, 8),
    depthwise: weights(3, 8, 1, 3, 3),
    gate: weights(4, 8, 8, 1, 1),
    project: weights(5, 4, 8, 1, 1),
  },
});

test("equalize: channels are found through ReLUs and gates, and no further", () => {
  const found = findScalableChannels(GRAPH);
  assert.deepEqual(
    found.map(({ producer, channels, consumers }) => [producer, channels, consumers]),
    [
      ["a", 8, ["b"]],
      ["b", 8, ["c", "y"]],
    ],
  );
  const squared = GRAPH.nodes.map((n) =>
    n.opType === "Mul" ? { ...n, inputs: ["b_relu", "squeezed"] } : n,
  );
  const names = findScalableChannels({ ...GRAPH, nodes: squared }).map(({ producer }) => producer);
  assert.deepEqual(names, ["a"]);
});

test("equalize: scaled channels compute the same in float", async () => {
  let graph = GRAPH;
  for (const [i, channels] of findScalableChannels(GRAPH).entries()) {
    const factors = Float64Array.from(randomValues(8, 10 + i), (value) => 10 ** value);
    graph = scaleChannels(graph, channels, factors);
    assert.throws(
      () =>
        scaleChannels(
          GRAPH,
          channels,
          factors.map(() => 0),
        ),
      RangeError,
    );
  }
  const x = randomInput([2, 3, 6, 6], 20);
  const [before, after] = [await runGraph(GRAPH, { x }), await runGraph(graph, { x })];
  assert.ok(largestDifference(before["y"]!.data, after["y"]!.data) < 1e-5);
});

test("equalize: the range of a channel is its largest weight in every layer that takes it", () => {
  const layers = findPrunableLayers(GRAPH);
  const project = layers.find(({ name }) => name === "y")!;
  const W = GRAPH.initializers.get("project")!.data as Float32Array;
  const expected = Array.from({ length: 8 }, (_, c) =>
    Math.max(...[0, 1, 2, 3].map((row) => Math.abs(W[row * 8 + c]!))),
  );
  assert.deepEqual([...channelRanges(GRAPH, project, 8)], expected);
});
