import assert from "node:assert/strict";
import { after, test } from "node:test";
import { createLogger } from "../../agent/log.ts";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import { floatTensor } from "../../agent/onnx/tensor.ts";
import { createEngine } from "../../agent/specialize/engine.ts";
import { openTrainingStep } from "../../agent/specialize/training-step.ts";

const engine = await createEngine({
  executionProviders: ["cpu"],
  intraOpThreads: 1,
  log: createLogger("error"),
});
after(() => engine.close());

test("training step: summands have equal gradients, each in an array of its own", async () => {
  const network = buildModel({
    inputs: [floatValue("x", ["N", 2])],
    outputs: [floatValue("logits", ["N", 2])],
    nodes: [
      node("MatMul", ["x", "w"], ["product"]),
      node("Add", ["product", "a"], ["half"]),
      node("Add", ["half", "b"], ["logits"]),
    ],
    initializers: {
      w: floatTensor([2, 2], [1, 0, 0, 1]),
      a: floatTensor([2], [0.5, 0]),
      b: floatTensor([2], [0, 0.25]),
    },
  });
  const step = await openTrainingStep({
    network,
    border: "x",
    pictureDims: [2, 2],
    features: [],
    objective: { distillation: 0, temperature: 1, features: 0, labels: 1, logitOffsets: [0, 0] },
    engine,
  });
  try {
    const data = Float32Array.of(1, 0, 0, 1);
    const { loss, gradients } = await step.run(
      step.parameters.map(({ initial }) => initial),
      {
        border: await step.freeze({ data, dims: [2, 2] }),
        targets: { data, dims: [2, 2] },
        teacherLogits: { data, dims: [2, 2] },
        teacherFeatures: [],
      },
    );
    assert.deepEqual(
      step.parameters.map(({ name }) => name),
      ["w", "a", "b"],
    );
    const logits = [
      [1.5, 0.25],
      [0.5, 1.25],
    ] as const;
    const expected = [0, 0];
    let entropy = 0;
    for (const [n, row] of logits.entries()) {
      const total = row.reduce((sum, z) => sum + Math.exp(z), 0);
      entropy -= (row[n]! - Math.log(total)) / 2;
      row.forEach((z, c) => {
        expected[c]! += (Math.exp(z) / total - (c === n ? 1 : 0)) / 2;
      });
    }
    assert.ok(Math.abs(loss - entropy) < 1e-6);
    const [, a, b] = gradients;
    for (const [c, value] of expected.entries()) assert.ok(Math.abs(a![c]! - value) < 1e-6);
    assert.deepEqual(a, b);
    assert.notEqual(a, b);
    assert.notEqual(a!.buffer, b!.buffer);
  } finally {
    await step.release();
  }
});
