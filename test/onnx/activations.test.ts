import assert from "node:assert/strict";
import { test } from "node:test";
import { findSwishes, replaceSwish } from "../../agent/onnx/activations.ts";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import { runGraph } from "./run-graph.helpers.ts";

const GRAPH = buildModel({
  inputs: [floatValue("x", ["N", 4])],
  outputs: [floatValue("y", ["N", 4])],
  initializers: {},
  nodes: [node("Sigmoid", ["x"], ["gate"]), node("Mul", ["gate", "x"], ["y"])],
});
const X = Float32Array.of(-4, -1, 0.5, 7);

async function outputOf(graph: typeof GRAPH): Promise<number[]> {
  const { y } = await runGraph(graph, { x: { data: X, dims: [1, 4] } });
  return Array.from(y!.data as Float32Array);
}

test("activations: a swish is found, and replaced by what it is asked to be", async () => {
  assert.deepEqual(
    findSwishes(GRAPH).map(({ input, output, kind }) => [input, output, kind]),
    [["x", "y", "swish"]],
  );
  const hard = await outputOf(replaceSwish(GRAPH, "hard-swish"));
  const relu = await outputOf(replaceSwish(GRAPH, "relu"));
  for (const [i, x] of X.entries()) {
    const expected = (x * Math.min(6, Math.max(0, x + 3))) / 6;
    assert.ok(Math.abs(hard[i]! - expected) < 1e-5, `hard-swish of ${x}: ${hard[i]}`);
    assert.equal(relu[i], Math.max(0, x));
  }
});

test("activations: a site that is no swish is refused", () => {
  assert.throws(() => replaceSwish(GRAPH, "relu", ["gate"]), RangeError);
});
