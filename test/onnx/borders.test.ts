import assert from "node:assert/strict";
import { test } from "node:test";
import { findBorders } from "../../agent/onnx/borders.ts";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import { foldShapes, shapeValues } from "../../agent/onnx/fold-shapes.ts";
import { extractSubgraph, withExtraOutputs } from "../../agent/onnx/subgraph.ts";
import { int64Tensor } from "../../agent/onnx/tensor.ts";
import { BENCH_ABSENT, benchPath } from "../bench-data.helpers.ts";
import {
  BENCH_GRAPHS,
  BENCH_MODELS,
  batchDims,
  benchGraph,
  largestDifference,
  randomInput,
  runGraph,
} from "./run-graph.helpers.ts";

/** At least this many cut points, so that no block is the whole network. */
const FEWEST = 10;

for (const name of [...BENCH_MODELS, ...BENCH_GRAPHS]) {
  const absent = benchPath(`${name}.onnx`) === undefined;
  test(`borders: ${name} block by block equals the whole`, {
    skip: absent && BENCH_ABSENT,
  }, async () => {
    const graph = benchGraph(name);
    const input = graph.inputs[0]!.name;
    const output = graph.outputs[0]!.name;
    const borders = findBorders(graph);
    assert.ok(borders.length >= FEWEST, `${borders.length} borders`);
    const picture = randomInput(batchDims(graph, 2), 7);
    const whole = await runGraph(graph, { [input]: picture });
    // Every fifth border keeps the number of sessions, and so the time, small.
    const cuts = [input, ...borders.filter((_, i) => i % 5 === 2), output];
    let value = picture as { data: Float32Array; dims: readonly number[] };
    for (let i = 1; i < cuts.length; i++) {
      const block = extractSubgraph(graph, [cuts[i - 1]!], [cuts[i]!]);
      const results = await runGraph(block, { [cuts[i - 1]!]: value });
      value = results[cuts[i]!]!;
    }
    const scale = Math.max(...whole[output]!.data.map(Math.abs), 1);
    assert.ok(largestDifference(value.data, whole[output]!.data) <= 1e-5 * scale);
  });
}

test("borders: a skip connection hides what lies under it", () => {
  const graph = buildModel({
    inputs: [floatValue("x", ["N", 4])],
    outputs: [floatValue("y", ["N", 4])],
    nodes: [
      node("Relu", ["x"], ["a"]),
      node("Sigmoid", ["a"], ["b"]),
      node("Tanh", ["b"], ["c"]),
      node("Add", ["c", "a"], ["d"]),
      node("Neg", ["d"], ["y"]),
    ],
  });
  assert.deepEqual(findBorders(graph), ["a", "d"]);
});

test("borders: a Shape of an early value hides borders until it is folded", async () => {
  const graph = buildModel({
    inputs: [floatValue("x", ["N", 2, 3])],
    outputs: [floatValue("y", ["N", 6])],
    nodes: [
      node("Relu", ["x"], ["a"]),
      node("Sigmoid", ["a"], ["b"]),
      node("Shape", ["x"], ["shape"]),
      node("Gather", ["shape", "zero"], ["n"], { axis: 0 }),
      node("Unsqueeze", ["n", "axes"], ["n1"]),
      node("Concat", ["n1", "six"], ["target"], { axis: 0 }),
      node("Reshape", ["b", "target"], ["y"]),
    ],
    initializers: {
      zero: int64Tensor([], [0]),
      axes: int64Tensor([1], [0]),
      six: int64Tensor([1], [6]),
    },
  });
  assert.deepEqual(findBorders(graph), []);
  assert.deepEqual(shapeValues(graph), ["target"]);
  const measured = (batch: number) => new Map([["target", int64Tensor([2], [batch, 6])]]);
  const folded = foldShapes(graph, measured(2), measured(3), [2, 3]);
  assert.deepEqual(findBorders(folded), ["a", "b"]);
  const input = randomInput([4, 2, 3], 1);
  const [before, after] = [
    await runGraph(graph, { x: input }),
    await runGraph(folded, { x: input }),
  ];
  assert.deepEqual(after["y"], before["y"]);
});

test("subgraph: says which value is missing when a border does not cut", () => {
  const graph = buildModel({
    inputs: [floatValue("x", ["N", 4])],
    outputs: [floatValue("y", ["N", 4])],
    nodes: [node("Relu", ["x"], ["a"]), node("Add", ["a", "x"], ["y"])],
  });
  assert.throws(() => extractSubgraph(graph, ["a"], ["y"]), /also needs \[x\]/);
  assert.deepEqual(
    withExtraOutputs(graph, ["a", "y"]).outputs.map(({ name }) => name),
    ["y", "a"],
  );
});
