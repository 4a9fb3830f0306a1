import assert from "node:assert/strict";
import { test } from "node:test";
import { createRandom } from "../../agent/math/random.ts";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import { findGates, foldGate } from "../../agent/onnx/gates.ts";
import type { Graph, Node } from "../../agent/onnx/graph.ts";
import { floatTensor } from "../../agent/onnx/tensor.ts";
import { runGraph } from "./run-graph.helpers.ts";

type Behind = "convolution" | "sum" | "activation";

/**
 * Conv → swish → squeeze-excite → what stands behind. The gate's last weights are zero, so that
 * its factors are one constant a channel, whatever the picture.
 */
function gated(behind: Behind, seed = 1): { graph: Graph; factors: Float32Array } {
  const random = createRandom(seed);
  const weight = (...dims: number[]) => {
    const length = dims.reduce((a, b) => a * b, 1);
    return floatTensor(
      dims,
      Array.from({ length }, () => random.normal()),
    );
  };
  const logits = Array.from({ length: 6 }, () => random.normal());
  const swish = (from: string, to: string) => [
    node("Sigmoid", [from], [`${to}_sigmoid`]),
    node("Mul", [from, `${to}_sigmoid`], [to]),
  ];
  // A swish hides the convolution from the gate, a gate right behind it does not.
  const before =
    behind === "sum"
      ? [node("Conv", ["x", "W1", "b1"], ["a"])]
      : [node("Conv", ["x", "W1", "b1"], ["c"]), ...swish("c", "a")];
  const after: Record<Behind, Node[]> = {
    convolution: [node("Conv", ["g", "W2"], ["y"], { pads: [1, 1, 1, 1] })],
    sum: [node("Add", ["g", "x"], ["y"])],
    activation: [node("Tanh", ["g"], ["y"])],
  };
  const graph = buildModel({
    inputs: [floatValue("x", [2, 6, 5, 4])],
    outputs: [floatValue("y", null)],
    nodes: [
      ...before,
      node("GlobalAveragePool", ["a"], ["pooled"]),
      node("Conv", ["pooled", "reduce", "reduce_bias"], ["r"]),
      ...swish("r", "s"),
      node("Conv", ["s", "expand", "expand_bias"], ["e"]),
      node("Sigmoid", ["e"], ["factor"]),
      node("Mul", ["factor", "a"], ["g"]),
      ...after[behind],
    ],
    initializers: {
      W1: weight(6, 6, 1, 1),
      b1: weight(6),
      reduce: weight(3, 6, 1, 1),
      reduce_bias: weight(3),
      expand: floatTensor([6, 3, 1, 1], new Float32Array(18)),
      expand_bias: floatTensor([6], logits),
      W2: weight(4, 6, 3, 3),
    },
  });
  return { graph, factors: Float32Array.from(logits, (value) => 1 / (1 + Math.exp(-value))) };
}

const INPUT = {
  x: {
    data: Float32Array.from({ length: 240 }, (_, i) => Math.sin(i * i)),
    dims: [2, 6, 5, 4],
  },
};

test("gates: a factor made of means is a gate, a swish is none", () => {
  const { graph } = gated("convolution");
  assert.deepEqual(findGates(graph), [{ input: "a", factor: "factor", output: "g" }]);
});

test("gates: what is made of the whole value beside its means is no gate", () => {
  const { graph } = gated("convolution");
  const nodes = graph.nodes.map((each) =>
    each.outputs[0] === "factor" ? node("Add", ["e", "a"], ["factor"]) : each,
  );
  assert.deepEqual(findGates({ ...graph, nodes }), []);
});

for (const [behind, left] of [
  ["convolution", 0],
  ["sum", 0],
  ["activation", 1],
] as const) {
  test(`gates: constant factors are folded, with a ${behind} behind them`, async () => {
    for (const seed of [1, 2, 3]) {
      const { graph, factors } = gated(behind, seed);
      const folded = foldGate(graph, findGates(graph)[0]!, factors);
      assert.deepEqual(findGates(folded), []);
      assert.ok(!folded.initializers.has("expand"), "what made the factors is gone");
      const products = folded.nodes.filter(
        ({ opType, inputs }) => opType === "Mul" && inputs.some((i) => folded.initializers.has(i)),
      );
      assert.equal(products.length, left);
      const [before, after] = [await runGraph(graph, INPUT), await runGraph(folded, INPUT)];
      const wanted = before["y"]!.data as Float32Array;
      const got = after["y"]!.data as Float32Array;
      assert.equal(got.length, wanted.length);
      wanted.forEach((value, i) => {
        assert.ok(Math.abs(got[i]! - value) < 1e-4, `${got[i]} for ${value}`);
      });
    }
  });
}

test("gates: a gate of another graph is an error", () => {
  const { graph, factors } = gated("sum");
  const gate = { input: "a", factor: "factor", output: "elsewhere" };
  assert.throws(() => foldGate(graph, gate, factors), /no gate makes "elsewhere"/);
});
