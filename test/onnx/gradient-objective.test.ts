import assert from "node:assert/strict";
import { test } from "node:test";
import { createRandom } from "../../agent/math/random.ts";
import { buildModel, floatValue, node } from "../../agent/onnx/builder.ts";
import { buildGradientGraph } from "../../agent/onnx/gradient/gradient-graph.ts";
import { type Objective, withObjective } from "../../agent/onnx/gradient/objective.ts";
import { runGraph } from "./run-graph.helpers.ts";

const PICTURES = 3;
const CLASSES = 4;
const random = createRandom(7);
const normal = (count: number) => Float32Array.from({ length: count }, () => random.normal());

/** Logits are their own input, so that gradients can be told by hand; features likewise. */
const network = buildModel({
  inputs: [floatValue("x", [PICTURES, CLASSES]), floatValue("f", [PICTURES, 5])],
  outputs: [floatValue("y", [PICTURES, CLASSES])],
  nodes: [node("Identity", ["x"], ["y"]), node("Identity", ["f"], ["features"])],
});
const NONE: Objective = {
  distillation: 0,
  temperature: 1,
  features: 0,
  labels: 0,
  logitOffsets: [0, 0, 0, 0],
};

function logSoftmax(row: readonly number[]): number[] {
  const largest = Math.max(...row);
  const total = Math.log(row.reduce((sum, x) => sum + Math.exp(x - largest), 0)) + largest;
  return row.map((x) => x - total);
}

function rows(values: Float32Array): number[][] {
  return Array.from({ length: PICTURES }, (_, i) => [
    ...values.subarray(i * CLASSES, (i + 1) * CLASSES),
  ]);
}

const x = normal(PICTURES * CLASSES);
const teacher = normal(PICTURES * CLASSES);
const targets = Float32Array.from([0.7, 0.1, 0.1, 0.1, 0, 0, 1, 0, 0, 0.5, 0, 0.5]);
const f = normal(PICTURES * 5);
const teacherF = normal(PICTURES * 5);

/** Loss in double precision, by the definitions. */
function oracle(objective: Objective, logits: Float32Array, features: Float32Array): number {
  const { distillation, temperature, labels, logitOffsets } = objective;
  let loss = 0;
  rows(logits).forEach((row, i) => {
    const target = rows(targets)[i]!;
    const own = logSoftmax(row.map((value, c) => value + logitOffsets[c]!));
    const soft = logSoftmax(row.map((value) => value / temperature));
    const wanted = logSoftmax(rows(teacher)[i]!.map((value) => value / temperature));
    for (let c = 0; c < CLASSES; c++) {
      loss -= (labels * target[c]! * own[c]!) / PICTURES;
      const divergence = Math.exp(wanted[c]!) * (wanted[c]! - soft[c]!);
      loss += (distillation * temperature ** 2 * divergence) / PICTURES;
    }
  });
  const wrong = features.reduce((sum, value, i) => sum + (value - teacherF[i]!) ** 2, 0);
  const size = teacherF.reduce((sum, value) => sum + value ** 2, 0);
  return loss + (objective.features * wrong) / size;
}

for (const [name, objective] of Object.entries({
  labels: { ...NONE, labels: 0.3, logitOffsets: [0.5, -0.25, 0, 1] },
  distillation: { ...NONE, distillation: 0.7, temperature: 3 },
  features: { ...NONE, features: 2 },
  all: { distillation: 1, temperature: 2, features: 0.5, labels: 0.4, logitOffsets: [0, 1, 0, 0] },
})) {
  test(`objective: ${name}: loss and gradients are those of the definition`, async () => {
    const { graph, loss, ...inputs } = withObjective(
      network,
      [PICTURES, CLASSES],
      ["features"],
      objective,
    );
    const dims = [PICTURES, CLASSES];
    const feeds: Record<string, { data: Float32Array; dims: readonly number[] }> = {
      x: { data: x, dims },
      f: { data: f, dims: [PICTURES, 5] },
      [inputs.targets]: { data: targets, dims },
      [inputs.teacherLogits]: { data: teacher, dims },
      [inputs.teacherFeatures[0]!]: { data: teacherF, dims: [PICTURES, 5] },
    };
    const read = new Set(graph.inputs.map((input) => input.name));
    const used = Object.entries(feeds).filter(([input]) => read.has(input));
    const of = objective.features === 0 ? ["x"] : name === "features" ? ["f"] : ["x", "f"];
    const inputDims = new Map(used.map(([input, value]) => [input, value.dims]));
    const built = buildGradientGraph(graph, { inputDims, loss, of });
    const results = await runGraph(built.graph, Object.fromEntries(used));
    const close = (a: number, b: number) => Math.abs(a - b) <= 1e-5 * (1 + Math.abs(b));
    assert.ok(close(Number(results[loss]!.data[0]), oracle(objective, x, f)));
    for (const value of of) {
      const gradient = results[built.gradients.get(value)!]!.data;
      const own = Float64Array.from(value === "x" ? x : f);
      own.forEach((middle, i) => {
        const at = (moved: number): number => {
          const other = Float64Array.from(own);
          other[i] = middle + moved;
          const as = other as unknown as Float32Array;
          return value === "x" ? oracle(objective, as, f) : oracle(objective, x, as);
        };
        const difference = (at(1e-5) - at(-1e-5)) / 2e-5;
        assert.ok(close(Number(gradient[i]), difference), `${value}[${i}]`);
      });
    }
  });
}

test("objective: without any term, and with offsets of other classes, it is refused", () => {
  assert.throws(() => withObjective(network, [3, 4], [], NONE), /at least one term/);
  const three = { ...NONE, labels: 1, logitOffsets: [0, 0, 0] };
  assert.throws(() => withObjective(network, [3, 4], [], three), /4 classes, got 3/);
});
