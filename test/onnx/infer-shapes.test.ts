import assert from "node:assert/strict";
import { test } from "node:test";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import { inferShapes } from "../../agent/onnx/infer-shapes.ts";
import { withOnlyOutputs } from "../../agent/onnx/subgraph.ts";
import { floatTensor, int64Tensor } from "../../agent/onnx/tensor.ts";
import { BENCH_ABSENT, benchPath } from "../bench-data.helpers.ts";
import { BENCH_GRAPHS, benchGraph, randomInput, runGraph } from "./run-graph.helpers.ts";

for (const name of BENCH_GRAPHS) {
  const skip = benchPath(`${name}.onnx`) ? false : BENCH_ABSENT;
  test(`shapes: every value of ${name} has the shape that ONNX Runtime gives it`, {
    skip,
  }, async () => {
    const graph = benchGraph(name);
    const [input] = graph.inputs;
    const side = Number(input!.dims![2]);
    const dims = [3, 3, side, side];
    const known = inferShapes(graph, new Map([[input!.name, dims]]));
    const made = graph.nodes.flatMap(({ outputs }) => outputs).filter((value) => value !== "");
    const results = await runGraph(withOnlyOutputs(graph, made), {
      [input!.name]: randomInput(dims, 1),
    });
    for (const value of made) {
      assert.deepEqual(known.get(value)?.dims, results[value]!.dims, value);
      const { values } = known.get(value)!;
      if (values) assert.deepEqual(values, Array.from(results[value]!.data, Number), value);
    }
  });
}

test("shapes: windows that overhang, steps backwards and integers without rest", async () => {
  const graph = buildModel({
    inputs: [floatValue("x", [2, 3, 7, 9])],
    outputs: [floatValue("y", null)],
    nodes: [
      node("MaxPool", ["x"], ["up"], { kernel_shape: [2, 2], strides: [2, 2], ceil_mode: 1 }),
      node("Conv", ["x", "w"], ["same"], {
        kernel_shape: [3, 3],
        strides: [2, 2],
        auto_pad: "SAME_UPPER",
      }),
      node("Conv", ["x", "w"], ["wide"], {
        kernel_shape: [3, 3],
        dilations: [2, 3],
        pads: [1, 0, 2, 1],
      }),
      node("Slice", ["x", "last", "before", "axis", "back"], ["turned"]),
      node("Shape", ["x"], ["shape"]),
      node("Gather", ["shape", "axis"], ["width"], { axis: 0 }),
      node("Div", ["width", "two"], ["halved"]),
      node("Concat", ["two", "halved"], ["list"], { axis: 0 }),
      node("Range", ["zero", "nine", "step"], ["range"]),
      node("Pad", ["x", "pads"], ["padded"]),
      node("Tile", ["x", "repeats"], ["tiled"]),
    ],
    initializers: {
      w: floatTensor([4, 3, 3, 3], new Float32Array(108)),
      last: int64Tensor([1], [-1]),
      before: int64Tensor([1], [-100]),
      axis: int64Tensor([1], [3]),
      back: int64Tensor([1], [-2]),
      two: int64Tensor([1], [2]),
      zero: int64Tensor([], [0]),
      nine: int64Tensor([], [9]),
      step: int64Tensor([], [4]),
      pads: int64Tensor([8], [0, 0, 1, 2, 0, 1, 0, 3]),
      repeats: int64Tensor([4], [1, 2, 3, 1]),
    },
  });
  const known = inferShapes(graph, new Map([["x", [2, 3, 7, 9]]]));
  const names = graph.nodes.flatMap(({ outputs }) => outputs);
  const results = await runGraph(withOnlyOutputs(graph, names), {
    x: randomInput([2, 3, 7, 9], 2),
  });
  for (const name of names) {
    assert.deepEqual(known.get(name)?.dims, results[name]!.dims, name);
    const { values } = known.get(name)!;
    if (values) assert.deepEqual(values, Array.from(results[name]!.data, Number), name);
  }
  assert.deepEqual(known.get("list")?.values, [2, 4]);
});

test("shapes: nothing is said about operators that are not known, nor about what follows", () => {
  const graph = buildModel({
    inputs: [floatValue("x", [1, 2])],
    outputs: [floatValue("y", null)],
    nodes: [node("Unheard", ["x"], ["a"]), node("Relu", ["a"], ["y"])],
  });
  const known = inferShapes(graph, new Map([["x", [1, 2]]]));
  assert.deepEqual([...known.keys()], ["x"]);
});
